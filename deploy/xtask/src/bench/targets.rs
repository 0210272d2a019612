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

/// A cluster with disks below `base` that hold three times what volumes of `bytes` with these numbers of copies do: there is to
/// be room for what is overwritten.
pub fn cluster(bytes: u64, replicas: &[u8], base: &Path) -> Result<Cluster> {
    let copies: u64 = replicas.iter().copied().map(u64::from).sum();
    let disk_mib = (copies * bytes / AGENTS as u64 * 3) >> 20;
    let options = Options {
        agents: AGENTS,
        disk_size: format!("{}MiB", disk_mib.max(2048)),
        base: Some(base.into()),
        ..Options::default()
    };
    Cluster::start(options)
}

/// A volume of `cluster`, served by a process of its own on a unix socket. Its processes are that one and all agents.
pub fn torus(cluster: &Cluster, replicas: u8, bytes: u64) -> Result<Target> {
    let volume = format!("bench-r{replicas}");
    let (size, copies) = (bytes.to_string(), replicas.to_string());
    cluster.torusctl(["volume", "create", &volume, &size, "--replicas", &copies])?;
    let owner = cluster.serve(&volume, &volume, false)?;
    let shared = cluster.agents.iter().map(Process::pid).collect();
    Ok(Target { name: super::torus(replicas), way: Way::Nbd(owner.uri()), own: vec![owner.process], shared })
}
