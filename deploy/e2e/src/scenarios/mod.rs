//! What is tried on a real Kubernetes, by name: `cargo xtask e2e`.
//!
//! A scenario is a file here with one function, and a line in [`ALL`]. It gets a [`World`]: a cluster where Torus is installed and its
//! pool is ready, and a namespace of its own, which is deleted afterwards with everything in it. What a scenario changes
//! beyond its namespace it puts back before it returns; when it fails, its state is collected, and the pool is waited for before
//! the next one.
//!
//! All run on one cluster, one after the other, in the order of [`ALL`]: bringing up a cluster takes longer than most of them.

mod deletion;
mod diagnostics;
mod faults;
mod files;
mod install;
mod kinds;
mod ledger;
mod legacy;
mod moves;
mod runner;
mod volumes;
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
    Scenario { name: "raw-block", about: "a pod gets a device, and another node the same", run: kinds::raw_block },
    Scenario { name: "filesystems", about: "ext4 and XFS, each as its class says", run: kinds::filesystems },
    Scenario { name: "expansion", about: "volumes grow while pods have them", run: kinds::expansion },
    Scenario { name: "twenty-at-once", about: "twenty claims and pods at the same time", run: kinds::twenty_at_once },
    Scenario { name: "flex-volume", about: "a pod mounts by the FlexVolume driver", run: legacy::flex_volume },
    Scenario {
        name: "node-without-agent",
        about: "a pod on a node that has no storage agent gets its volume",
        run: volumes::node_without_agent,
    },
    Scenario { name: "fs-group", about: "a pod that is not root writes to its group's volume", run: volumes::fs_group },
    Scenario {
        name: "agent-deleted",
        about: "the agent on a pod's node is replaced while the pod writes",
        run: faults::agent_deleted,
    },
    Scenario {
        name: "rolling-update",
        about: "all agents are replaced while a pod writes",
        run: faults::rolling_update,
    },
    Scenario {
        name: "node-death",
        about: "a node loses its power; its pod runs elsewhere within a minute, with all it was told is written",
        run: faults::node_death,
    },
    Scenario {
        name: "deleted-while-mounted",
        about: "a TorusVolume that is deleted under a pod is held, explained, and gone afterwards",
        run: deletion::deleted_while_mounted,
    },
    Scenario { name: "helm-test", about: "helm test provisions, writes, moves and verifies", run: install::helm_test },
    Scenario {
        name: "helm-upgrade",
        about: "the chart changes under a pod with a volume",
        run: deletion::helm_upgrade,
    },
    Scenario {
        name: "helm-uninstall",
        about: "uninstalling is refused while data exists, then done, then undone",
        run: deletion::helm_uninstall,
    },
];
