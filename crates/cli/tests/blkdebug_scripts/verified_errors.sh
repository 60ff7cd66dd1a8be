# blkverify above blkdebug: an error on one side alone is seen, the same error on both is none.

io() {
    $QEMU_IO "$@" 2>&1 | sed -e 's/ ops;.*/ ops/'
    echo "exit ${PIPESTATUS[0]}"
}

rule() {
    printf '[inject-error]\nevent = "%s"\nerrno = "5"\niotype = "%s"\n' "$1" "$2" >rules
}

for work in "read_aio read" "write_aio write"; do
    $QEMU_IMG create -q -f qcow2 t.qcow2 1M
    $QEMU_IMG create -q -f raw t.raw 1M
    $QEMU_IO -f qcow2 -c "write -q -P 1 0 64k" t.qcow2
    $QEMU_IO -f raw -c "write -q -P 1 0 64k" t.raw
    rule $work
    echo "== $work"
    io -c "open -o driver=raw,file.driver=blkverify,file.raw.filename=t.raw,file.test.driver=qcow2,file.test.file.driver=blkdebug,file.test.file.config=rules,file.test.file.image.filename=t.qcow2" \
        -c "${work#* } 0 4k"
done

echo "== breakpoints are found on the raw side"
io -c "open -o driver=raw,file.driver=blkverify,file.raw.driver=blkdebug,file.raw.image.filename=t.raw,file.test.driver=qcow2,file.test.file.filename=t.qcow2" \
    -c "break pwritev A" -c "aio_write -P 3 0 4k" -c "wait_break A" -c "resume A" -c "aio_flush" -c "read -P 3 0 4k"
echo "== and not on the other"
io -c "open -o driver=raw,file.driver=blkverify,file.raw.filename=t.raw,file.test.driver=qcow2,file.test.file.driver=blkdebug,file.test.file.image.filename=t.qcow2" \
    -c "break pwritev A" -c "remove_break A"
