//! `blkproof serve`: a block graph as NBD exports.

mod listen;

use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use blkproof_block::{BlockDevice as _, Node};
use blkproof_nbd::server::{Export, Exports, Limits, Server, Summary};
use blkproof_verify::OnMismatch;
use tokio::task::JoinSet;

use crate::graph::{ImageArgs, lab, parse_size, registry_with};
use crate::messages::{human_size, print_error, without_number};
use crate::mismatches::Mismatches;
use crate::runtime::{self, stop_signal};
use listen::{Address, Listener};

/// Serve block graphs over NBD
///
/// Prints the URI to use, one line for each export, and serves until SIGINT or SIGTERM; what is in flight then is
/// answered first. A graph may be any node, such as `blkverify:reference.raw:disk.qcow2`. Ends with status 1 if a
/// mirror in the graph found a mismatch.
///
/// Example: `blkproof serve --unix /tmp/nbd.sock blkverify:reference.raw:disk.qcow2`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Listen on a Unix socket
    #[arg(long, value_name = "PATH", group = "address")]
    unix: Option<PathBuf>,

    /// Listen on TCP; ADDR is loopback if only a port is given
    #[arg(long, value_name = "ADDR:PORT", group = "address", default_value = "127.0.0.1:10809")]
    tcp: String,

    /// Name of the export; once for each graph if there are several
    #[arg(short = 'x', long, value_name = "NAME")]
    export: Vec<String>,

    /// Description of the export, shown by clients that list exports; once for all graphs, or once for each
    #[arg(long, value_name = "TEXT")]
    description: Vec<String>,

    /// Refuse writes
    #[arg(short, long)]
    read_only: bool,

    /// Most connections at a time; further ones are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_connections: usize,

    /// Most bytes of requests in flight, over all connections
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = parse_size)]
    max_in_flight: u64,

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

    /// What a mirror does at a mismatch: report, fail, exit or repair-view
    #[arg(long, value_name = "WORD", default_value = "report", value_parser = parse_on_mismatch)]
    on_mismatch: OnMismatch,

    /// Say when clients come and go
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    image: ImageArgs,

    /// What to serve
    #[arg(required = true, value_name = "GRAPH")]
    graphs: Vec<String>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    match runtime::block_on(serve(args)).flatten() {
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

async fn serve(args: Args) -> anyhow::Result<ExitCode> {
    let mismatches = Mismatches::default();
    let nodes = open(&args, &mismatches).await?;
    let exports = name_exports(&args, &nodes)?;
    let limits = Limits {
        connections: args.max_connections,
        in_flight_bytes: usize::try_from(args.max_in_flight).context("--max-in-flight is larger than memory")?,
        ..Limits::default()
    };
    let server = Rc::new(with_tls(Server::new(exports, limits), &args)?);
    let address = match &args.unix {
        Some(path) => Address::Unix(path.clone()),
        None => Address::tcp(&args.tcp),
    };
    let listener = Listener::bind(&address).await?;
    // Before the first line is printed: whoever reads it may already say stop, and is owed a proper end.
    let mut stop = pin!(stop_signal()?);
    for name in export_names(&args) {
        println!("{}", listener.uri(&name, uses_tls(&args)));
    }

    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            client = listener.accept() => match client {
                Ok((stream, peer)) => {
                    connections.spawn_local(serve_client(server.clone(), stream, peer, args.verbose));
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

    drop(listener);
    server.shut_down();
    let farewell = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        biased;
        () = farewell => {}
        () = tokio::time::sleep(FAREWELL) => eprintln!("warning: a client does not take its replies; leaving it behind"),
        () = stop_signal()? => eprintln!("warning: told to stop twice; clients are left behind"),
    }
    connections.shutdown().await;
    for (graph, node) in args.graphs.iter().zip(&nodes) {
        // Requests of clients left behind may still be under way below.
        node.drain().await.with_context(|| format!("waiting for requests to '{graph}'"))?;
        node.close().await.with_context(|| format!("closing '{graph}'"))?;
    }
    Ok(mismatches.exit_code())
}

async fn open(args: &Args, mismatches: &Mismatches) -> anyhow::Result<Vec<Node>> {
    let registry = registry_with(mismatches, args.on_mismatch, &lab());
    let flags = if args.read_only { args.image.reading() } else { args.image.writing() };
    let mut nodes = Vec::with_capacity(args.graphs.len());
    for graph in &args.graphs {
        nodes.push(args.image.open(&registry, graph, flags).await?);
    }
    Ok(nodes)
}

/// The names given; a single graph needs none.
fn export_names(args: &Args) -> Vec<String> {
    if args.export.is_empty() { vec![String::new()] } else { args.export.clone() }
}

fn name_exports(args: &Args, nodes: &[Node]) -> anyhow::Result<Exports> {
    let names = export_names(args);
    if names.len() != nodes.len() {
        bail!("{} graphs and {} export names; give --export once for each graph", nodes.len(), args.export.len());
    }
    if args.description.len() > 1 && args.description.len() != nodes.len() {
        let (graphs, texts) = (nodes.len(), args.description.len());
        bail!("{graphs} graphs and {texts} descriptions; give --description once for all, or once for each");
    }
    let mut exports = Exports::new();
    for (index, (name, node)) in names.iter().zip(nodes).enumerate() {
        let mut export = Export::new(name, node.clone());
        if let Some(words) = args.description.get(index).or(args.description.first()) {
            export = export.description(words);
        }
        if args.read_only {
            export = export.read_only();
        }
        exports.add(export)?;
    }
    if let [only] = names.as_slice() {
        exports.set_default(only)?;
    }
    Ok(exports)
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

async fn serve_client(server: Rc<Server>, stream: Pin<Box<dyn listen::Stream>>, peer: String, verbose: bool) {
    match server.serve(stream, &peer, tokio::time::sleep(PATIENCE)).await {
        Ok(summary) if verbose => report(&peer, &summary),
        Ok(_) => {}
        Err(error) => eprintln!("warning: {peer}: {}", without_number(&error.to_string())),
    }
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
