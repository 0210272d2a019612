//! `torus-operator`: see the library.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kube::{Client, Config};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use torus_operator::{Settings, guard, run};
use tracing_subscriber::EnvFilter;

/// Makes Kubernetes run what TorusCluster and TorusVolume objects ask for
#[derive(Parser)]
#[command(name = "torus-operator", version, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Serve the TorusCluster of this namespace
    #[arg(long, env = "TORUS_NAMESPACE", value_name = "NAME", default_value = "torus-system")]
    namespace: String,
    /// The image that agents run unless their cluster says otherwise
    #[arg(long, env = "TORUS_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// The name in the election of the one operator that works; in a pod, the pod's
    #[arg(long, env = "TORUS_IDENTITY", value_name = "NAME")]
    identity: Option<String>,
    /// Serve /metrics, /healthz and /readyz here
    #[arg(long, env = "TORUS_HTTP_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    http_address: SocketAddr,
    /// A directory to write certificates for etcd to
    #[arg(long, env = "TORUS_DIRECTORY", value_name = "DIR", default_value = "/tmp")]
    directory: PathBuf,
    /// What to log: a level, or target=level pairs
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether anything would be lost by uninstalling, and end: with an error if so
    Guard,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("{:?} is not a filter for logs", args.log))?;
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config =
        Config::infer().await.context("no Kubernetes cluster is known here: run in a pod, or set KUBECONFIG")?;
    let client = Client::try_from(config).context("cannot use what is known of the Kubernetes cluster")?;
    if matches!(args.command, Some(Command::Guard)) {
        return guard::run(client).await;
    }
    let image = args.image.context("no image: give --image or set TORUS_IMAGE")?;
    let identity = args.identity.unwrap_or_else(|| format!("process-{}", std::process::id()));
    let settings = Settings { namespace: args.namespace, image, identity, directory: args.directory };
    let (send_stop, stop) = watch::channel(false);
    let mut terminated = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("stopping: the pass under way is finished, then the lease is given back");
        let _ = send_stop.send(true);
    });
    run(client, settings, args.http_address, stop).await
}

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::CommandFactory;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }
}
