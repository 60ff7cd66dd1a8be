# Unaligned writes over a device with large sectors, stopped in the middle of their read-modify-write: each waits for the
# other where they share a block, and no byte is lost.

io() {
    $QEMU_IO "$@" 2>&1 | sed -e 's/ ops;.*/ ops/'
}

overlap() { # EVENT FIRST SECOND: the second write comes while the first is stopped
    $QEMU_IMG create -q -f raw t.raw 1M
    io -c "open -o driver=raw,file.align=4k blkdebug::t.raw" -c "write -q -P 10 0 128k" \
        -c "break $1 A" -c "aio_write -P 11 $2" -c "wait_break A" -c "aio_write -P 12 $3" -c "read -q 900k 512" \
        -c "resume A" -c "aio_flush" -c "read -v 0 1" >out.txt
    echo "== $1, $2 | $3"
    grep -v "^wrote\|bytes, 1 ops\|KiB, 1 ops" out.txt
    grep "^wrote" out.txt | sort
    cksum <t.raw
}

for event in pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_done; do
    overlap $event "0x200 0x200" "0x400 0x200"
    overlap $event "0x1200 0x1c00" "0x2e00 0x200"
    overlap $event "0x2200 0x2c00" "0x5000 0x1000"
done
for event in pwritev_rmw_after_tail pwritev; do
    overlap $event "0xe00 0x400" "0x800 0x400"
done
