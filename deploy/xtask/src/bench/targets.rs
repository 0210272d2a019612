//! What is measured: things that take I/O, each with the processes that serve it.

use super::fio::{self, Extent, FILL, Way};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::process::Process;
use torus_e2e::usage::Usage;

/// One of them.
pub struct Target {
    /// Its name in tables and files.
    pub name: String,
    /// How to reach it.
    pub way: Way,
    /// The processes that serve it and nothing else; killed with it.
    own: Vec<Process>,
    /// Processes that serve it beside others.
    shared: Vec<u32>,
}

impl Target {
    /// What its processes have used until now; `None` when there is no process.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let pids: Vec<_> = self.own.iter().map(Process::pid).chain(self.shared.iter().copied()).collect();
        if pids.is_empty() { Ok(None) } else { Usage::of_all(pids).map(Some) }
    }

    /// Writes all of it once.
    pub fn fill(&self, bytes: u64, scratch: &Path) -> Result<()> {
        fio::run(FILL, &self.way, bytes, Extent::Once, scratch)
            .with_context(|| format!("cannot fill {}", self.name))?;
        Ok(())
    }
}

/// nbdkit's memory plugin on a unix socket: what NBD itself costs, and nothing behind it.
pub fn nbdkit(bytes: u64, scratch: &Path) -> Result<Target> {
    let socket = scratch.join("nbdkit.sock");
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").arg("--unix").arg(&socket).arg("memory").arg(bytes.to_string());
    let mut process = Process::start("nbdkit", command, scratch)?;
    process.until("it listens", Duration::from_secs(10), || Ok(socket.exists()))?;
    let way = Way::Nbd(format!("nbd+unix:///?socket={}", socket.display()));
    Ok(Target { name: "nbdkit memory".into(), way, own: vec![process], shared: Vec::new() })
}

/// A preallocated file on the filesystem that the agents' disks are on, as old as they are.
pub fn raw(bytes: u64, scratch: &Path) -> Result<Target> {
    let path = scratch.join("raw");
    let file = File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let length = i64::try_from(bytes).context("a file that large")?;
    nix::fcntl::posix_fallocate(&file, 0, length).with_context(|| format!("no room for {}", path.display()))?;
    Ok(Target { name: "raw file".into(), way: Way::File(path), own: Vec::new(), shared: Vec::new() })
}

/// Agents of the cluster that is measured.
const AGENTS: usize = 3;

/// A cluster with disks below `base` that hold three times what these volumes of `bytes` do: there is to
/// be room for what is overwritten.
pub fn cluster(bytes: u64, volumes: &[Volume], base: &Path) -> Result<Cluster> {
    let copies: u64 = volumes.iter().map(|volume| u64::from(volume.replicas)).sum();
    let disk_mib = (copies * bytes / AGENTS as u64 * 3) >> 20;
    let options = Options {
        agents: AGENTS,
        disk_size: format!("{}MiB", disk_mib.max(2048)),
        exports: volumes.iter().filter(|volume| volume.owner == Owner::Agent).map(Volume::name).collect(),
        base: Some(base.into()),
        ..Options::default()
    };
    Cluster::start(options)
}

/// Where a volume's owner lives.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Owner {
    /// In the first agent, as on a Kubernetes node.
    Agent,
    /// In a process of its own, which no agent is in.
    Apart,
}

/// A volume that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Volume {
    /// How many copies of it there are.
    pub replicas: u8,
    /// Who serves it.
    pub owner: Owner,
}

impl Volume {
    /// What it is called in tables.
    pub fn title(&self) -> String {
        match self.owner {
            Owner::Agent => super::torus(self.replicas),
            Owner::Apart => format!("{} apart", super::torus(self.replicas)),
        }
    }

    fn name(&self) -> String {
        match self.owner {
            Owner::Agent => format!("bench-r{}", self.replicas),
            Owner::Apart => format!("bench-r{}-apart", self.replicas),
        }
    }
}

/// A volume of `cluster` on a unix socket. The processes that serve it are all agents, and that of its owner.
pub fn torus(cluster: &mut Cluster, volume: Volume, bytes: u64) -> Result<Target> {
    let (name, copies) = (volume.name(), volume.replicas.to_string());
    cluster.torusctl(["volume", "create", &name, &bytes.to_string(), "--replicas", &copies])?;
    let (uri, own) = match volume.owner {
        Owner::Agent => (cluster.exported(&name)?, vec![]),
        Owner::Apart => {
            let owner = cluster.serve(&name, &name, false)?;
            (owner.uri(), vec![owner.process])
        }
    };
    let shared = cluster.agents.iter().map(Process::pid).collect();
    Ok(Target { name: volume.title(), way: Way::Nbd(uri), own, shared })
}
