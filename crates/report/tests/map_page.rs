//! The page in a real browser: headless Chromium draws it, clicks in it, and tells what it shows.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Command;

use blkproof_report::map::html;

/// What the browser made of a page.
struct Seen {
    dom: String,
    /// What the page wrote to the console: errors and refused loads.
    console: Vec<String>,
}

impl Seen {
    /// A `data-…` value of the root element, where the page says what it shows.
    fn value(&self, name: &str) -> Option<&str> {
        let root = self.dom.split("<html").nth(1)?.split('>').next()?;
        root.split(&format!("data-{name}=\"")).nth(1)?.split('"').next()
    }
}

/// Opens a page from a file, `hash` chosen, and runs `script` in it after its own.
fn look(page: &str, hash: &str, script: &str) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let with_script = page.replacen("</body>", &format!("<script>{script}</script></body>"), 1);
    std::fs::write(&file, with_script).unwrap();
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .args([
            "--enable-logging=stderr",
            "--v=0",
            "--window-size=1440,900",
            "--virtual-time-budget=5000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}{hash}", file.display()))
        .output()
        .expect("chromium is installed (scripts/install-peers)");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && dom.contains("<html"), "chromium failed: {log}");
    Seen { dom, console: log.lines().filter(|line| is_of_the_page(line)).map(str::to_owned).collect() }
}

/// Lines of the console, but for a hint on the pictures that the tests read back.
fn is_of_the_page(line: &str) -> bool {
    line.contains("CONSOLE") && !line.contains("willReadFrequently")
}

fn assert_quiet(seen: &Seen, name: &str) {
    assert_eq!(seen.console, Vec::<String>::new(), "{name}: the console");
    assert_eq!(seen.value("error"), None, "{name}: an error of the script");
    assert_eq!(seen.value("ready"), Some("1"), "{name}: the script ran to its end");
}

/// Runs in the page that holds the others as frames: takes over what they say.
const COLLECT: &str = r##"
    for (const [name, text] of pages) {
        const frame = document.createElement("iframe");
        frame.width = 1400;
        frame.height = 900;
        frame.addEventListener("load", () => {
            const inner = frame.contentDocument, root = document.documentElement;
            for (const [key, value] of Object.entries(inner.documentElement.dataset))
                root.setAttribute("data-" + name + "-" + key.toLowerCase(), value);
            // Beside the letter, in the first cell.
            const base = inner.querySelector("#host .base");
            if (base) root.setAttribute("data-" + name + "-corner", [...base.getContext("2d").getImageData(3, 3, 1, 1).data].join(" "));
        });
        frame.srcdoc = text;
        document.body.append(frame);
    }
"##;

#[test]
fn every_page_draws_all_bytes_without_an_error() {
    let mut reports = common::all();
    reports.push(("worst", common::worst()));
    let pages: Vec<(&str, String)> = reports.iter().map(|(name, report)| (*name, html(report))).collect();
    let pages = serde_json::to_string(&pages).unwrap().replace('<', "\\u003c");
    let frames =
        format!("<!DOCTYPE html><html lang=\"en\"><body><script>const pages = {pages};</script></body></html>");
    let seen = look(&frames, "", COLLECT);
    assert_eq!(seen.console, Vec::<String>::new(), "the console");
    for (name, report) in &reports {
        let value = |what: &str| seen.value(&format!("{name}-{what}"));
        assert_eq!((value("ready"), value("error")), (Some("1"), None), "{name}: the script ran to its end");
        assert_eq!(value("owned"), None, "{name}: text of the image ran");
        let host = report.host.as_ref().and_then(|map| Some((map.len, map.grid.as_ref()?.cells.len())));
        let guest = report.guest.as_ref().and_then(|map| Some((map.size, map.grid.as_ref()?.cells.len())));
        for (side, map) in [("host", host), ("guest", guest)] {
            let Some((len, cells)) = map.filter(|(len, _)| *len > 0) else {
                assert_eq!(value(&format!("{side}bytes")), None, "{name}: nothing to draw");
                continue;
            };
            assert_eq!(
                value(&format!("{side}bytes")),
                Some(len.to_string().as_str()),
                "{name}: cells sum to the {side}"
            );
            let drawn: usize = value(&format!("{side}cells")).unwrap().parse().unwrap();
            assert!(drawn == cells || *name == "worst" && drawn >= 4096, "{name}: {drawn} of {cells} cells");
        }
    }
    // The curve begins in the corner, and a file with its header.
    for name in ["small", "one-cell"] {
        assert_eq!(seen.value(&format!("{name}-corner")), Some("17 24 39 255"), "{name}: the colour of a header");
    }
}

#[test]
fn an_error_of_a_script_would_be_seen() {
    let page = html(&common::one_cell());
    let seen = look(&page, "", "null.nothing;");
    assert!(!seen.console.is_empty() && seen.value("error").is_some(), "a planted error: {:?}", seen.console);
    let seen = look(
        &page,
        "",
        "new Image().src = 'https://example.org/a.png'; fetch('https://example.org/').catch(() => {});",
    );
    assert!(
        seen.console.iter().any(|line| line.contains("Content Security Policy")),
        "a planted load: {:?}",
        seen.console
    );
}

#[test]
fn findings_and_cells_lead_to_each_other() {
    let script = r##"
        const out = document.documentElement.dataset;
        const heading = () => document.querySelector("#inspector h3")?.textContent ?? "";
        const host = document.querySelector("#host .over"), guest = document.querySelector("#guest .over");
        const veiled = canvas => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter((part, at) => at % 4 === 3 && part > 100).length;
        const corner = document.querySelector("#host .base").getContext("2d").getImageData(3, 3, 1, 1).data;
        out.corner = [...corner].join(" ");
        out.before = veiled(host) < host.width * host.height / 4 && veiled(guest) < guest.width * guest.height / 4;
        document.querySelector('.place[data-place="7"]').click();
        out.clicked = heading();
        out.after = veiled(host) > host.width * host.height / 2 && veiled(guest) > guest.width * guest.height / 2;
        out.address = location.hash;
        // The cell where that finding lies, found by the keyboard: the first cell, and then along the file.
        document.querySelector('.place[data-place="7"]').click();
        out.cleared = heading();
        const key = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        key(host, "Home"); key(host, "Enter");
        out.first = heading();
        const links = [...document.querySelectorAll("#inspector .link")];
        out.links = links.map(link => link.textContent).join("|");
        links[0].click();
        out.linked = heading();
        out.pressed = document.querySelector('.place[aria-pressed="true"]').dataset.place;
        key(document.body, "p");
        out.previous = heading();
        key(document.body, "Escape");
        out.escaped = heading();
        const box = guest.getBoundingClientRect();
        guest.dispatchEvent(new MouseEvent("click", { clientX: box.left + 2, clientY: box.top + 2, bubbles: true }));
        out.cell = heading();
        key(guest, "."); key(guest, "ArrowLeft"); key(guest, "End"); key(guest, " ");
        out.last = heading();
        document.querySelector("#host button.kind[data-kind='3']").click();
        out.alone = document.querySelector("#host button.kind[data-kind='3']").getAttribute("aria-pressed");
    "##;
    let seen = look(&html(&common::damaged()), "", script);
    assert_quiet(&seen, "damaged");
    let want = [
        ("before", "true"),
        ("clicked", "Finding 6"),
        ("after", "true"),
        ("address", "#finding=6"),
        ("cleared", ""),
        ("first", "Image file, cell 0 of 16\u{a0}384"),
        ("links", "12 QCOW2-HEADER-NAME-ODD"),
        ("linked", "Finding 12"),
        ("pressed", "13"),
        ("previous", "Finding 11"),
        ("escaped", ""),
        ("cell", "Guest disk, cell 0 of 16\u{a0}384"),
        ("last", "Guest disk, cell 16\u{a0}383 of 16\u{a0}384"),
        ("alone", "true"),
    ];
    for (name, value) in want {
        let got = seen.value(name).map(|got| got.replace("&nbsp;", "\u{a0}"));
        assert_eq!(got.as_deref(), Some(value), "{name}");
    }
}

#[test]
fn the_address_chooses_what_is_shown() {
    let page = html(&common::damaged());
    for (hash, heading, more) in [
        ("#finding=3", "<h3>Finding 3</h3>", "L2 table of l1[1] at 0x2286230000..0x2286240000, guest 0x3742140000"),
        ("#guest=0&scheme=dark", "<h3>Guest disk, cell 0 of 16&nbsp;384</h3>", "data-scheme=\"dark\""),
        ("#finding=99999&cause=1&host=-1&guest=x", "Select a cell", "How to read the maps"),
    ] {
        let seen = look(&page, hash, "");
        assert_quiet(&seen, hash);
        assert!(seen.dom.contains(heading) && seen.dom.contains(more), "{hash}");
    }
    let script = r##"
        const heading = () => document.querySelector("#inspector").textContent;
        let waiting = ["#cause=B", "#host=3000"], at = 0;
        addEventListener("hashchange", () => {
            document.documentElement.dataset["seen" + at++] = heading();
            if (waiting.length) location.hash = waiting.shift();
        });
        location.hash = waiting.shift();
    "##;
    let seen = look(&page, "", script);
    assert_quiet(&seen, "changes");
    let cause = seen.value("seen0").unwrap();
    assert!(cause.contains("Cause B") && cause.contains("2 QCOW2-L2-PAST-END"), "{cause}");
    let cell = seen.value("seen1").unwrap();
    assert!(cell.contains("cell 3&nbsp;000 of 16&nbsp;384") && cell.contains("L2 table 49 at"), "{cell}");
}
