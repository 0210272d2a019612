//! What is tried on a real Kubernetes, by name: `cargo xtask e2e`.
//!
//! A scenario is a file here with one function, and a line in [`ALL`]. It gets a [`World`]: a cluster with what it [`Needs`], which is
//! made if an earlier one left without it, and a namespace of its own, which is deleted afterwards with everything in it. What it
//! changes beyond that it puts back, or leaves without it; when it fails, its state is collected, and the nodes are waited for before the
//! next one.
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
mod lives;
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
    /// What there is when it begins.
    pub needs: Needs,
    /// Tries it.
    pub run: fn(&mut World) -> Result<()>,
}

/// What a scenario begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Nodes.
    Nodes,
    /// The chart, installed.
    Chart,
    /// The chart, and the usual pool, ready.
    Pool,
}

/// All of them, in the order in which they run. Those that end with less than they began with come last.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "install",
        about: "helm installs the chart, and a TorusCluster becomes ready",
        needs: Needs::Nodes,
        run: install::install,
    },
    Scenario {
        name: "pod-moves",
        about: "what a pod has written is there when it moves to another node",
        needs: Needs::Pool,
        run: moves::pod_moves,
    },
    Scenario {
        name: "volume-with-claim",
        about: "a TorusVolume with a claim is mounted by a pod",
        needs: Needs::Pool,
        run: moves::volume_with_claim,
    },
    Scenario {
        name: "raw-block",
        about: "a pod gets a device, and another node the same",
        needs: Needs::Pool,
        run: kinds::raw_block,
    },
    Scenario {
        name: "filesystems",
        about: "ext4 and XFS, each as its class says",
        needs: Needs::Pool,
        run: kinds::filesystems,
    },
    Scenario {
        name: "expansion",
        about: "volumes grow while pods have them",
        needs: Needs::Pool,
        run: kinds::expansion,
    },
    Scenario {
        name: "twenty-at-once",
        about: "twenty claims and pods at the same time",
        needs: Needs::Pool,
        run: kinds::twenty_at_once,
    },
    Scenario {
        name: "flex-volume",
        about: "a pod mounts by the FlexVolume driver",
        needs: Needs::Pool,
        run: legacy::flex_volume,
    },
    Scenario {
        name: "node-without-agent",
        about: "a pod on a node that has no storage agent gets its volume",
        needs: Needs::Pool,
        run: volumes::node_without_agent,
    },
    Scenario {
        name: "fs-group",
        about: "a pod that is not root writes to its group's volume",
        needs: Needs::Pool,
        run: volumes::fs_group,
    },
    Scenario {
        name: "refused",
        about: "an unknown parameter, a claim larger than the pool and a made-up volume are refused in events",
        needs: Needs::Pool,
        run: volumes::refused,
    },
    Scenario {
        name: "agent-deleted",
        about: "the agent on a pod's node is replaced while the pod writes",
        needs: Needs::Pool,
        run: faults::agent_deleted,
    },
    Scenario {
        name: "rolling-update",
        about: "all agents are replaced while a pod writes",
        needs: Needs::Pool,
        run: faults::rolling_update,
    },
    Scenario {
        name: "node-death",
        about: "a node loses its power; its pod runs elsewhere within a minute, with all it was told is written",
        needs: Needs::Pool,
        run: faults::node_death,
    },
    Scenario {
        name: "operator-death",
        about: "the same with the node whose operator leads",
        needs: Needs::Pool,
        run: faults::operator_death,
    },
    Scenario {
        name: "deleted-while-mounted",
        about: "a TorusVolume that is deleted under a pod is held, explained, and gone afterwards",
        needs: Needs::Pool,
        run: deletion::deleted_while_mounted,
    },
    Scenario {
        name: "helm-test",
        about: "helm test provisions, writes, moves and verifies",
        needs: Needs::Pool,
        run: install::helm_test,
    },
    Scenario {
        name: "helm-upgrade",
        about: "the chart changes under a pod with a volume",
        needs: Needs::Pool,
        run: deletion::helm_upgrade,
    },
    Scenario {
        name: "operator-killed",
        about: "a pool is made, grows and goes under an operator that is killed all the time, as under one that is not",
        needs: Needs::Chart,
        run: lives::operator_killed,
    },
    Scenario {
        name: "etcd-external",
        about: "a pool on an etcd outside of the cluster, over TLS with a secret",
        needs: Needs::Chart,
        run: lives::etcd_external,
    },
    Scenario {
        name: "helm-uninstall",
        about: "uninstalling is refused while data exists, and then done",
        needs: Needs::Pool,
        run: deletion::helm_uninstall,
    },
    Scenario {
        name: "namespace-deleted",
        about: "namespaces go whose volumes have lost their pool, and the operator's own",
        needs: Needs::Pool,
        run: deletion::namespace_deleted,
    },
];
