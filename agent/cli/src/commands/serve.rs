//! `torusctl serve`: owns a volume for as long as it runs, and serves it over NBD.

use crate::args::Global;
use crate::cluster;
use crate::failure::Failure;
use crate::output::Printer;
use crate::serving::control_runtime;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use torus_agent::metadata;
use torus_agent::owner::{Control, OwnerConfig};
use torus_agent::process::{Logging, http, logging};
use torus_agent::serving::{Door, Serving};

/// Which volume, and where.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Its name, or its id.
    volume: String,
    #[command(flatten)]
    door: DoorArgs,
    /// Take the volume over from whoever holds it: they are fenced and get nothing more acknowledged.
    #[arg(long)]
    fence: bool,
    /// Serve /metrics, /healthz and /readyz of this owner on this TCP address, such as 127.0.0.1:4322.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// What to log on stderr, such as info.
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "warn")]
    log: String,
}

/// Where clients connect.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct DoorArgs {
    /// Listen on this unix socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address, such as 127.0.0.1:10809. Whoever reaches it can read and write the volume.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// What is served, for programs.
#[derive(Serialize)]
struct Served {
    volume: String,
    uri: String,
    epoch: u64,
    size_bytes: u64,
}

/// Serves until it is told to stop, or loses the volume.
pub fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    let log = Logging { filter: args.log, json: false };
    logging::start(&log).map_err(|error| Failure::usage(error.to_string()))?;
    let control = control_runtime()?;
    let opened = control.block_on(async {
        let store = cluster::open(global).await?;
        let info = metadata::find_volume(store.as_ref(), &args.volume).await?;
        Ok::<_, Failure>((store, info))
    });
    let (store, info) = opened?;
    let door = match (args.door.socket, args.door.listen) {
        (Some(path), _) => Door::Socket(std::path::absolute(&path).unwrap_or(path)),
        (None, Some(address)) => Door::Tcp(address),
        (None, None) => return Err(Failure::usage("nowhere to serve it: give --socket PATH or --listen ADDRESS:PORT")),
    };
    let watched = args.http.map(|address| listen(&control, address)).transpose()?;
    let config = OwnerConfig { force: args.fence, ..OwnerConfig::new() };
    let side = Control::new(control.handle().clone(), store);
    let data = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let data = data.map_err(|error| Failure::because("cannot start", &error))?;
    let ended = LocalSet::new().block_on(&data, async {
        let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
        let (mut terminate, mut interrupt) =
            signals.map_err(|error| Failure::because("cannot listen for signals", &error))?;
        let mut serving = tokio::select! {
            opened = Serving::open(side, &info, config, &door) => opened?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let served = Served {
            volume: info.meta.doc.name.clone(),
            uri: door.uri(&info.meta.doc.name),
            epoch: serving.epoch().0,
            size_bytes: info.meta.doc.size.0 * torus_core::ids::BLOCK_BYTES,
        };
        if let Some(listener) = watched {
            control.spawn(http::serve(listener, Arc::new(serving.status()), CancellationToken::new()));
        }
        printer.done(
            &format!("volume {:?} is served at {} (epoch {})", served.volume, served.uri, served.epoch),
            &served,
        )?;
        let lost = tokio::select! {
            lost = serving.lost() => Some(lost),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        match lost {
            None => Ok(serving.close().await?),
            Some(error) => {
                serving.leave().await;
                Err(error.into())
            }
        }
    });
    // Nothing of it is worth waiting for: what was to be told to the metadata store has been.
    control.shutdown_background();
    ended
}

/// Takes the port before anything else is touched.
fn listen(control: &Runtime, address: SocketAddr) -> Result<TcpListener, Failure> {
    let bound = control.block_on(TcpListener::bind(address));
    bound.map_err(|error| {
        Failure::because(format!("cannot serve HTTP on {address}"), &error).next("Choose another address with --http.")
    })
}
