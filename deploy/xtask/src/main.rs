//! `cargo xtask`: what a contributor runs, and CI.
//!
//! A program of the workspace instead of scripts, so that it needs nothing but Rust, and is checked like the rest.

mod bench;
mod cluster;
mod e2e;
mod manifests;
mod sim;
mod test;
mod tester;
mod tools;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tests, simulation and benchmarks of Torus.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version, disable_help_subcommand = false)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the test suite: style, unit tests, simulation, whole programs. The last line printed is the count.
    Test(test::Options),
    /// Run the simulator in the profile it is meant for. All arguments go to it: `cargo xtask sim --help` shows them.
    Sim(sim::Options),
    /// Measure Torus beside nbdkit's memory plugin and raw files, and write a report.
    Bench(bench::Options),
    /// Render the chart into deploy/manifests, or check that it is what is there. Needs helm.
    Manifests(manifests::Options),
    /// A real Kubernetes on this machine with Torus installed, to play with.
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Try Torus on a real Kubernetes on this machine, scenario by scenario. Needs root.
    E2e(e2e::Options),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Sim(options) => sim::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Manifests(options) => manifests::run(&options),
        Command::Cluster(action) => cluster::run(&action),
        Command::E2e(options) => e2e::run(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
