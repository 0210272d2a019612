//! A Kubernetes with nodes, and what it takes to play with it.

use super::control_plane::ControlPlane;
use super::go;
use super::image;
use super::kubectl::{Kubectl, is_true};
use super::network::Network;
use super::node::{Node, Parts};
use super::progress::Progress;
use super::run::Run;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How long nodes may take to become ready. They take about half a minute; a loaded machine takes longer.
const READY: Duration = Duration::from_secs(180);

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes, at most 100.
    pub nodes: u8,
    /// The cargo profile whose programs go into the image: dev, or `$TORUS_E2E_PROFILE`.
    pub profile: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, profile: std::env::var("TORUS_E2E_PROFILE").unwrap_or_else(|_| "dev".into()) }
    }
}

/// A cluster. Dropped, it is gone with all it has.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    control: ControlPlane,
    /// The kubeconfig of kube-proxies.
    proxy: PathBuf,
    helm: PathBuf,
    progress: Progress,
}

impl Cluster {
    /// Builds what is not built, starts everything, and waits until all nodes are ready and have all images.
    ///
    /// # Errors
    /// Without root, or when a part of it does not come up.
    pub fn start(options: &Options, progress: Progress) -> Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "a cluster with nodes needs root: for mounts and namespaces");
        ensure!((1..=100).contains(&options.nodes), "a cluster has 1 to 100 nodes, not {}", options.nodes);
        let run = Run::begin()?;
        let images = run.subdirectory("images")?;
        let helm = go::HELM.program("helm", &progress)?;
        let programs = go::NODE.build(&progress)?;
        // Programs and images take the longest, and are needed last; but a compiler beside what comes up slows both.
        let archives = image::all(&options.profile, &images, &progress)?;
        let network = Network::make(&run)?;
        let control = ControlPlane::start_at(&network.place(), run, &progress)?;
        let proxy = control.pki().kubeconfig("system:kube-proxy", None, control.url())?;
        let parts = Parts { programs, network, nodes: options.nodes };
        let (control_ref, parts_ref, archives_ref, proxy_ref) = (&control, &parts, &archives, &proxy);
        let start = |number| move || start_node(control_ref, number, parts_ref, archives_ref, proxy_ref);
        let nodes: Result<Vec<_>> = thread::scope(|scope| {
            let numbers = 1..=options.nodes;
            let started: Vec<_> = numbers.map(|number| scope.spawn(start(number))).collect();
            started.into_iter().map(|node| node.join().expect("starting a node does not panic")).collect()
        });
        let cluster = Self { nodes: nodes?, control, proxy, helm, progress };
        for node in &cluster.nodes {
            let is_ready = |node: &serde_json::Value| is_true(node, "Ready");
            cluster.kubectl().until(["node", node.name()], "it is ready", READY, is_ready)?;
        }
        cluster.progress.say(&format!("{} nodes are ready", options.nodes));
        Ok(cluster)
    }

    /// `kubectl`, as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    /// The control plane.
    #[must_use]
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// What it has on this machine.
    #[must_use]
    pub fn run(&self) -> &Run {
        self.control.run()
    }

    /// Where `helm` is.
    #[must_use]
    pub fn helm(&self) -> &Path {
        &self.helm
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("there is no node {name:?}"))
    }

    /// Where progress is told.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A node dies: everything on it ends at once and it is cut off. Its disk stays.
    ///
    /// # Errors
    /// When there is no such node, or it does not go.
    pub fn power_off(&mut self, name: &str) -> Result<()> {
        self.node_mut(name)?.power_off()
    }

    /// A node that was dead comes up again, and is waited for until it is ready.
    ///
    /// # Errors
    /// When there is no such node, or it does not come up.
    pub fn power_on(&mut self, name: &str) -> Result<()> {
        let at = self.nodes.iter().position(|node| node.name() == name);
        let node = &mut self.nodes[at.with_context(|| format!("there is no node {name:?}"))?];
        node.power_on(self.control.run())?;
        start_kubelet(&self.control, node, &self.proxy)?;
        let is_ready = |node: &serde_json::Value| is_true(node, "Ready");
        self.control.kubectl().until(["node", name], "it is ready", READY, is_ready).map(drop)
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name() == name).with_context(|| format!("there is no node {name:?}"))
    }

    /// Leaves it running for good.
    pub fn leave(mut self) -> Result<()> {
        self.nodes.drain(..).try_for_each(Node::leave)?;
        self.control.leave()
    }
}

fn start_node(control: &ControlPlane, number: u8, parts: &Parts, images: &[PathBuf], proxy: &Path) -> Result<Node> {
    let mut node = Node::start(control.run(), number, parts)?;
    start_kubelet(control, &mut node, proxy)?;
    images.iter().try_for_each(|image| node.import(image))?;
    Ok(node)
}

fn start_kubelet(control: &ControlPlane, node: &mut Node, proxy: &Path) -> Result<()> {
    let pki = control.pki();
    let kubelet = pki.kubeconfig(&format!("system:node:{}", node.name()), Some("system:nodes"), control.url())?;
    node.start_kubelet(control.run(), &kubelet, proxy, &pki.file("ca.crt"))
}
