//! `kubectl torus`: what a person asks of Torus on a Kubernetes cluster, through a kubeconfig.
//!
//! A program of its own beside `torusctl`, which calls it (`torusctl preflight`, `torusctl status`, `torusctl kube …`): a client of
//! Kubernetes would double what hosts without one have to carry.
//!
//! Nothing is changed by it. What is said of a thing is made by pure functions of what the apiserver says; what is here fetches it.

mod output;
mod preflight;
mod status;
mod volumes;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;

/// Torus on a Kubernetes cluster
#[derive(Parser)]
#[command(name = "kubectl-torus", bin_name = "kubectl torus", version, max_term_width = 110)]
struct Args {
    /// The kubeconfig; unless given, $KUBECONFIG, ~/.kube/config, or that of the pod
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of it
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The namespace that Torus is in
    #[arg(long, short, global = true, value_name = "NAME", default_value = "torus-system")]
    namespace: String,
    /// How to print answers
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say of each node whether Torus can run there: PASS, or FAIL with what mends it
    Preflight,
    /// Say how the cluster is
    Status(status::Args),
    /// Volumes
    #[command(subcommand)]
    Volume(Volume),
}

#[derive(Subcommand)]
enum Volume {
    /// List volumes, of TorusVolumes and of claims alike, with their claims and nodes
    #[command(visible_alias = "ls")]
    List,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
async fn run(args: Args) -> Result<bool> {
    let client = connect(&args).await?;
    match args.command {
        Command::Preflight => preflight::run(client, &args.namespace, args.output).await,
        Command::Status(status) => status::run(client, &args.namespace, &status, args.output).await,
        Command::Volume(Volume::List) => volumes::run(client, args.output).await.map(|()| true),
    }
}

async fn connect(args: &Args) -> Result<Client> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &options).await.context("cannot use the kubeconfig")?
        }
        None if args.context.is_some() => {
            Config::from_kubeconfig(&options).await.context("cannot use the kubeconfig")?
        }
        None => Config::infer().await.context("no Kubernetes cluster is known here: pass --kubeconfig")?,
    };
    Client::try_from(config).context("cannot use what is known of the Kubernetes cluster")
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
