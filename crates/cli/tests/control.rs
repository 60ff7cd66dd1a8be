//! The control socket and `blkproof ctl`, on the real binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Outcome, Served, blkproof, run, shell};
use serde_json::{Value, json};
use tempfile::tempdir;

const GRAPH: &str = "driver=fault,node-name=f,file.driver=stats,file.node-name=s,file.file.driver=raw,\
                     file.file.file.driver=file,file.file.file.filename=disk.raw";

/// A served disk of 1 MiB with a control socket.
fn serve(dir: &Path, graph: &str) -> Served {
    std::fs::File::create(dir.join("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    Served::start(dir, 1, &["--control", "c.sock", "--image-opts", graph])
}

fn ctl(dir: &Path, words: &[&str]) -> Outcome {
    blkproof(dir, &[&["ctl", "c.sock"], words].concat())
}

fn ctl_json(dir: &Path, words: &[&str]) -> Value {
    let said = ctl(dir, &[words, &["--format", "json"]].concat()).exited(0).stdout;
    serde_json::from_str(&said).unwrap()
}

/// What qemu-io says to a command on the served disk.
fn qemu_io(dir: &Path, served: &Served, command: &str) -> Outcome {
    run(dir, "timeout", &["60", "qemu-io", "-f", "raw", "-c", command, served.uri()])
}

#[test]
fn a_bad_sector_comes_and_goes_by_command() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let mut served = serve(dir, GRAPH);
    let words = ["fault-add", "rule.id=bad", "rule.on.lba=50", "rule.do.fail=03/1101", "rule.life=until-rewritten"];
    assert_eq!(ctl(dir, &words).exited(0).stdout, "rules: bad\n");
    qemu_io(dir, &served, "read 25088 512").exited(0);
    qemu_io(dir, &served, "read 25600 512").exited(1);
    qemu_io(dir, &served, "write 25600 512").exited(0);
    qemu_io(dir, &served, "read 25600 512").exited(0);
    let list = ctl_json(dir, &["fault-list"]);
    assert_eq!((&list[0]["rules"][0]["fired"], &list[0]["rules"][0]["bad-sectors"]), (&json!(1), &json!(0)));
    let text = ctl(dir, &["fault-list"]).exited(0).stdout;
    assert!(text.starts_with("node: f\nstate: 1\nstopped: no\n"), "{text}");
    assert_eq!(ctl_json(dir, &["fault-wait", "rule=bad", "timeout=5"]), json!({"fired": 1}));
    assert_eq!(ctl(dir, &["fault-remove", "rule=bad"]).exited(0).stdout, "");
    let figures = ctl_json(dir, &["query-blockstats"]);
    assert_eq!(figures[0]["stats"]["wr_bytes"], 512);
    let table = ctl(dir, &["stats", "--node", "s"]).exited(0).stdout;
    assert!(table.contains("write"), "{table}");
    ctl(dir, &["stats-html", "-o", "stats.html"]).exited(0);
    assert!(std::fs::read_to_string(dir.join("stats.html")).unwrap().contains("</html>"));
    served.stop().exited(0);
}

#[test]
fn what_is_wrong_is_said_with_the_nearest_and_an_exit_status() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let _served = serve(dir, GRAPH);
    for (words, code, want) in [
        (&["falt-add"][..], 2, "'fault-add'"),
        (&["fault-wait", "rul=x"], 2, "error: 'fault-wait' has no argument 'rul'; did you mean 'rule'?\n"),
        (&["fault-wait"], 2, "error: 'fault-wait' needs rule=: its id\n"),
        (&["fault-wait", "rule=x"], 1, "error: fault-wait: node 'f' has no rule 'x'\n"),
        (&["fault-wait", "rule=x", "node=g"], 1, "error: fault-wait: no node is named 'g'; did you mean 'f'?\n"),
        (&["fault-add", "rule.on.lbas=1", "rule.do=fail"], 1, "did you mean 'lba'?\n"),
        (&["power-cut"], 1, "error: power-cut: there is no disk node in any graph\n"),
    ] {
        let outcome = ctl(dir, words).exited(code);
        assert!(outcome.stderr.contains(want), "{words:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{words:?}");
    }
    let nobody = blkproof(dir, &["ctl", "nobody.sock", "quit"]).exited(3);
    assert!(nobody.stderr.starts_with("error: could not connect to 'nobody.sock': No such file"), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("\nhint: "), "{}", nobody.stderr);
    let nbd = blkproof(dir, &["ctl", "nbd.sock", "quit"]).exited(3);
    assert!(nbd.stderr.starts_with("error: 'nbd.sock' does not greet as a control socket does\n"), "{}", nbd.stderr);
}

#[test]
fn quit_ends_the_server_as_a_signal_does() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let mut served = serve(dir, GRAPH);
    // The shell waits for the end of the events, which is the end of the server.
    let events = shell(
        dir,
        "blkproof ctl c.sock events > events.txt & sleep 0; until blkproof ctl c.sock query-nodes; do :; \
                             done; blkproof ctl c.sock quit; wait $!; cat events.txt",
    )
    .exited(0)
    .stdout;
    let last = events.lines().last().unwrap_or_default();
    assert!(last.contains("SHUTDOWN") && last.contains("quit"), "{events}");
    let outcome = served.stop().exited(0);
    assert_eq!(outcome.stderr, "control: c.sock\n");
    assert!(!dir.join("c.sock").exists());
}

#[test]
fn the_socket_is_its_owners_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let dir = tempdir().unwrap();
        let dir = dir.path();
        std::fs::File::create(dir.join("disk.raw")).unwrap().set_len(1 << 20).unwrap();
        let line = format!(
            "umask {umask}; blkproof serve --unix n.sock --control c.sock -f raw disk.raw > uri & server=$!; \
             until [ -s uri ]; do :; done; stat -c %a c.sock; kill $server; wait $server"
        );
        assert_eq!(shell(dir, &line).exited(0).stdout, "600\n", "umask {umask}");
    }
}

#[test]
fn a_blkdebug_node_is_controlled_and_let_go() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let graph = "driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename=disk.raw";
    let mut served = serve(dir, graph);
    let nodes = ctl_json(dir, &["query-nodes"]);
    let known: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["driver"]).collect();
    assert_eq!(known, ["blkdebug"], "no node for rules stands in front of it");
    ctl(dir, &["fault-hold", "tag=A", "on.op=read"]).exited(0);
    ctl(dir, &["break", "event=pwritev", "tag=B"]).exited(0);
    let mut clients: Vec<_> = ["read 0 512", "write 0 512"]
        .into_iter()
        .map(|command| {
            let mut client = Command::new("timeout");
            client.args(["60", "qemu-io", "-f", "raw", "-c", command, served.uri()]).current_dir(dir);
            client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    ctl(dir, &["fault-wait", "rule=A"]).exited(0);
    ctl(dir, &["wait-break", "tag=B"]).exited(0);
    served.stop().exited(0);
    for client in &mut clients {
        assert!(client.wait().unwrap().success(), "what was in flight is answered");
    }
}

#[test]
fn clients_that_are_gone_leave_their_places_whatever_they_wait_for() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let mut served = serve(dir, GRAPH);
    ctl(dir, &["fault-add", "rule.id=r", "rule.do=pass"]).exited(0);
    let wait = b"{'execute':'qmp_capabilities'}{'execute':'fault-wait','arguments':{'rule':'r','timeout':'8000h'}}";
    let connect = || {
        let mut client = UnixStream::connect(dir.join("c.sock")).unwrap();
        client.write_all(wait).unwrap();
        client
    };
    // More than there are places, and more commands than are taken: the end of the stream is behind them.
    for number in 0..100 {
        let mut client = connect();
        if number % 2 == 0 {
            client.write_all(&wait.repeat(20)).unwrap();
        }
    }
    // This one has sent its last byte, and listens.
    let mut half_closed = connect();
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    ctl(dir, &["fault-list"]).exited(0);
    qemu_io(dir, &served, "read 0 512").exited(0);
    let mut said = String::new();
    half_closed.read_to_string(&mut said).unwrap();
    assert!(said.contains("{\"return\":{\"fired\":1}}\r\n"), "{said}");
    served.stop().exited(0);
}

#[test]
fn what_stands_in_the_way_is_not_removed() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let graph = "driver=null-co,size=1M";
    let try_again =
        |dir: &Path| blkproof(dir, &["serve", "--unix", "n.sock", "--control", "c.sock", "--image-opts", graph]);
    std::fs::write(dir.join("c.sock"), "precious").unwrap();
    let refused = try_again(dir).exited(1).stderr;
    assert_eq!(
        refused,
        "error: could not listen for control on 'c.sock': it exists and is not a socket; name another path\n"
    );
    assert_eq!(std::fs::read(dir.join("c.sock")).unwrap(), b"precious");
    std::fs::remove_file(dir.join("c.sock")).unwrap();
    let served = serve(dir, graph);
    let refused = try_again(dir).exited(1).stderr;
    assert_eq!(refused, "error: could not listen for control on 'c.sock': another process listens on it\n");
    ctl(dir, &["query-version"]).exited(0);
    // Killed, it leaves its sockets behind; the next one takes their place.
    drop(served);
    assert!(dir.join("c.sock").exists());
    let _served = serve(dir, graph);
    ctl(dir, &["query-version"]).exited(0);
    assert_eq!(std::fs::metadata(dir.join("c.sock")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn tcp_is_loopback_unless_it_says_otherwise() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let graph = "driver=null-co,size=1M";
    let line = format!(
        "blkproof serve --unix n.sock --control tcp:0 --image-opts {graph} > uri 2> told & server=$!; \
         until [ -s uri ]; do :; done; where=$(sed -n 's/^control: //p' told); echo $where; \
         blkproof ctl $where query-commands | head -1; \
         ! curl -s -m 5 -d '{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"quit\"}}' http://${{where#tcp:}}/ -o page; \
         blkproof ctl $where query-commands | head -1; kill $server; wait $server; cat told"
    );
    let said = shell(dir, &line).exited(0).stdout;
    assert!(said.starts_with("tcp:127.0.0.1:"), "{said}");
    assert_eq!(said.matches("query-commands\n").count(), 2, "{said}");
    assert!(said.ends_with("warning: a client of the control socket does not speak QMP\n"), "{said}");
}

#[test]
fn events_are_lines_of_json_and_end_after_so_many() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let served = serve(dir, GRAPH);
    ctl(dir, &["fault-add", "rule.id=r", "rule.on.op=write", "rule.do=pass"]).exited(0);
    let mut listener = Command::new(env!("CARGO_BIN_EXE_blkproof"))
        .args(["ctl", "c.sock", "events", "FAULT_FIRED", "--count", "2"])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it has ended there are more.
    while listener.try_wait().unwrap().is_none() {
        qemu_io(dir, &served, "write 0 512").exited(0);
    }
    let output = listener.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["event"], &event["data"]["rule"]), (&json!("FAULT_FIRED"), &json!("r")));
        assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_500_000_000);
    }
}

#[test]
fn a_killed_client_leaves_its_question_to_the_default() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let served = serve(dir, GRAPH);
    let words = ["fault-add", "rule.id=q", "rule.on.op=write", "rule.do.ask=1 h", "rule.do.default=ENOSPC"];
    ctl(dir, &words).exited(0);
    let mut client = Command::new("socat")
        .args(["-", "UNIX-CONNECT:c.sock"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut typed = client.stdin.take().unwrap();
    typed.write_all(b"{'execute':'qmp_capabilities'}{'execute':'fault-register'}").unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(client.stdout.take().unwrap()));
    assert_eq!(lines.by_ref().map(Result::unwrap).filter(|line| line.starts_with("{\"return\"")).take(2).count(), 2);
    let write = std::thread::scope(|scope| {
        let write = scope.spawn(|| qemu_io(dir, &served, "write 0 512"));
        assert!(lines.any(|line| line.unwrap().contains("FAULT_ASK")));
        client.kill().unwrap();
        client.wait().unwrap();
        write.join().unwrap()
    });
    assert!(write.exited(1).stdout.contains("No space left on device"), "the default");
    ctl(dir, &["query-nodes"]).exited(0);
}

#[test]
fn a_state_of_a_disk_is_saved_whole_and_as_an_overlay() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let graph = "driver=disk,node-name=d,file.driver=raw,file.file.driver=file,file.file.filename=disk.raw";
    let mut served = serve(dir, graph);
    // Closing, qemu-io flushes; libnbd does not.
    run(dir, "qemu-io", &["-f", "raw", "-c", "write -P 1 0 64k", served.uri()]).exited(0);
    let script = format!(
        "import nbd; h = nbd.NBD(); h.connect_uri({:?}); h.pwrite(bytes([2]) * 4096, 4096); \
         h.pwrite(bytes([3]) * 512, 102400); h.trim(4096, 32768)",
        served.uri()
    );
    run(dir, "/usr/bin/python3", &["-c", &script]).exited(0);
    let state = ctl_json(dir, &["disk-state"]);
    assert!(state["on"].as_bool().unwrap(), "{state}");
    for (state, name) in [("all-new", "new"), ("all-old", "old"), ("seed:7", "seed")] {
        let state = format!("state={state}");
        ctl(dir, &["disk-save", &state, &format!("file={name}.raw")]).exited(0);
        ctl(dir, &["disk-save", &state, &format!("file={name}.qcow2"), "backing=disk.raw"]).exited(0);
        run(dir, "qemu-img", &["check", "-U", &format!("{name}.qcow2")]).exited(0);
        let (raw, overlay) = (format!("{name}.raw"), format!("{name}.qcow2"));
        run(dir, "qemu-img", &["compare", "-U", "-f", "raw", "-F", "qcow2", &raw, &overlay]).exited(0);
    }
    run(dir, "qemu-img", &["compare", "-U", "-f", "raw", "-F", "raw", "new.raw", "old.raw"]).exited(1);
    let taken = ctl(dir, &["disk-save", "file=new.raw"]).exited(1).stderr;
    assert_eq!(taken, "error: disk-save: could not create 'new.raw': File exists\n");
    let cut = ctl_json(dir, &["power-cut", "state=all-old"]);
    assert_eq!((&cut["cut"], &cut["on"]), (&json!(1), &json!(true)));
    run(dir, "qemu-img", &["compare", "-U", "-f", "raw", "-F", "raw", "disk.raw", "old.raw"]).exited(0);
    served.stop().exited(0);
}

#[test]
fn shells_complete_commands_and_their_arguments() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let complete = |words: &[&str], last: &str| {
        let all = words.join(" ");
        let line = format!(
            "source <(blkproof completions bash); COMP_WORDS=({all} '{last}'); COMP_CWORD={}; \
             _blkproof blkproof '{last}' x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len()
        );
        shell(dir, &line).exited(0).stdout
    };
    assert_eq!(complete(&["blkproof", "ctl", "c.sock"], "fault-a"), "fault-add\nfault-arm\nfault-answer\n");
    assert_eq!(complete(&["blkproof", "ctl", "c.sock", "power-cut"], "st"), "state=\n");
    let operations = complete(&["blkproof", "ctl", "c.sock", "device-error"], "operation=w");
    assert_eq!(operations, "operation=write\noperation=write-zeroes\n");
}
