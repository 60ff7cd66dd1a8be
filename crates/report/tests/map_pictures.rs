//! The pictures without a browser: sums, bounds, well-formed text, nothing from outside, nothing hostile let through.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use blkproof_check::map::{Class, GuestState};
use blkproof_report::map::{html, svg, term};

/// What `xmllint` says about a document; empty if it is well-formed.
fn xml_faults(text: &str) -> String {
    let mut child = Command::new("xmllint")
        .args(["--noout", "--nonet", "--huge", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("xmllint is installed (scripts/install-peers)");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => String::new(),
        false => String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A page without what stands between script and style tags.
fn markup_of(page: &str) -> String {
    let mut rest = page;
    let mut out = String::new();
    loop {
        let next = ["script", "style"]
            .iter()
            .filter_map(|name| Some((rest.find(&format!("<{name}"))?, format!("</{name}>"))))
            .min_by_key(|(at, _)| *at);
        let Some((at, close)) = next else {
            out.push_str(rest);
            return out;
        };
        out.push_str(&rest[..at]);
        let end = rest[at..].find(&close).unwrap();
        rest = &rest[at + end + close.len()..];
    }
}

/// Words by which a document may load something.
fn references(text: &str) -> Vec<&'static str> {
    let lower = text.to_lowercase();
    let loads = [
        "http:",
        "https:",
        "ftp:",
        "src=",
        "href",
        "@import",
        "url(http",
        "url('",
        "url(\"",
        "url(/",
        "url(data",
        "fetch(",
        "xmlhttp",
        "websocket",
        "sendbeacon",
        "<link",
        "<iframe",
        "<object",
        "<embed",
        "<base",
        "<foreignobject",
    ];
    loads.into_iter().filter(|word| lower.contains(word)).collect()
}

#[test]
fn documents_are_well_formed_and_below_two_mebibytes() {
    for (name, report) in common::all().into_iter().chain([("worst", common::worst())]) {
        let (page, picture) = (html(&report), svg(&report));
        assert_eq!(xml_faults(&picture), "", "{name}: SVG");
        assert_eq!(xml_faults(&markup_of(&page)), "", "{name}: HTML");
        assert!(page.len() <= 2 << 20, "{name}: {} bytes of HTML", page.len());
        assert!(picture.len() <= 2 << 20, "{name}: {} bytes of SVG", picture.len());
    }
    assert!(html(&common::hundred()).len() < 128 << 10, "a sound image makes a small page");
    // The checker notices what it is there for.
    assert_ne!(xml_faults("<svg><text>1 < 2</text></svg>"), "");
    assert_ne!(xml_faults(&markup_of("<p><script>a < b</script><b></p>")), "");
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    for (name, report) in common::all() {
        let picture = svg(&report).replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        let (mut page, mut picture) = (html(&report), picture);
        if name == "hostile" {
            // Its own text says `src=`; that it stays text is another test's subject.
            (page, picture) = (page.replace("src=x", ""), picture.replace("src=x", ""));
        }
        assert_eq!(references(&page), Vec::<&str>::new(), "{name}: HTML");
        assert_eq!(references(&picture), Vec::<&str>::new(), "{name}: SVG");
        assert!(page.contains("default-src 'none'"), "{name}: the policy");
    }
    assert_eq!(references("<img src=\"https://example.org/a.png\">"), ["https:", "src="]);
}

#[test]
fn hostile_text_stays_text() {
    let report = common::hostile();
    for (name, text) in [("HTML", html(&report)), ("SVG", svg(&report)), ("terminal", term(&report, 200, false))] {
        let bad: Vec<char> = text.chars().filter(|letter| letter.is_control() && *letter != '\n').collect();
        assert_eq!(bad, Vec::<char>::new(), "{name}: control characters");
        assert!(!text.contains(['\u{202e}', '\u{2028}', '\u{ffff}']), "{name}: characters that hide others");
        assert!(text.contains("\\u{1b}"), "{name}: the escape character is shown");
    }
    let page = html(&report);
    assert!(!page.contains("<img"), "markup of a name is escaped");
    assert_eq!(page.matches("</script>").count(), 2, "the data ends where it ends");
    assert!(!svg(&report).contains("<img"));
    assert!(!page.contains(&"x".repeat(600)), "long text is cut");
}

/// The bytes in the rows of a terminal's legends, map by map; the last of each is the sum.
fn term_sums(text: &str) -> Vec<Vec<u64>> {
    let mut out = Vec::new();
    for block in text.split("\n\n") {
        let rows = block.lines().filter(|line| line.starts_with("  ") && line.contains('%') && !line.contains(".."));
        let bytes = |line: &str| {
            // Letter and name end, at the latest, before column 23.
            let rest: String = line.chars().skip(23).collect();
            let digits = rest.split("  ").map(str::trim).find(|word| !word.is_empty())?.replace(' ', "");
            digits.parse::<u64>().ok()
        };
        let rows: Vec<u64> = rows.filter_map(bytes).collect();
        if !rows.is_empty() {
            out.push(rows);
        }
    }
    out
}

/// The same of a page's legends.
fn html_sums(page: &str) -> Vec<Vec<u64>> {
    let tables = page.split("<table class=\"legend\">").skip(1).map(|table| table.split("</table>").next().unwrap());
    tables
        .map(|table| {
            let rows = table.split("<tr>").filter(|row| row.contains("<td>"));
            rows.map(|row| {
                row.split("<td>").nth(2).unwrap().split("</td>").next().unwrap().replace(' ', "").parse().unwrap()
            })
            .collect()
        })
        .collect()
}

#[test]
fn legends_sum_to_what_is_mapped() {
    for (name, report) in common::all() {
        let lens: Vec<u64> =
            report.host.iter().map(|map| map.len).chain(report.guest.iter().map(|map| map.size)).collect();
        for (of, sums) in [("HTML", html_sums(&html(&report))), ("terminal", term_sums(&term(&report, 120, false)))] {
            if name == "empty" && of == "terminal" {
                continue; // There is no percentage of nothing.
            }
            assert_eq!(sums.len(), lens.len(), "{name}: legends in {of}");
            for (rows, len) in sums.iter().zip(&lens) {
                let (total, parts) = rows.split_last().unwrap();
                assert_eq!(total, len, "{name}: the sum in {of}");
                assert_eq!(parts.iter().sum::<u64>(), *len, "{name}: the parts in {of}");
            }
        }
    }
}

/// The letters of the rows of each map.
fn grid_letters(text: &str) -> String {
    let rows = text.lines().filter(|line| line.trim_start().starts_with("0x") && !line.contains(".."));
    rows.filter_map(|line| line.trim_start().split_once(' ')).map(|(_, cells)| cells).collect()
}

#[test]
fn letters_tell_what_colour_tells() {
    let text = term(&common::small(), 80, false);
    assert_eq!(grid_letters(&text), "HRr12ddzFd", "the file; what is free has dots and is looked at below");
    assert!(text.contains("dddz00000......."), "the guest's disk:\n{text}");
    let text = term(&common::hostile(), 80, false);
    assert!(text.contains("?!??????????????\n"), "a corruption, the rest unknown:\n{text}");
    assert!(text.contains("!!!!!!!!!!!!!!!!\n"), "damage on the guest's disk:\n{text}");
    for class in Class::ALL {
        assert!(class.letter().is_ascii_graphic(), "{class}");
    }
    for state in GuestState::ALL {
        assert!(state.letter().is_ascii_graphic(), "{state}");
    }
}

#[test]
fn a_terminal_gets_lines_as_wide_as_it_is() {
    for (name, report) in common::all() {
        for width in [0, 80, 81, 5000] {
            let text = term(&report, width, false);
            assert!(!text.contains('\x1b'), "{name}: colour that was not asked for");
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(
                widest <= width.clamp(60, 240),
                "{name}: {widest} characters where {width} were asked for:\n{text}"
            );
            assert!(text.lines().count() < 200, "{name}: {} lines", text.lines().count());
            let mut plain = String::new();
            for part in term(&report, width, true).split('\x1b') {
                match part.strip_prefix('[').and_then(|part| part.split_once('m')) {
                    Some((_, rest)) => plain.push_str(rest),
                    None => plain.push_str(part),
                }
            }
            assert_eq!(plain, text, "{name}: colour changes the letters");
        }
    }
}

#[test]
fn every_cell_of_an_svg_has_a_title_and_findings_have_numbers() {
    let picture = svg(&common::small());
    assert!(picture.contains("<title>0x80000..0x90000: leaked 100.00 %; finding 1</title>"), "{picture}");
    // Three clusters of data in a row are one run, the cluster of data after the leak is another.
    assert!(picture.contains("<title>0x0..0x30000: data 100.00 %</title>"), "{picture}");
    let picture = svg(&common::damaged());
    for number in 1..=12 {
        let pins = picture.matches(&format!(">{number}</text></g>")).count();
        assert!(pins >= 2, "finding {number} has a number in the list and on a map, not {pins}");
    }
}

#[test]
fn the_same_report_makes_the_same_picture() {
    let report = common::damaged();
    assert_eq!(html(&report), html(&report));
    assert_eq!(svg(&report), svg(&common::damaged()));
}
