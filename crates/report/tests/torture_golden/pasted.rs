/// After the image was closed and opened again, bytes 0x200..0x400 hold the initial content, which had been
/// replaced, where only op 2 (write 0x200..0x400, completed) may be; flush 3, sent after op 2 had completed, had
/// succeeded.
#[test]
fn v1_map_before_data_reopen_1f52() {
    blkproof_torture::check(blkproof_torture::target::Vdi).plan(r#"
schema = "blkproof.plan/1"
seed = 1
ops = [
    "1 write 0+512",
    "2 write 512+512 after 1",
    "3 flush after 2",
]
faults = [
    "1#1 fails EIO",
]

[target]
name = "v1-map-before-data"
size = "1M"
"#);
}
