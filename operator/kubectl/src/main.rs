//! `kubectl torus`: what a person asks of Torus on a Kubernetes cluster, through a kubeconfig.
//!
//! A program of its own beside `torusctl`, which calls it (`torusctl preflight`, `torusctl status`, `torusctl kube …`): a client of
//! Kubernetes would double what hosts without one have to carry.
//!
//! Nothing is changed by it. What is said of a thing is made by pure functions of what the apiserver says; what is here fetches it.

mod access;
mod output;
mod preflight;
mod status;
mod volumes;

use access::Access;
use anyhow::Result;
use clap::{Parser, Subcommand};
use output::Format;
use std::process::ExitCode;

/// Torus on a Kubernetes cluster
#[derive(Parser)]
#[command(name = "kubectl-torus", bin_name = "kubectl torus", version, max_term_width = 110)]
struct Args {
    #[command(flatten)]
    whom: access::Whom,
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
    let access = Access::open(&args.whom).await?;
    match args.command {
        Command::Preflight => preflight::run(&access, args.output).await,
        Command::Status(status) => status::run(&access, &status, args.output).await,
        Command::Volume(Volume::List) => volumes::run(&access, args.output).await.map(|()| true),
    }
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
