//! Serves sparse memory over NBD: what the front end costs by itself, to be held against `nbdkit memory`, and something
//! for its clients to be tried on.
//!
//! ```text
//! cargo run --release -p torus-agent --example nbd_memory -- --socket /tmp/m.sock --size 1073741824
//! fio --name=t --ioengine=nbd --uri=nbd+unix:///memory?socket=/tmp/m.sock --rw=randwrite --bs=4k --iodepth=32 ...
//! ```

use anyhow::Context;
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use torus_agent::device::Unaligned;
use torus_agent::device::testing::MemoryDevice;
use torus_agent::nbd::{Export, Server};

/// Serve sparse memory over NBD.
#[derive(Parser)]
struct Options {
    /// A unix socket to listen on.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// An address to listen on.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The device's size in bytes, a multiple of 4096.
    #[arg(long, default_value_t = 1 << 30, value_parser = size)]
    size: u64,
    /// Names to serve, a device each.
    #[arg(long, default_value = "memory")]
    export: Vec<String>,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
}

fn size(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(size) if size.is_multiple_of(4096) => Ok(size),
        _ => Err("expected a number of bytes that is a multiple of 4096".into()),
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info").init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let server = Server::new();
    for name in &options.export {
        let device = MemoryDevice::new(options.size);
        let device = if options.read_only { device.read_only() } else { device };
        let device = Rc::new(Unaligned::new(device));
        server.add(Export { name: name.clone(), description: "sparse memory".into(), device })?;
    }
    if let Some(path) = &options.socket {
        server.listen_unix(path, 0o600)?;
    }
    if let Some(address) = options.listen {
        // Whoever started this with port 0 reads here which one it is.
        println!("listening on {}", server.listen_tcp(address)?);
    }
    println!("ready");
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT")?,
    }
    server.stop(Duration::from_secs(10)).await;
    Ok(())
}
