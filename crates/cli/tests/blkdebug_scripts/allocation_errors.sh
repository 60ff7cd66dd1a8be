# An error at each step of an allocation, for good and once: the command may fail, the image may leak, and nothing else.
#
# Needs $QEMU_IO, $QEMU_IMG (both may be of any make) and a directory to work in. $EVENTS in place of all of them.

check() {
    status=0
    $QEMU_IMG check -q -f qcow2 t.qcow2 >check.out 2>&1 || status=$?
    case $status in
    0 | 3) ;;
    *) echo "$1: check ends with $status"; cat check.out ;;
    esac
    # What was written before is there, unless it was given up, and so is what a retry without errors writes.
    case $1 in
    *discard*) before="read -q 0 64k" ;;
    *) before="read -q -P 0x11 0 64k" ;;
    esac
    $QEMU_IO -f qcow2 -c "$before" -c "write -q -P 0x33 16M 128k" -c "read -q -P 0x33 16M 128k" \
        t.qcow2 >retry.out 2>&1 || { echo "$1: not as it was"; cat retry.out; }
}

all="l1_update l2_load l2_update l2_alloc_write write_aio cow_read refblock_load refblock_update_part
refblock_alloc refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks
refblock_alloc_write_table refblock_alloc_switch_table reftable_grow l1_grow_write_table
l1_grow_activate_table cluster_alloc cluster_free pwritev pwritev_done flush_to_os flush_to_disk"

for cluster in 64k 1k; do
    $QEMU_IMG create -q -f qcow2 -o cluster_size=$cluster pristine.qcow2 1G
    $QEMU_IO -f qcow2 -c "write -q -P 0x11 0 64k" pristine.qcow2
    for event in ${EVENTS:-$all}; do
        for once in on off; do
            printf '[inject-error]\nevent = "%s"\nerrno = "28"\nonce = "%s"\n' $event $once >rules
            case $cluster in
            64k) other="discard 0 64k" ;;
            *) other="write -b 0 64k" ;;
            esac
            for command in "write -P 0x22 512M 100k" "$other"; do
                cp pristine.qcow2 t.qcow2
                $QEMU_IO -f qcow2 -c "$command" blkdebug:rules:t.qcow2 >io.out 2>&1
                check "$cluster $event $once, $command"
            done
        done
    done
done
echo done
