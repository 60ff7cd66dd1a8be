//! The reference in `docs/control.md` is what the schema says.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

const BEGIN: &str = "<!-- From the schema of commands; a test keeps it so. -->\n";
const END: &str = "<!-- The end of what comes from the schema. -->\n";

#[test]
fn the_reference_is_what_the_schema_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/control.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (reference, after) = rest.split_once(END).unwrap();
    let want = format!("\n{}\n", blkproof_control::schema::markdown());
    if std::env::var_os("BLKPROOF_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{want}{END}{after}")).unwrap();
        return;
    }
    let differs = reference.lines().zip(want.lines()).find(|(there, should)| there != should);
    assert!(
        reference == want,
        "docs/control.md differs from the schema, first at {differs:?}; run this test with BLKPROOF_WRITE_DOCS=1 to write it"
    );
}
