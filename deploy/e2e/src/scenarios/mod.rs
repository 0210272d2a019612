//! What is tried on a real Kubernetes, by name: `cargo xtask e2e`.
//!
//! A scenario is a file here with one function, and a line in [`ALL`]. It gets a [`World`]: a cluster where Torus is installed and its
//! pool is ready, and a namespace of its own, which is deleted afterwards with everything in it. What a scenario changes
//! beyond its namespace it puts back before it returns; when it fails, its state is collected, and the pool is waited for before
//! the next one.
//!
//! All run on one cluster, one after the other, in the order of [`ALL`]: bringing up a cluster takes longer than most of them.

mod diagnostics;
mod files;
mod install;
mod moves;
mod runner;
mod world;

pub use runner::{Options, Outcome, run};
pub use world::World;

use anyhow::Result;

/// Something that is tried.
#[derive(Debug)]
pub struct Scenario {
    /// Its name: words with `-` between.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Tries it.
    pub run: fn(&mut World) -> Result<()>,
}

/// All of them, in the order in which they run. The first makes what the others use.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "install",
        about: "helm installs the chart, and a TorusCluster becomes ready",
        run: install::install,
    },
    Scenario {
        name: "pod-moves",
        about: "what a pod has written is there when it moves to another node",
        run: moves::pod_moves,
    },
    Scenario {
        name: "volume-with-claim",
        about: "a TorusVolume with a claim is mounted by a pod",
        run: moves::volume_with_claim,
    },
    Scenario { name: "helm-test", about: "helm test provisions, writes, moves and verifies", run: install::helm_test },
];
