//! `blkproof serve`: block graphs as NBD exports, with disks, rules and records in front of them.

mod clients;
mod listen;
mod notify;
mod plan;
mod prometheus;
mod reload;
mod site;
mod stack;

use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use blkproof_fault::disk::{DiskOptions, parse_options};
use blkproof_nbd::server::{Limits, Server, Summary};
use blkproof_verify::OnMismatch;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet, spawn_local};

use crate::control;
use crate::graph::{ImageArgs, lab, parse_size, registry_with};
use crate::messages::{human_size, print_error, without_number};
use crate::mismatches::Mismatches;
use crate::runtime::{self, stop_signal};
use clients::{Clients, Names};
use listen::{Address, Listener};
use notify::{PidFile, ReadyFd, Systemd};
use plan::Plan;
use prometheus::Endpoint;
use reload::Reload;
use site::Site;

/// Serve block graphs over NBD
///
/// Prints the URI to use, one line for each export, and serves until SIGINT or SIGTERM; what is in flight then is
/// answered first. A graph may be any node, such as `blkverify:reference.raw:disk.qcow2`. Ends with status 1 if a
/// mirror in the graph found a mismatch.
///
/// In front of each graph stand, from the client down, what the options ask for: the nodes `trace`, `stats`, `fault`
/// (rules), `log` and `disk`. With several exports their names begin with the export's, as in `NAME.disk`.
///
/// Example: `blkproof serve --unix /tmp/nbd.sock blkverify:reference.raw:disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Listen on a Unix socket
    #[arg(long, value_name = "PATH", group = "address")]
    unix: Option<PathBuf>,

    /// Listen on TCP; ADDR is loopback if only a port is given [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT", group = "address")]
    tcp: Option<String>,

    /// Serve the exports that this file describes; SIGHUP reads it again
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["graphs", "export", "description", "rules", "disk", "log", "trace", "stats"],
        conflicts_with_all = ["image_format", "image_opts"],
    )]
    config: Option<PathBuf>,

    /// Name of the export; once for each graph if there are several
    #[arg(short = 'x', long, value_name = "NAME")]
    export: Vec<String>,

    /// Description of the export, shown by clients that list exports; once for all graphs, or once for each
    #[arg(long, value_name = "TEXT")]
    description: Vec<String>,

    /// Refuse writes
    #[arg(short, long)]
    read_only: bool,

    /// Fail as the rules in this file say
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,

    /// Serve a disk with a volatile write cache: honest or liar, and options, as in liar:profile=torn,seed=3
    #[arg(long, value_name = "KIND[:OPTION=VALUE,…]", value_parser = parse_disk)]
    disk: Option<DiskOptions>,

    /// Log every write to this file, as dm-log-writes does
    ///
    /// Entries hold details that its readers skip and `log cut` needs: what was in flight at each moment.
    #[arg(long, value_name = "FILE")]
    log: Option<String>,

    /// Write a line of JSON for each request to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<String>,

    /// Count requests, for `blkproof ctl … stats`
    #[arg(long)]
    stats: bool,

    /// Seed of the rules and the disk, in place of their own
    #[arg(long, value_name = "N", value_parser = parse_seed)]
    seed: Option<u64>,

    /// Listen for control clients: a path (a Unix socket, for its owner alone), tcp:PORT (loopback) or tcp:HOST:PORT
    #[arg(long, value_name = "SOCKET")]
    control: Option<control::Address>,

    /// Give statistics to Prometheus; ADDR is loopback if only a port is given
    #[arg(long, value_name = "ADDR:PORT")]
    prometheus: Option<String>,

    /// Most connections at a time; further ones are refused [default: 64]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,

    /// Most bytes of requests in flight, over all connections [default: 256M]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    max_in_flight: Option<u64>,

    /// Offer TLS with the certificates in this folder: ca-cert.pem, server-cert.pem, server-key.pem
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,

    /// Refuse clients that do not use TLS
    #[cfg(feature = "tls")]
    #[arg(long, requires = "tls_certificates")]
    tls_require: bool,

    /// Refuse clients without a certificate signed by ca-cert.pem
    #[cfg(feature = "tls")]
    #[arg(long, requires = "tls_certificates")]
    tls_verify_client: bool,

    /// What a mirror does at a mismatch: report, fail, exit or repair-view [default: report]
    #[arg(long, value_name = "WORD", value_parser = parse_on_mismatch)]
    on_mismatch: Option<OnMismatch>,

    /// When the server is ready, write the URIs and a line READY to this file descriptor, and close it
    #[arg(long, value_name = "N", value_parser = ReadyFd::parse)]
    ready_fd: Option<i32>,

    /// Hold the number of the process in this file from when the server is ready until it ends
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Say what stands in front of each graph, and when clients come and go
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    image: ImageArgs,

    /// What to serve
    #[arg(required_unless_present = "config", value_name = "GRAPH")]
    graphs: Vec<String>,
}

impl Args {
    /// Where to listen, if it is said.
    fn address(&self) -> Option<Address> {
        let unix = self.unix.clone().map(Address::Unix);
        unix.or_else(|| self.tcp.as_deref().map(Address::tcp))
    }
}

pub(crate) fn run(args: Args) -> ExitCode {
    let served = args.ready_fd.map(ReadyFd::take).transpose();
    match served.and_then(|ready| runtime::block_on(serve(args, ready)).flatten()) {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Time a client has for negotiation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time clients have to take their last replies after a shutdown was asked for.
const FAREWELL: Duration = Duration::from_secs(10);

async fn serve(args: Args, ready: Option<ReadyFd>) -> anyhow::Result<ExitCode> {
    let args = Rc::new(args);
    let pid_file = args.pid_file.as_deref().map(PidFile::take).transpose()?;
    let plan = Plan::new(&args)?;
    let lab = lab();
    let mismatches = Mismatches::default().telling(&lab);
    let registry = registry_with(&mismatches, plan.on_mismatch, &lab);
    let limits = Limits { connections: plan.connections, in_flight_bytes: plan.in_flight_bytes, ..Limits::default() };
    let clients = Rc::new(Clients(Rc::clone(&lab)));
    let make = |exports| with_tls(Server::new(exports, limits).with_host(clients), &args);
    let site = Rc::new(Site::open(&plan.exports, Rc::clone(&lab), registry, make, FAREWELL).await?);
    let served = listen_and_serve(&args, plan, &site, (pid_file, ready)).await;
    let closed = site.close().await;
    served?;
    closed?;
    Ok(mismatches.exit_code())
}

async fn listen_and_serve(
    args: &Rc<Args>,
    plan: Plan,
    site: &Rc<Site>,
    (mut pid_file, ready): (Option<PidFile>, Option<ReadyFd>),
) -> anyhow::Result<()> {
    let systemd = Rc::new(Systemd::from_env()?);
    let listeners = listen_at(args, &plan).await?;
    let process = Rc::new(control::Process::default());
    let mut services = Services::new();
    if let Some(address) = &plan.control {
        let control = control::listen(site.lab(), address, process.clone()).await?;
        eprintln!("control: {}", control.address());
        // Its clients may still release what is held while connections are being ended.
        services.spawn(|stop| control.run(stop));
    }
    if let Some(address) = &plan.prometheus {
        let endpoint = Endpoint::bind(address, site.lab()).await?;
        eprintln!("statistics: {}", endpoint.url());
        services.spawn(|stop| endpoint.run(stop));
    }
    // Before the first line is printed: whoever reads it may already say stop, and is owed a proper end.
    let mut stop = pin!(stop_signal()?);
    let mut reloading = Services::new();
    // Only then: without a file the signal ends the process, as it always did.
    if args.config.is_some() {
        let reload = Reload::new(args, plan, site, &systemd)?;
        reloading.spawn(|stop| reload.run(stop));
    }
    let uris: Vec<String> = uris(&listeners, site, args);
    uris.iter().for_each(|uri| println!("{uri}"));
    if args.verbose {
        site.for_each(|live| {
            if !live.plan.is_bare() {
                eprintln!("export '{}': {}", live.plan.name, stack::describe(&live.plan, &live.parts));
            }
        });
    }
    if let Some(file) = &mut pid_file {
        file.write()?;
    }
    if let Some(ready) = ready {
        ready.tell(&uris)?;
    }
    systemd.ready("serving");
    // A disk may come with a reload.
    if args.config.is_some() || site.has_disks() {
        let site = Rc::clone(site);
        services.spawn(|stop| futures_lite::future::or(stop, clients::follow_power(site)));
    }

    let names = Names::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = process.told_to_quit() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            client = listen::accept(&listeners) => match client {
                Ok((stream, peer)) => {
                    let name = names.name(&peer);
                    connections.spawn_local(serve_client(site.server().clone(), stream, name, args.verbose));
                }
                // Out of file descriptors, or a client gone before it was accepted: those connected go on.
                Err(error) => {
                    let words = error.to_string();
                    eprintln!("warning: could not accept a connection: {}", without_number(&words));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }

    systemd.stopping();
    drop(listeners);
    // A reload that is under way comes to its end: what it has opened has to be closed.
    reloading.end().await?;
    site.server().shut_down();
    site.let_go();
    let farewell = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = farewell => {}
        () = tokio::time::sleep(FAREWELL) => {
            eprintln!("warning: a client does not take its replies; leaving it behind");
        }
        () = stop_signal()? => eprintln!("warning: told to stop twice; clients are left behind"),
    }
    connections.shutdown().await;
    services.end().await
}

/// Everywhere clients may come in.
async fn listen_at(args: &Args, plan: &Plan) -> anyhow::Result<Vec<Listener>> {
    let inherited = Listener::inherited()?;
    if !inherited.is_empty() {
        if args.address().is_some() {
            bail!("whoever started this process listens for it (LISTEN_FDS); leave --unix and --tcp out");
        }
        return Ok(inherited);
    }
    let mut listeners = Vec::with_capacity(plan.listen.len());
    for address in &plan.listen {
        listeners.push(Listener::bind(address).await?);
    }
    Ok(listeners)
}

fn uris(listeners: &[Listener], site: &Site, args: &Args) -> Vec<String> {
    let tls = uses_tls(args);
    let names = site.names();
    listeners.iter().flat_map(|listener| names.iter().map(move |name| listener.uri(name, tls))).collect()
}

/// What runs beside the exports until the end.
struct Services {
    stop: watch::Sender<bool>,
    running: Vec<JoinHandle<()>>,
}

impl Services {
    fn new() -> Self {
        Self { stop: watch::Sender::new(false), running: Vec::new() }
    }

    fn spawn<F: Future<Output = ()> + 'static>(&mut self, run: impl FnOnce(Pin<Box<dyn Future<Output = ()>>>) -> F) {
        let mut stop = self.stop.subscribe();
        let stop = Box::pin(async move {
            // An error means that the sender is gone, which is the end too.
            let _ = stop.wait_for(|stop| *stop).await;
        });
        self.running.push(spawn_local(run(stop)));
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        for task in self.running {
            task.await.context("ending what runs beside the exports")?;
        }
        Ok(())
    }
}

async fn serve_client(server: Rc<Server>, stream: Pin<Box<dyn listen::Stream>>, peer: String, verbose: bool) {
    match server.serve(stream, &peer, tokio::time::sleep(PATIENCE)).await {
        Ok(summary) if verbose => report(&peer, &summary),
        Ok(_) => {}
        Err(error) => eprintln!("warning: {peer}: {}", without_number(&error.to_string())),
    }
}

#[cfg(feature = "tls")]
fn with_tls(server: Server, args: &Args) -> anyhow::Result<Server> {
    let Some(folder) = &args.tls_certificates else { return Ok(server) };
    let config = blkproof_nbd::tls::server_config(folder, args.tls_verify_client)
        .with_context(|| format!("reading the certificates in '{}'", folder.display()))?;
    Ok(server.with_tls(config, args.tls_require))
}

#[cfg(not(feature = "tls"))]
fn with_tls(server: Server, _args: &Args) -> anyhow::Result<Server> {
    Ok(server)
}

#[cfg(feature = "tls")]
fn uses_tls(args: &Args) -> bool {
    args.tls_certificates.is_some()
}

#[cfg(not(feature = "tls"))]
fn uses_tls(_args: &Args) -> bool {
    false
}

/// One line about a client that has left, for `-v`.
fn report(peer: &str, summary: &Summary) {
    let Summary { requests, errors, read_bytes, written_bytes, mode, ended, .. } = summary;
    eprintln!(
        "{peer} left ({ended:?}, {mode:?}): {requests} requests, {errors} errors, {} read, {} written",
        human_size(*read_bytes),
        human_size(*written_bytes)
    );
}

fn parse_on_mismatch(word: &str) -> Result<OnMismatch, String> {
    let found = OnMismatch::NAMES.iter().find(|(name, _)| *name == word);
    found.map(|(_, policy)| *policy).ok_or_else(|| format!("'{word}' is not report, fail, exit or repair-view"))
}

fn parse_disk(text: &str) -> Result<DiskOptions, String> {
    parse_options(text).map_err(|error| error.to_string())
}

/// A seed: decimal, or 0x and hexadecimal, as it is printed.
fn parse_seed(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| format!("'{text}' is no seed; write a number, or one in hexadecimal: 7, 0x51f0"))
}
