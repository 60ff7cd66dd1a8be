//! blkdebug's semantics, request by request (block-layer.md 1.4), its options, and its limits.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OpenFlags, Options, Registry};
use blkproof_block::testing::TestDisk;
use blkproof_block::{
    BlockDevice, Capabilities, Errno, Event, IoError, Limits, LocalBoxFuture, Node, WriteFlags, ZeroFlags,
};
use blkproof_fault::blkdebug::BlkdebugDriver;
use blkproof_fault::clock::Stopped;
use blkproof_fault::lab::{Lab, Part};
use blkproof_fault::notice::What;
use futures_lite::future::{block_on, poll_once};

/// A driver that opens the disk of the test, whatever it is asked.
struct Given(TestDisk);

impl Driver for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn open<'a>(&'a self, _: Options, _: &'a OpenContext<'a>) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(std::future::ready(Ok(Node::new(self.0.clone()))))
    }
}

struct Bench {
    lab: Rc<Lab>,
    disk: TestDisk,
    said: Rc<RefCell<Vec<String>>>,
    registry: Registry,
}

impl Bench {
    /// `config` is what every configuration file holds.
    fn new(config: &str) -> Self {
        let lab = Lab::new(Rc::new(Stopped));
        let disk = TestDisk::growing(1 << 20).with_capabilities(Capabilities::FUA | Capabilities::ZEROES);
        let said: Rc<RefCell<Vec<String>>> = Rc::default();
        let mut registry = Registry::new();
        registry.add(Given(disk.clone()));
        let config = config.to_owned();
        let read = move |name: &str| match name {
            "gone" => Err(IoError::new(Errno::NOENT)),
            _ => Ok(config.clone()),
        };
        registry.add(BlkdebugDriver::new(&lab, Rc::new(read)).say({
            let said = Rc::clone(&said);
            move |line| said.borrow_mut().push(line.to_owned())
        }));
        Self { lab, disk, said, registry }
    }

    fn try_open(&self, options: &str) -> Result<Node, OpenError> {
        let context = OpenContext { registry: &self.registry, flags: OpenFlags::default() };
        let text = format!("driver=blkdebug,image.driver=given,{options}");
        block_on(context.open_image(&text, None, true))
    }

    #[track_caller]
    fn open(&self, options: &str) -> Node {
        self.try_open(options).unwrap()
    }
}

/// Does `steps` and says what came of each request: a letter of its kind, and the error number if it failed.
fn play(node: &Node, steps: &str) -> String {
    let mut all = String::new();
    for step in steps.split_whitespace() {
        if let Some(event) = step.strip_prefix('!') {
            block_on(node.event(Event::from_name(event).unwrap()));
            continue;
        }
        let (kind, place) = step.split_at(1);
        let (at, len) = place.split_once('+').map_or((0, 512), |(at, len)| (at.parse().unwrap(), len.parse().unwrap()));
        let bytes = usize::try_from(len).unwrap();
        let done = block_on(async {
            match kind {
                "r" => node.read(at, &mut vec![0; bytes]).await,
                "w" => node.write(at, &vec![1; bytes], WriteFlags::empty()).await,
                "z" => node.write_zeroes(at, len, ZeroFlags::empty()).await,
                "Z" => node.write_zeroes(at, len, ZeroFlags::NO_FALLBACK).await,
                "d" => node.discard(at, len).await,
                "f" => node.flush().await,
                "s" => node.block_status(at, len).await.map(drop),
                other => panic!("{other}"),
            }
        });
        let result = done.err().map_or(String::new(), |error| error.errno.0.to_string());
        write!(all, " {kind}{result}").unwrap();
    }
    all.trim_start().to_owned()
}

/// `inject-error` and `set-state` in short: `EVENT key=value …` and `EVENT STATE>NEW`, separated by `;`.
fn config(short: &str) -> String {
    let mut text = String::new();
    for rule in short.split(';').map(str::trim).filter(|rule| !rule.is_empty()) {
        let (event, rest) = rule.split_once(' ').unwrap_or((rule, ""));
        if let Some((state, new)) = rest.split_once('>') {
            writeln!(text, "[set-state]\nevent = \"{event}\"\nstate = \"{state}\"\nnew_state = \"{new}\"").unwrap();
            continue;
        }
        writeln!(text, "[inject-error]\nevent = \"{event}\"").unwrap();
        for pair in rest.split_whitespace() {
            let (key, value) = pair.split_once('=').unwrap();
            writeln!(text, "{key} = \"{value}\"").unwrap();
        }
    }
    text
}

#[test]
fn rules_fire_as_in_qemu() {
    for (rules, steps, want) in [
        // Nothing is active before an event; from then on everything fails, but for block status.
        ("read_aio", "r w !read_aio r w z d s", "r w r5 w5 z5 d5 s"),
        ("read_aio", "!write_aio r", "r"),
        ("none", "r w", "r5 w5"),
        // The list stays while events fire nothing, and is replaced when one does.
        ("read_aio errno=1; l2_load errno=2", "!read_aio r !write_aio r !l2_load r !read_aio r", "r1 r1 r2 r1"),
        ("read_aio errno=28 once=on", "!read_aio r r !read_aio r", "r28 r r"),
        ("read_aio errno=1 once=on; read_aio errno=2 once=on", "!read_aio r r r", "r1 r2 r"),
        // A rule that is used up is gone: its event no longer replaces the list.
        ("read_aio errno=1 once=on; l2_load errno=2", "!read_aio r !l2_load !read_aio r", "r1 r2"),
        // The first in the file wins, as long as it matches.
        ("none errno=1; none errno=2", "r", "r1"),
        ("none errno=1 iotype=write; none errno=2", "r w r", "r2 w1 r2"),
        ("none iotype=flush", "r f w f", "r f w f5"),
        ("none iotype=block-status", "r s", "r s5"),
        ("none iotype=discard; none errno=6 iotype=write-zeroes", "w d z r", "w d5 z6 r"),
        // 0 lets pass, for ever, and hides what stands behind it.
        ("none errno=0 iotype=read once=on; none", "r r w", "r r w5"),
        ("read_aio; l2_load errno=0", "!read_aio r !l2_load r", "r5 r"),
        // A request matches if the sector's first byte is in it.
        ("none sector=4", "r0+2048 r0+2049 r2048+1 r2049+512 w2047+1 w1000+9000", "r r5 r5 r w w5"),
        ("none sector=0", "w1+100 w0+1 f", "w w5 f"),
        ("none sector=4 iotype=flush", "w f", "w f"),
        // States: compared before the event, changed after it; the first change holds.
        ("read_aio state=2; read_aio 1>2", "!read_aio r !read_aio r", "r r5"),
        ("read_aio state=1; read_aio 1>2", "!read_aio r !read_aio r", "r5 r5"),
        ("l2_load 1>3; l2_load 1>2; read_aio state=2", "!l2_load !read_aio r", "r"),
        ("l2_load 1>3; l2_load 1>2; read_aio state=3", "!l2_load !read_aio r", "r5"),
        ("l2_load 0>0; read_aio state=1 errno=1; write_aio errno=2", "!l2_load !read_aio r !write_aio r", "r r2"),
        ("l2_load 1>0; l2_load 0>2; read_aio state=2", "!l2_load !read_aio r !l2_load !read_aio r", "r r5"),
        // Not supported: zeroes go as data, discards count as done.
        ("none errno=95 iotype=write-zeroes", "z Z", "z Z95"),
        ("none errno=95 iotype=write-zeroes; none errno=28 iotype=write", "z", "z28"),
        ("none errno=95 iotype=discard", "d", "d"),
        // The generic layer's own events are raised here.
        ("pwritev", "r w r", "r w5 r5"),
        ("pwritev_done errno=7", "w w", "w w7"),
        ("pwritev_zero", "w z w", "w z5 w5"),
        // A flush of what was not written since the last is nobody's business; one that failed did not happen.
        ("none iotype=flush once=on", "f w f f f", "f w f5 f f"),
        ("write_aio iotype=flush errno=9", "w f !write_aio f w f f", "w f f w f9 f9"),
    ] {
        let node = Bench::new(&config(rules)).open("config=c");
        assert_eq!(play(&node, steps), want, "{rules}: {steps}");
    }
}

#[test]
fn nothing_of_a_failed_request_is_done_and_the_rule_is_named() {
    let bench = Bench::new("\n[inject-error]\nevent = \"none\"\nsector = \"1\"\n");
    let node = bench.open("config=c.conf,inject-error.event=none,inject-error.errno=28,inject-error.iotype=read");
    let error = block_on(node.write(0, &[7; 1024], WriteFlags::empty())).unwrap_err();
    assert_eq!(error.injected_by.unwrap().to_string(), "c.conf:2", "rules of the file come first");
    assert_eq!(error.transferred, 0);
    assert_eq!(bench.disk.bytes(0, 1024), vec![0; 1024]);
    let error = block_on(node.read(0, &mut [0; 512])).unwrap_err();
    assert_eq!(error.injected_by.unwrap().to_string(), "inject-error.0");
}

#[test]
fn the_node_is_in_the_lab_until_it_is_closed() {
    let bench = Bench::new("");
    let node = bench.open("inject-error.event=none,node-name=top");
    let Some(Part::Blkdebug(handle)) = bench.lab.get("top") else { panic!("no node 'top'") };
    assert_eq!(play(&node, "r"), "r5");
    assert_eq!(handle.faults.list()[0].fired, 1);
    assert!(handle.faults.remove("inject-error.0"));
    assert_eq!(play(&node, "r"), "r");
    let error = bench.try_open("node-name=top").unwrap_err().to_string();
    assert!(error.starts_with("two nodes are named 'top'"), "{error}");
    drop(node);
    assert!(bench.lab.get("top").is_none());
    // Without a name they are counted.
    let _nodes = (bench.open("align=512"), bench.open("align=512"));
    assert!(bench.lab.get("blkdebug0").is_some() && bench.lab.get("blkdebug1").is_some());
}

#[test]
fn options_are_read_and_mistakes_named() {
    let bench = Bench::new("[inject-error]\nevnt = \"none\"\n");
    for good in [
        "config=,inject-error.event=none",
        "inject-error.0.event=none,inject-error.1.event=read_aio,inject-error.1.sector=-1,\
         set-state.event=none,set-state.new_state=0",
        "take-child-perms.0=write,unshare-child-perms.0=resize,unshare-child-perms.1=consistent-read",
        "align=4k,max-transfer=64k,opt-write-zero=8k,max-write-zero=16k,opt-discard=4k,max-discard=1M",
    ] {
        bench.open(good);
    }
    for (bad, want) in [
        ("config=c", "c:2: Invalid parameter 'evnt'; did you mean 'event'?"),
        ("config=gone", "Could not read blkdebug config file 'gone': No such file or directory"),
        ("inject-error.errno=5", "driver 'blkdebug' needs the option 'inject-error.event'"),
        ("inject-error.event=read_aioo", "option 'inject-error.event': invalid parameter value: read_aioo"),
        ("inject-error.0.event=none,inject-error.0.iotype=resize", "option 'inject-error.0.iotype': invalid parameter"),
        ("inject-error.event=none,inject-error.errno=EIO", "option 'inject-error.errno' expects a number, got 'EIO'"),
        ("inject-error.event=none,inject-error.errno=5000", "option 'inject-error.errno': 5000 is too large"),
        (
            "inject-error.event=none,inject-error.sect=1",
            "unknown option 'inject-error.sect' for driver 'blkdebug'; did",
        ),
        ("inject-error.event=none,inject-error.once=1", "option 'inject-error.once' expects 'on' or 'off', got '1'"),
        ("set-state.event=none", "driver 'blkdebug' needs the option 'set-state.new_state'"),
        ("take-child-perms.0=everything", "option 'take-child-perms.0' expects one of consistent-read, write"),
        ("align=1000", "Cannot meet constraints with align 1000"),
        ("align=4k,max-transfer=6k", "Cannot meet constraints with max-transfer 6144"),
        ("aling=512", "unknown option 'aling' for driver 'blkdebug'; did you mean 'align'?"),
    ] {
        let error = bench.try_open(bad).unwrap_err().to_string();
        assert!(error.starts_with(want), "{bad}: {error}");
    }
}

#[test]
fn a_filename_is_split_at_its_first_colon() {
    let bench = Bench::new("");
    let context = OpenContext { registry: &bench.registry, flags: OpenFlags::default() };
    for (name, config, image) in [
        ("blkdebug:c.conf:a.raw", Some("c.conf"), "a.raw"),
        ("blkdebug::a.raw", None, "a.raw"),
        ("blkdebug:c:nbd://h:1/e", Some("c"), "nbd://h:1/e"),
        ("blkdebug::blkdebug:c:a", None, "blkdebug:c:a"),
    ] {
        let options = Options::from_filename(name, &bench.registry).unwrap();
        assert_eq!((options.text("driver"), options.text("config")), (Some("blkdebug"), config), "{name}");
        let mut options = options;
        assert_eq!(options.take_child("image").unwrap().text("filename"), Some(image), "{name}");
    }
    let error = Options::from_filename("blkdebug:a.raw", &bench.registry).unwrap_err().to_string();
    assert_eq!(error, "blkdebug requires both config file and image path");
    // A filename of the node itself is the image's.
    let options = context.image_options("a.raw", Some("blkdebug"), false).unwrap();
    assert_eq!(options.text("filename"), Some("a.raw"));
}

#[test]
fn stated_limits_are_kept_by_what_stands_above() {
    let options = "align=4k,max-transfer=64k,opt-write-zero=16k,max-write-zero=32k,opt-discard=8k,max-discard=16k";
    let bench = Bench::new("");
    let node = bench.open(options);
    let Some(Part::Blkdebug(_)) = bench.lab.get("blkdebug0") else { panic!("not in the lab") };
    let mut listener = bench.lab.notices().listen();
    assert_eq!(play(&node, "r1+200000 w100+300000 z1+100000 d1+100000 z4096+512 d4096+512 f"), "r w z d z d f");
    assert!(listener.try_recv().is_err(), "nothing outside the limits came");
    assert_eq!(node.info().limits, Limits { preferred_transfer: 4096, ..Limits::NONE }, "the wrapper takes anything");
}

/// Where nothing stands above, the node says what was wrong, fails the request, and lives.
#[test]
fn a_request_outside_the_limits_is_a_finding() {
    use blkproof_fault::blkdebug::breaks::Breaks;
    use blkproof_fault::blkdebug::{Blkdebug, Handle, LimitOptions};
    use blkproof_fault::filter::Faults;
    use blkproof_fault::rule::RuleSet;

    let lab = Lab::new(Rc::new(Stopped));
    let name: Rc<str> = Rc::from("n");
    let faults = Faults::new(Rc::clone(&name), RuleSet::default(), &lab).unwrap();
    let breaks = Breaks::new(name, lab.notices().clone(), Rc::new(|_| {}));
    let limits = LimitOptions { align: 512, max_transfer: 1024, max_discard: 4096, ..LimitOptions::default() };
    let disk = Node::new(TestDisk::new(1 << 20));
    let handle = Rc::new(Handle { faults, breaks });
    let node = Node::new(Blkdebug::new(disk, handle, limits, std::collections::BTreeSet::new()));
    let mut listener = lab.notices().listen();
    for (step, want) in [
        ("r1+512", "r22"),
        ("w0+2048", "w22"),
        ("d0+8192", "d22"),
        ("d100+1000", "d22"),
        ("z1+1024", "z22"),
        ("r0+1024", "r"),
    ] {
        assert_eq!(play(&node, step), want, "{step}");
        let told = listener.try_recv().ok();
        let told = told.is_some_and(|notice| matches!(notice.what, What::OutsideLimits { .. }));
        assert_eq!(told, want.ends_with("22"), "{step}");
    }
}

#[test]
fn requests_stop_at_breakpoints() {
    let bench = Bench::new("");
    let node = bench.open("align=1");
    let breakpoints = node.breakpoints().unwrap();
    breakpoints.set(Event::Pwritev, "A");
    breakpoints.set(Event::Pwritev, "B");
    assert!(node.listens(Event::Pwritev) && !node.listens(Event::PwritevDone));
    block_on(async {
        let mut write = Box::pin(node.write(0, &[9; 512], WriteFlags::empty()));
        assert!(poll_once(&mut write).await.is_none());
        assert!(breakpoints.is_suspended("A") && breakpoints.is_suspended("B"));
        assert_eq!(bench.disk.bytes(0, 1), [0], "it waits before anything is done");
        node.write(512, &[8; 512], WriteFlags::empty()).await.unwrap(); // others go by
        assert!(breakpoints.resume("A") && !breakpoints.resume("A"));
        assert!(poll_once(&mut write).await.is_none());
        assert!(breakpoints.resume("B"));
        write.await.unwrap();
        // A request that is dropped is not parked any more.
        breakpoints.set(Event::PwritevDone, "C");
        let mut write = Box::pin(node.write(0, &[9; 512], WriteFlags::empty()));
        assert!(poll_once(&mut write).await.is_none());
        assert!(breakpoints.is_suspended("C"));
        drop(write);
        assert!(!breakpoints.is_suspended("C") && !breakpoints.resume("C"));
    });
    let want = ["Suspended request 'B'", "Suspended request 'A'", "Resuming request 'A'", "Resuming request 'B'"];
    let want = want.iter().chain(&["Suspended request 'C'"]).map(|line| format!("blkdebug: {line}"));
    assert_eq!(*bench.said.borrow(), want.collect::<Vec<_>>());
}

/// Two nodes, one above the other: each raises its own events, and the steps of a driver reach both.
#[test]
fn nodes_stand_on_each_other() {
    let bench = Bench::new("");
    let node = bench.open(
        "image.driver=blkdebug,image.image.driver=given,image.inject-error.event=pwritev,image.inject-error.errno=28,\
         inject-error.event=l2_load",
    );
    assert_eq!(play(&node, "r w r !l2_load r"), "r w28 r28 r5");
    let node = bench.open("image.driver=blkdebug,image.image.driver=given,image.inject-error.event=l2_load");
    assert_eq!(play(&node, "!l2_load r"), "r5");
}
