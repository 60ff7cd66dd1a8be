//! House rules: what ARCHITECTURE.md promises and no compiler checks.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::shell;

/// Words that must not stand in the sources of a crate, outside its tests and the files excepted.
struct Ban {
    crates: &'static [&'static str],
    words: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        crates: &[
            "block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report",
        ],
        words: &[
            "Instant::now",
            "SystemTime",
            "thread::sleep",
            "thread::spawn",
            "tokio::time",
            "thread_rng",
            "getrandom",
        ],
        except: &[],
        why: "time, threads and randomness come from outside, so that a run can be repeated",
    },
    Ban {
        crates: &[
            "block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report",
        ],
        words: &["thread::Builder", "spawn_scoped", "wait_timeout", "park_timeout"],
        // Races between threads are found by threads, and a deadlock by waiting. That mode promises a rate, no exact
        // repeat, and has all that it takes from the machine in this one file.
        except: &["crates/torture/src/threads/machine.rs"],
        why: "threads of one's own and waits that end by themselves make runs that can not be repeated",
    },
    Ban {
        crates: &["fault", "formats", "verify", "nbd", "control", "sim"],
        words: &["TcpListener", "TcpStream", "UnixListener", "UnixStream", "std::fs", "std::net"],
        except: &["crates/nbd/src/tls"],
        why: "files belong to the `file` node and sockets to the command line",
    },
    Ban {
        crates: &[
            "block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report",
        ],
        words: &["println!", "eprintln!", "print!(", "process::exit"],
        except: &[],
        why: "a library neither prints nor exits",
    },
    Ban {
        crates: &[
            "block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report",
        ],
        words: &["HashMap", "HashSet"],
        except: &[],
        why: "iteration order must be the same in every run: BTreeMap",
    },
    Ban {
        crates: &["check"],
        words: &["std::fs", "OpenOptions", "File::create", "write_at(", "write_all(", "set_len("],
        except: &["crates/check/src/source.rs", "crates/check/src/writer.rs"],
        why: "a check reads, and only through its source",
    },
    Ban {
        crates: &[
            "block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report",
            "cli",
        ],
        words: &["todo!(", "unimplemented!(", "#[ignore"],
        except: &[],
        why: "nothing is left open in the code",
    },
];

/// Crates in their order: each depends only on those before it.
const ORDER: &[&str] =
    &["block", "fault", "formats", "verify", "nbd", "control", "check", "sim", "torture", "gallery", "report", "cli"];

/// Runs every rule.
pub(crate) fn run() -> anyhow::Result<()> {
    eprintln!("$ house rules");
    let root = shell::root();
    let mut broken = banned_words(&root)?;
    broken.extend(dependency_order(&root)?);
    if broken.is_empty() {
        return Ok(());
    }
    bail!("{} house rule(s) broken:\n{}", broken.len(), broken.join("\n"))
}

fn banned_words(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for ban in BANS {
        for name in ban.crates {
            for file in rust_files(&root.join("crates").join(name).join("src"))? {
                let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
                if ban.except.iter().any(|except| shown.starts_with(except)) {
                    continue;
                }
                let text = std::fs::read_to_string(&file).with_context(|| format!("reading {shown}"))?;
                broken.extend(
                    lines_with(&text, ban.words).map(|(line, word)| format!("{shown}:{line}: `{word}`: {}", ban.why)),
                );
            }
        }
    }
    Ok(broken)
}

/// Lines of code, before the tests of the file, that hold one of the words.
fn lines_with<'a>(text: &'a str, words: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(number, line)| words.iter().find(|word| holds_word(line, word)).map(|word| (number + 1, *word)))
}

/// Whether `word` stands in `line` and does not continue a longer name (`eprintln!` is not `println!`).
fn holds_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

fn dependency_order(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for (place, name) in ORDER.iter().enumerate() {
        let manifest = root.join("crates").join(name).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
        let dependencies = text.split("[dev-dependencies]").next().unwrap_or(&text);
        for later in &ORDER[place + 1..] {
            if dependencies.lines().any(|line| line.starts_with(&format!("blkproof-{later}"))) {
                broken
                    .push(format!("crates/{name} depends on crates/{later}, which comes after it in ARCHITECTURE.md"));
            }
        }
    }
    Ok(broken)
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banned_word_is_found_and_its_look_alikes_are_not() {
        let text = "use std::time::SystemTime;\n// SystemTime in a comment\nlet my_SystemTimer = 1;\n\
                    #[cfg(test)]\nuse std::time::SystemTime;\n";
        let found: Vec<_> = lines_with(text, &["SystemTime"]).collect();
        assert_eq!(found, [(1, "SystemTime")]);
        assert_eq!(lines_with("eprintln!(1)", &["println!"]).count(), 0);
    }

    #[test]
    fn the_workspace_keeps_the_rules() {
        run().unwrap();
    }
}
