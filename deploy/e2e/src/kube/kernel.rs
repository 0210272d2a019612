//! Things of the kernel that carry a run's name: control groups, a bridge, loop devices.

use crate::process::until;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GROUPS: &str = "/sys/fs/cgroup";
/// How long killed processes may take to leave their groups.
const GONE: Duration = Duration::from_secs(60);

/// Ends (-9) what is in the groups below `name`. Without such groups there is nothing to do.
pub fn end_groups(name: &str) -> Result<()> {
    until(&format!("no process is in the groups of {name}"), GONE, || {
        let mut pids = Vec::new();
        for hierarchy in hierarchies() {
            processes(&hierarchy.join(name), &mut pids);
        }
        for pid in &pids {
            // It may have ended by itself in between.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        Ok(pids.is_empty())
    })
}

/// Removes groups, the bridge, and loop devices of a run whose processes have ended.
pub fn remove_all(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        remove_group(&hierarchy.join(name));
    }
    if Path::new("/sys/class/net").join(name).exists() {
        let removed = Command::new("ip").args(["link", "delete", name]).status().context("cannot run ip")?;
        anyhow::ensure!(removed.success(), "cannot remove the bridge {name}");
    }
    Ok(())
}

/// The hierarchies of version 1. The one of version 2 has no controllers here, and a kubelet without them uses the others.
fn hierarchies() -> Vec<PathBuf> {
    let found = fs::read_dir(GROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    found.filter(|path| path.join("tasks").is_file()).collect()
}

fn processes(group: &Path, into: &mut Vec<Pid>) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for processes that are out of sight.
    into.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).map(Pid::from_raw));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), into);
        }
    }
}

fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // One that is not empty stays, and is in nobody's way.
    let _ = fs::remove_dir(group);
}
