//! `torus-holder`: keeps descriptors for the agents of this host, so that volumes outlive an agent that is replaced.

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use torus_agent::holder;
use torus_agent::process::{Logging, logging, told};

/// Keeps the devices of attached volumes (FUSE + loop) alive while the agent of this host is replaced
#[derive(Parser, Debug)]
#[command(name = "torus-holder", version, max_term_width = 110)]
struct Args {
    /// Serve agents on this socket
    #[arg(long, env = "TORUS_HOLDER_SOCKET", value_name = "PATH", default_value = holder::SOCKET)]
    holder_socket: PathBuf,
    /// How many seconds a device waits for the next agent before it gives errors
    #[arg(
        long,
        env = "TORUS_HOLDER_DEAD_TIME",
        value_name = "SECONDS",
        default_value_t = holder::DEAD_TIME.as_secs(),
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    dead_time: u64,
    /// What to log: a level, or target=level pairs
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Log one JSON object per line
    #[arg(long, env = "TORUS_LOG_JSON")]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = logging::start(&Logging { filter: args.log, json: args.log_json }) {
        eprintln!("torus-holder: {error}");
        return ExitCode::from(2);
    }
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    let stop = signals.thread_block().and_then(|()| SignalFd::new(&signals));
    let stop = match stop {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("torus-holder: cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(socket = %args.holder_socket.display(), "ready");
    match holder::serve(&args.holder_socket, Duration::from_secs(args.dead_time), stop.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torus-holder: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}
