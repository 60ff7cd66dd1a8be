# Devices with odd limits under a format: everything still reads as it was written.

io() {
    $QEMU_IO "$@" 2>&1 | sed -e 's/ ops;.*/ ops/'
}

# QEMU dies of a discard that is not aligned to `align` unless `opt-discard` is given too.
for limits in align=4k,opt-discard=4k align=4k,max-transfer=8k,opt-discard=4k align=512,max-transfer=65024,opt-discard=512 \
    opt-write-zero=64k max-write-zero=64k align=4k,opt-write-zero=32k,max-write-zero=64k,opt-discard=8k \
    opt-discard=64k,max-discard=128k align=8k,max-discard=40k,opt-discard=8k \
    align=4k,max-transfer=12k,opt-write-zero=12k,max-write-zero=24k,opt-discard=4k; do
    for format in raw qcow2; do
        echo "== $limits, $format"
        $QEMU_IMG create -q -f $format t.img 8M
        io -c "open -o driver=$format,file.${limits//,/,file.} blkdebug::t.img" -c "write -P 1 0 1M" \
            -c "write -P 2 1000 70000" -c "write -z 100k 300001" -c "write -z -u 500001 100000" \
            -c "discard 700000 100001" -c "read -P 1 0 1000" -c "read -P 2 1000 70000" -c "read -P 1 71000 31400" \
            -c "read -P 0 102400 300001" -c "read -P 1 402401 97600" -c "read -P 0 500001 100000" \
            -c "read -P 1 600001 65536" -c "read -P 1 900000 10" -c "flush"
        $QEMU_IMG check -q -f $format t.img 2>/dev/null
        [ $format = raw ] || echo "check $?"
    done
done
