# The ways to put blkdebug into a graph.

io() {
    $QEMU_IO "$@" 2>&1 | sed -e 's/ ops;.*/ ops/'
    echo "exit ${PIPESTATUS[0]}"
}

$QEMU_IMG create -q -f qcow2 t.qcow2 1M
$QEMU_IMG create -q -f raw t.raw 1M
$QEMU_IO -f qcow2 -c "write -q -P 7 0 256k" t.qcow2
printf '[inject-error]\nevent = "read_aio"\nerrno = "28"\nonce = "on"\n' >rules

echo "== filename"
io -f qcow2 -c "read 0 4k" -c "read -P 7 0 4k" blkdebug:rules:t.qcow2
echo "== filename by command"
io -c "open -o driver=qcow2 blkdebug:rules:t.qcow2" -c "read 0 4k"
echo "== list of options"
io --image-opts -c "read 0 4k" -c "read 0 4k" \
    driver=qcow2,file.driver=blkdebug,file.image.filename=t.qcow2,file.inject-error.0.event=read_aio,file.inject-error.0.errno=9
echo "== one rule without its number"
io --image-opts -c "read 0 4k" \
    driver=qcow2,file.driver=blkdebug,file.image.filename=t.qcow2,file.inject-error.event=read_aio,file.inject-error.once=on
echo "== rules of the file come first"
io --image-opts -c "read 0 4k" -c "read 0 4k" \
    driver=qcow2,file.driver=blkdebug,file.config=rules,file.image.filename=t.qcow2,file.inject-error.event=read_aio
echo "== set-state"
io --image-opts -c "read 0 4k" -c "read 0 4k" \
    driver=qcow2,file.driver=blkdebug,file.image.filename=t.qcow2,file.set-state.event=read_aio,file.set-state.state=1,file.set-state.new_state=2,file.inject-error.event=read_aio,file.inject-error.state=2
echo "== file.driver beside a filename"
io -c "open -o driver=qcow2,file.driver=blkdebug,file.inject-error.event=l2_load t.qcow2" -c "read 0 4k"
echo "== json"
io -c "read 0 4k" "json:{'driver':'qcow2','file':{'driver':'blkdebug','inject-error':[{'event':'read_aio','errno':28,'once':true}],'image':{'driver':'file','filename':'t.qcow2'}}}"
io -c "read 0 4k" "json:{'driver':'qcow2','file':{'driver':'blkdebug','inject-error':[{'event':'read_aio','errno':28}],'image.filename':'t.qcow2'}}"
echo "== above a format"
io --image-opts -c "read 0 4k" -c "write 0 4k" \
    driver=blkdebug,image.driver=qcow2,image.file.filename=t.qcow2,inject-error.event=none,inject-error.iotype=write
echo "== alone"
io --image-opts -c "length" -c "read 0 4k" driver=blkdebug,image.filename=t.raw,inject-error.event=none
echo "== over another"
io -f raw -c "write 0 4k" -c "write 0 4k" blkdebug:rules:blkdebug:rules:t.raw
echo "== mistakes"
io -f raw -c length blkdebug:t.raw
io -f raw -c length blkdebug:gone:t.raw
io -f raw -c length blkdebug:rules:gone.raw
for options in align=3 align=4096,max-transfer=6000 align=512,opt-write-zero=100 max-write-zero=3000,align=2048 \
    opt-discard=5000,align=4k max-discard=4097,align=4k inject-error.event=foo inject-error.errno=5; do
    echo "-- $options"
    io --image-opts -c length driver=raw,file.driver=blkdebug,file.image.filename=t.raw,file.${options//,/,file.}
done
io --image-opts -c length driver=raw,file.driver=blkdebug
