//! `torus-agent`: keeps extents on this machine's disks and serves them to the owners of volumes.

use clap::CommandFactory as _;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use torus_agent::process::args::Args;
use torus_agent::process::file::{Unreadable, parse};
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

async fn run(args: &Args) -> ExitCode {
    let (mut agent, mut signals) = match start(args).await {
        Ok(started) => started,
        Err(error) => return complain(exit_code(&error), &told(&error)),
    };
    tokio::select! {
        error = agent.failed() => match error {
            RunError::Displaced(_) => return complain(EXIT_REFUSED, &error.to_string()),
            RunError::DataPlane => return complain(1, &error.to_string()),
        },
        name = signals.next() => tracing::info!("{name}: stopping; the same again stops at once"),
    }
    tokio::select! {
        _ = agent.stop() => ExitCode::SUCCESS,
        name = signals.next() => {
            tracing::warn!("{name} again: stopped at once");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: &Args) -> Result<(Agent, Signals), StartError> {
    let (config, meta) = args.config()?;
    let mut signals = Signals::listen().map_err(|e| StartError::System("listen for signals", e))?;
    let starting = async {
        let store = torus_agent::metadata::connect(&meta).await?;
        Agent::start(config, store).await
    };
    tokio::select! {
        agent = starting => Ok((agent?, signals)),
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
