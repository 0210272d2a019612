//! `cargo xtask e2e`: scenarios on a real Kubernetes.

use crate::workspace;
use anyhow::Result;
use torus_e2e::kube;
use torus_e2e::scenarios::{self, ALL, Outcome};

/// Which scenarios, and what becomes of the cluster.
#[derive(clap::Args)]
pub struct Options {
    /// Run only this one; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Show them and run none
    #[arg(long)]
    list: bool,
    /// Leave the cluster running after a failure: `cargo xtask cluster down` ends it
    #[arg(long)]
    keep: bool,
}

/// Runs them; `false` when one failed.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        for scenario in ALL {
            println!("{:<24} {}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    Ok(tally(options.only.clone(), options.keep)?.failed == 0)
}

/// Runs them and counts.
pub fn tally(only: Vec<String>, keep: bool) -> Result<Outcome> {
    let failures = workspace::root()?.join("target/e2e-failures");
    // Three with agents, and one without.
    let cluster = kube::Options { nodes: 4, ..kube::Options::default() };
    scenarios::run(&scenarios::Options { only, keep, cluster, failures })
}
