//! `torus-agent`: keeps extents on this machine's disks and serves them to the owners of volumes, attaches volumes on this
//! machine for Kubernetes, or both.

use clap::CommandFactory as _;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use torus_agent::node::Attachments;
use torus_agent::owner::Control;
use torus_agent::process::args::{Args, RoleArg};
use torus_agent::process::exports::Exports;
use torus_agent::process::file::{Unreadable, parse};
use torus_agent::process::node::{self, NodePart};
use torus_agent::process::{Agent, RunError, StartError, exit_code, logging, told};

/// Settings that make no sense.
const EXIT_USAGE: u8 = 2;
/// Torus declines.
const EXIT_REFUSED: u8 = 3;

fn main() -> ExitCode {
    let args = match parse(std::env::args_os().collect::<Vec<_>>()) {
        Ok(args) => args,
        Err(Unreadable::Usage(usage)) => usage.exit(),
        Err(error) => return complain(EXIT_USAGE, &told(&error)),
    };
    if let Some(shell) = args.completion {
        clap_complete::generate(shell, &mut Args::command(), "torus-agent", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = logging::start(&args.logging()) {
        return complain(EXIT_USAGE, &error.to_string());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("torus-control").build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(&args)),
        Err(error) => complain(1, &format!("cannot start the control side: {error}")),
    }
}

/// What runs, by the agent's roles.
struct Parts {
    storage: Option<Agent>,
    node: Option<NodePart>,
    exports: Option<Exports>,
    /// Ends HTTP where there is no storage to serve it.
    stop: CancellationToken,
}

impl Parts {
    async fn start(args: &Args) -> Result<Parts, StartError> {
        let (config, meta) = args.config()?;
        let store = torus_agent::metadata::connect(&meta).await?;
        let node = args.node(&config);
        let stop = CancellationToken::new();
        let storage = match args.has(RoleArg::Storage) {
            true => Some(Agent::start(config, Arc::clone(&store)).await?),
            false => None,
        };
        let door = storage.as_ref().map(Agent::door);
        let owned = storage.as_ref().map(Agent::owned).unwrap_or_default();
        let http = if storage.is_none() { node::listen(&args.config()?.0).await? } else { None };
        let node = match node {
            Some(config) => {
                let (name, attached) = (config.name.clone(), Attachments::at(config.attached_dir.clone()));
                let part = NodePart::start(config, Arc::clone(&store), door.clone(), owned.clone()).await?;
                if let Some(listener) = http {
                    tokio::spawn(node::http(listener, name, attached, owned.clone(), stop.clone()));
                }
                Some(part)
            }
            None => None,
        };
        let control = Control { owned, ..Control::new(Handle::current(), store) };
        let exports = door.map(|door| Exports::start(args.export.clone(), &control, &door));
        Ok(Parts { storage, node, exports, stop })
    }

    /// Waits until a part has ended without having been asked to: why.
    async fn failed(&mut self) -> RunError {
        let storage = async {
            match &mut self.storage {
                Some(agent) => agent.failed().await,
                None => std::future::pending().await,
            }
        };
        let node = async {
            match &mut self.node {
                Some(node) => node.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = storage => error,
            () = node => RunError::Node,
        }
    }

    /// The volumes on this host first: their owners may still have something to write to this host's disks.
    async fn stop(self) {
        if let Some(node) = self.node {
            node.stop().await;
        }
        if let Some(exports) = self.exports {
            exports.stop().await;
        }
        self.stop.cancel();
        if let Some(agent) = self.storage {
            agent.stop().await;
        }
    }
}

async fn run(args: &Args) -> ExitCode {
    let (mut parts, mut signals) = match start(args).await {
        Ok(started) => started,
        Err(error) => return complain(exit_code(&error), &told(&error)),
    };
    tokio::select! {
        error = parts.failed() => match error {
            RunError::Displaced(_) => return complain(EXIT_REFUSED, &error.to_string()),
            RunError::DataPlane | RunError::Node => return complain(1, &error.to_string()),
        },
        name = signals.next() => tracing::info!("{name}: stopping; the same again stops at once"),
    }
    tokio::select! {
        () = parts.stop() => ExitCode::SUCCESS,
        name = signals.next() => {
            tracing::warn!("{name} again: stopped at once");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: &Args) -> Result<(Parts, Signals), StartError> {
    let mut signals = Signals::listen().map_err(|e| StartError::System("listen for signals", e))?;
    tokio::select! {
        parts = Parts::start(args) => Ok((parts?, signals)),
        name = signals.next() => {
            tracing::info!("{name} while starting: stopped");
            std::process::exit(0);
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn complain(code: u8, text: &str) -> ExitCode {
    eprintln!("torus-agent: {text}");
    ExitCode::from(code)
}
