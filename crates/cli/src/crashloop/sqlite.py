#!/usr/bin/python3
"""A SQLite database on a bare NBD disk: what `blkproof crashloop --workload sqlite` runs and checks.

    sqlite.py run   --uri URI --seed N [--journal MODE] [--synchronous MODE] [--transactions N]
    sqlite.py check --uri URI --seed N [--journal MODE] --acknowledged FILE

There is no file system and no guest: a SQLite VFS keeps the database, its rollback journal and its write-ahead log in
fixed regions of the disk, and passes xSync on as a flush. What is tested is SQLite's own commit protocol, and whether
the disk keeps the promise that the protocol relies on.

`run` commits numbered transactions, and prints the number of each one when SQLite has said that it is committed.
`check` opens what the power cut left, as an application would: SQLite recovers, `PRAGMA integrity_check` must be
content, and the content must be exactly that after some transaction, which is not before the last one acknowledged.
Exit status 0: all is well; 1: something is lost or damaged; 2: this program could not do its work. The last line of
`check` is a JSON object.

Needs python3-apsw and python3-libnbd.
"""

import argparse
import json
import os
import random
import struct
import sys
import zlib

try:
    import apsw
    import nbd
except ImportError as error:
    print(f"error: {error}; on Debian: apt install python3-apsw python3-libnbd", file=sys.stderr)
    sys.exit(2)

# What a request is made of, and what SQLite is told that a disk may damage around a write it was making.
SECTOR = 512
ATOMIC = 4096
# The directory: two copies of a header for each file, apart by the largest block a disk writes at once. The regions of
# the files share the rest of the disk.
COPY = 64 << 10
DIRECTORY = 6 * COPY
FILES = {"": (0, 2), "-journal": (1, 1), "-wal": (2, 1)}
SHARES = 4
HEADER = struct.Struct("<8sQQQQI")
MAGIC = b"blkproof"


class Gone(Exception):
    """The disk does not answer any more."""


class Disk:
    """An NBD export as bytes; a write of a part of a sector reads the rest of it first, as a kernel does."""

    def __init__(self, uri):
        self.nbd = nbd.NBD()
        self.nbd.connect_uri(uri)
        self.size = self.nbd.get_size()
        self.flushes = 0

    def read(self, at, length):
        start, end = at // SECTOR * SECTOR, -(-(at + length) // SECTOR) * SECTOR
        if start == end:
            return b""
        return bytes(self.call(self.nbd.pread, end - start, start)[at - start : at - start + length])

    def write(self, at, data):
        head = self.read(at // SECTOR * SECTOR, at % SECTOR)
        end = at + len(data)
        tail = self.read(end, -end % SECTOR)
        self.call(self.nbd.pwrite, head + data + tail, at - len(head))

    def flush(self):
        self.call(self.nbd.flush)
        self.flushes += 1

    @staticmethod
    def call(request, *arguments):
        try:
            return request(*arguments)
        except nbd.Error as error:
            raise Gone(str(error)) from error


class File:
    """A file in its region. Its size and whether it exists are durable when it was synced, as on any file system.

    They stand in a header of two copies, each with a checksum. A copy that a flush has made durable stays until another
    flush has made the other one durable: a write that is torn leaves it. A file that is made anew gets the other half of
    the region: no file system gives away the blocks of a file whose removal may still be undone by a power cut.
    """

    def __init__(self, disk, suffix):
        self.disk = disk
        self.slot, share = FILES[suffix]
        unit = (disk.size - DIRECTORY) // SHARES // (2 * ATOMIC) * 2 * ATOMIC
        before = sum(share for slot, share in FILES.values() if slot < self.slot)
        self.region, self.room = DIRECTORY + before * unit, share * unit // 2
        (self.generation, *noted), self.copy = max((self.header(copy), copy) for copy in (0, 1))
        self.exists, self.size, self.half = noted
        # What the header says that was written last, and what it said when it was durable.
        self.noted = self.durable = tuple(noted)
        # How many flushes there had been when it was written; what was there at first is durable.
        self.written = -1

    @property
    def start(self):
        return self.region + self.half * self.room

    def create(self):
        self.settle()
        was_there, _, half = self.durable
        self.exists, self.size, self.half = 1, 0, (1 - half if was_there else half)

    def place(self, copy):
        return (2 * self.slot + copy) * COPY

    def header(self, copy):
        sector = self.disk.read(self.place(copy), SECTOR)
        magic, *values, checksum = HEADER.unpack(sector[: HEADER.size])
        good = magic == MAGIC and checksum == zlib.crc32(sector[: HEADER.size - 4])
        return tuple(values) if good else (0, 0, 0, 0)

    def settle(self):
        """Learns whether the header is durable by now."""
        if self.disk.flushes > self.written:
            self.durable = self.noted

    def note(self):
        """Writes the header, if it has changed."""
        now = (self.exists, self.size, self.half)
        if self.noted == now:
            return
        self.settle()
        if self.disk.flushes > self.written:
            # The last header is durable, and stays.
            self.copy = 1 - self.copy
        self.written = self.disk.flushes
        self.generation += 1
        header = HEADER.pack(MAGIC, self.generation, *now, 0)[:-4]
        header += struct.pack("<I", zlib.crc32(header))
        self.disk.write(self.place(self.copy), header.ljust(SECTOR, b"\0"))
        self.noted = now

    def sync(self):
        self.note()
        self.disk.flush()

    # What SQLite calls.

    def xRead(self, amount, offset):
        return self.disk.read(self.start + offset, max(0, min(amount, self.size - offset)))

    def xWrite(self, data, offset):
        end = offset + len(data)
        if end > self.room:
            raise apsw.FullError(f"the region is full: {end} of {self.room} bytes")
        if offset > self.size:
            # What lies between reads as zeroes, whatever the region held before.
            self.disk.write(self.start + self.size, bytes(offset - self.size))
        self.disk.write(self.start + offset, bytes(data))
        self.size = max(self.size, end)

    def xTruncate(self, size):
        self.size = min(size, self.size)

    def xSync(self, _flags):
        self.sync()

    def xFileSize(self):
        return self.size

    def xSectorSize(self):
        return ATOMIC

    def xDeviceCharacteristics(self):
        return 0

    def xFileControl(self, _operation, _pointer):
        return False

    def xCheckReservedLock(self):
        return False

    def xLock(self, _level):
        pass

    def xUnlock(self, _level):
        # A kernel writes it some time, also for a program that never syncs.
        self.note()

    def xClose(self):
        pass


class Files(apsw.VFS):
    """The files of one database, which is called `db`. Nothing else touches the disk of the host."""

    def __init__(self, disk, seed):
        self.files = {"db" + suffix: File(disk, suffix) for suffix in FILES}
        # Salts and nonces come from here: the same seed makes the same requests with the same bytes.
        self.random = random.Random(seed)
        super().__init__("crashloop", "", makedefault=True)

    def xFullPathname(self, name):
        return name

    def xOpen(self, name, flags):
        name = name.filename() if isinstance(name, apsw.URIFilename) else name
        file = self.files.get(name)
        if file is None:
            raise apsw.CantOpenError(f"no room for a file '{name}'")
        if not file.exists:
            file.create()
        flags[1] = flags[0]
        return file

    def xAccess(self, name, _flags):
        return name in self.files and bool(self.files[name].exists)

    def xDelete(self, name, sync):
        file = self.files[name]
        file.exists, file.size = 0, 0
        # SQLite commits by this, and asks for it to be durable with synchronous = EXTRA alone.
        if sync:
            file.sync()
        else:
            file.note()

    def xRandomness(self, amount):
        return self.random.randbytes(amount)

    def xSleep(self, microseconds):
        return microseconds

    def xCurrentTime(self):
        return 2451544.5

    def xGetLastError(self):
        return (0, "")


class Workload:
    """Numbered transactions: what the database holds after the n-th is a function of n and the seed."""

    SCHEMA = """
        CREATE TABLE ledger (n INTEGER PRIMARY KEY, body BLOB);
        CREATE INDEX by_body ON ledger (substr(body, 1, 8));
        CREATE TABLE totals (k INTEGER PRIMARY KEY, total INTEGER);
        INSERT INTO totals VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (100, 0);
    """

    def __init__(self, seed):
        self.seed = seed

    def apply(self, db, n):
        """Transaction 0 makes the tables; each later one adds, changes and takes away."""
        draw = random.Random(f"{self.seed}/{n}")
        db.execute("BEGIN IMMEDIATE")
        if n == 0:
            db.execute(self.SCHEMA)
        else:
            body = draw.randbytes(draw.choice([40, 700, 3000, 9000]))
            db.execute("INSERT INTO ledger VALUES (?, ?)", (n, body))
            db.execute("UPDATE totals SET total = total + ? WHERE k = ?", (n, n % 5))
            db.execute("UPDATE totals SET total = ? WHERE k = 100", (n,))
            if draw.random() < 0.3:
                db.execute("DELETE FROM ledger WHERE n = ?", (draw.randrange(1, n + 1),))
        db.execute("COMMIT")

    def content(self, last):
        """What there is after transaction `last`."""
        db = apsw.Connection(":memory:", vfs="unix").cursor()
        for n in range(last + 1):
            self.apply(db, n)
        return rows(db)


def rows(db):
    return [list(db.execute(f"SELECT * FROM {table} ORDER BY 1")) for table in ("ledger", "totals")]


def open_database(vfs, journal, synchronous):
    db = apsw.Connection("db", vfs="crashloop").cursor()
    settings = {"page_size": 1024, "temp_store": "MEMORY", "cache_size": 200, "synchronous": synchronous}
    if journal == "wal":
        # Shared memory is for several processes; there is one. Said first: the next statement may open the log.
        settings = {"locking_mode": "EXCLUSIVE", "wal_autocheckpoint": 40} | settings
    for setting, value in (settings | {"journal_mode": journal}).items():
        said = list(db.execute(f"PRAGMA {setting} = {value}"))
    if said != [(journal,)]:
        raise apsw.Error(f"SQLite has no journal_mode {journal} here: {said}")
    return db


def run(arguments, vfs):
    workload = Workload(arguments.seed)
    db = open_database(vfs, arguments.journal, arguments.synchronous)
    for n in range(arguments.transactions):
        workload.apply(db, n)
        print(n, flush=True)
    for file in vfs.files.values():
        file.note()


def check(arguments, vfs):
    with open(arguments.acknowledged, encoding="ascii") as lines:
        acknowledged = [int(line) for line in lines.read().split()]
    last_acknowledged = max(acknowledged, default=-1)
    found = -1
    damage = None
    try:
        db = open_database(vfs, arguments.journal, "EXTRA")
        complaints = [text for (text,) in db.execute("PRAGMA integrity_check")]
        if complaints != ["ok"]:
            damage = "integrity_check: " + " | ".join(" ".join(complaints).splitlines()[:3])
        elif list(db.execute("SELECT 1 FROM sqlite_master WHERE name = 'totals'")):
            ((found,),) = db.execute("SELECT total FROM totals WHERE k = 100")
            if rows(db) != Workload(arguments.seed).content(found):
                damage = f"the content is not that after transaction {found}"
        if damage is None and found >= last_acknowledged:
            # It is to be of use, too.
            Workload(arguments.seed).apply(db, found + 1)
    except apsw.Error as error:
        damage = f"{type(error).__name__.removesuffix('Error')}: {error}"
    lost = max(0, last_acknowledged - found) if damage is None else 0
    if damage is not None:
        words = f"the database is damaged ({damage})"
    elif lost:
        there = f"the last one there is {found}" if found >= 0 else "none is there"
        words = f"transaction {last_acknowledged} was acknowledged, {there}"
    else:
        words = f"all of {last_acknowledged + 1} transactions"
    told = {"acknowledged": last_acknowledged + 1, "found": found + 1, "lost": lost, "damage": damage, "words": words}
    print(json.dumps(told))
    return 1 if damage is not None or lost else 0


def main():
    parser = argparse.ArgumentParser(description="A SQLite database on a bare NBD disk, for blkproof crashloop.")
    parser.add_argument("phase", choices=["run", "check"])
    parser.add_argument("--uri", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", choices=["delete", "truncate", "persist", "wal"], default="delete")
    parser.add_argument("--synchronous", choices=["OFF", "NORMAL", "FULL", "EXTRA"], default="EXTRA")
    parser.add_argument("--transactions", type=int, default=30)
    parser.add_argument("--acknowledged")
    arguments = parser.parse_args()
    status = 2
    try:
        vfs = Files(Disk(arguments.uri), arguments.seed)
        status = (run if arguments.phase == "run" else check)(arguments, vfs) or 0
    except (Gone, apsw.Error, nbd.Error) as error:
        print(f"error: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not one request more: closing the database would write to a disk that is gone.
    os._exit(status)


if __name__ == "__main__":
    main()
