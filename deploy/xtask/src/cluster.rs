//! `cargo xtask cluster`: a real Kubernetes with Torus on it, to play with.

use anyhow::{Context, Result};
use clap::Subcommand;
use std::path::Path;
use torus_e2e::kube::{Cluster, Options, Progress, run};

/// What to do.
#[derive(Subcommand)]
pub enum Action {
    /// Start a Kubernetes on this machine, install the chart, and make a pool. Needs root
    Up {
        /// Nodes, each in namespaces of its own
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
        nodes: u8,
        /// The cargo profile of the programs in the image
        #[arg(long, default_value = "dev")]
        profile: String,
        /// Leave it at the Kubernetes: install nothing
        #[arg(long)]
        bare: bool,
    },
    /// End every Kubernetes that `up` has started, and remove all it has
    Down,
}

/// Does it.
pub fn run(action: &Action) -> Result<bool> {
    match action {
        Action::Up { nodes, profile, bare } => up(Options { nodes: *nodes, profile: profile.clone() }, *bare),
        Action::Down => down(),
    }
}

fn up(options: Options, bare: bool) -> Result<bool> {
    println!("it takes about 3 GB of disk for each node, in {}", torus_e2e::cache::directory()?.display());
    let cluster = Cluster::start(&options, Progress::default())?;
    if !bare {
        cluster.install_chart(&[])?;
        cluster.make_pool(&cluster.usual_pool())?;
    }
    let programs = cluster.kubectl().program().parent().context("kubectl is nowhere")?.to_path_buf();
    let helm = cluster.helm().parent().context("helm is nowhere")?.to_path_buf();
    let kubeconfig = cluster.kubectl().kubeconfig().to_path_buf();
    cluster.leave()?;
    tell(&kubeconfig, &programs, &helm, bare);
    Ok(true)
}

fn tell(kubeconfig: &Path, programs: &Path, helm: &Path, bare: bool) {
    println!("\nThe kubeconfig is {}. To try:\n", kubeconfig.display());
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  export PATH={}:{}:$PATH", programs.display(), helm.display());
    println!("  kubectl get nodes -o wide");
    if !bare {
        println!("  kubectl -n torus-system get toruscluster,pod -o wide");
        println!("  kubectl apply -f deploy/manifests/volume.yaml && kubectl get torusvolume,pvc");
        println!("  helm -n torus-system test torus");
    }
    println!(
        "\nPods that test have the image {}. `cargo xtask cluster down` ends it all.",
        torus_e2e::kube::node::PAUSE_IMAGE
    );
}

fn down() -> Result<bool> {
    let left = run::left()?;
    if left.is_empty() {
        println!("there is none");
    }
    for run in left {
        run::remove(&run)?;
        println!("{} is gone", run.display());
    }
    Ok(true)
}
