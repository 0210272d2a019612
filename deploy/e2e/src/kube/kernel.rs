//! Things of the kernel that belong to a run: control groups and a bridge with its name, loop devices.

use super::shell::{must, said};
use crate::process::until;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const GROUPS: &str = "/sys/fs/cgroup";
/// How long killed processes may take to leave their groups.
const GONE: Duration = Duration::from_secs(60);
/// How long a loop device may take to let go of its file.
const CLEARED: Duration = Duration::from_secs(10);
/// Between two looks at loop devices.
const LOOK: Duration = Duration::from_millis(200);

/// Makes a control group in every hierarchy, for one with several levels each of them.
pub fn make_group(path: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let mut group = hierarchy.clone();
        for part in path.split('/') {
            let above = group.clone();
            group.push(part);
            fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
            // A new group of this hierarchy has no processors and no memory, and takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(above.join(file)) {
                    fs::write(group.join(file), value.trim())
                        .with_context(|| format!("cannot write {file} of {}", group.display()))?;
                }
            }
        }
    }
    Ok(())
}

/// Removes all groups below one whose processes have ended, as a machine has none when it starts: a kubelet would look for the containers
/// of each for seconds.
pub fn clear_group(path: &str) -> Result<()> {
    remove_groups(path)?;
    make_group(path)
}

/// A process that was killed is in its group until it is gone, which takes a while.
fn remove_groups(path: &str) -> Result<()> {
    until(&format!("the groups below {path} are gone"), GONE, || {
        for group in groups_of(path) {
            remove_group(&group);
        }
        Ok(groups_of(path).is_empty())
    })
}

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

/// The loop devices on files of those FUSE filesystems of Torus that processes of a group see mounted. To be asked while the
/// processes live: the kernel tells nothing of a file that nobody serves any more.
pub fn loops(group: &str) -> Result<BTreeSet<String>> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies() {
        processes(&hierarchy.join(group), &mut pids);
    }
    let tables = pids.iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok());
    let devices: BTreeSet<_> =
        tables.flat_map(|table| table.lines().filter_map(fuse_device).collect::<Vec<_>>()).collect();
    if devices.is_empty() {
        return Ok(BTreeSet::new());
    }
    let listed = said("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-MAJ:MIN"])?;
    let pairs = listed.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    Ok(pairs.filter(|(_, device)| devices.contains(device.trim())).map(|(name, _)| name.to_owned()).collect())
}

/// The device of a line of `mountinfo`, if it is of a FUSE filesystem of Torus.
fn fuse_device(line: &str) -> Option<String> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let is_ours = ["fuse torus ", "fuse.torus "].iter().any(|ours| filesystem.starts_with(ours));
    is_ours.then(|| mount.split(' ').nth(2).map(str::to_owned))?
}

/// The loop devices that records in a node's `/var/lib/torus/attached` name. An agent that was killed while another one took over may have
/// left a device on a file that no process sees mounted any more.
pub fn recorded_loops(lib: &Path) -> BTreeSet<String> {
    let records = fs::read_dir(lib.join("torus/attached")).into_iter().flatten().flatten();
    let texts = records.filter_map(|entry| fs::read_to_string(entry.path().join("record.json")).ok());
    let parsed = texts.filter_map(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let devices = parsed.filter_map(|record| record["device"].as_str().map(str::to_owned));
    devices.filter(|device| device.starts_with("/dev/loop")).collect()
}

/// Loop devices on files of filesystems that no process sees mounted.
pub fn orphaned_loops() -> Result<BTreeSet<String>> {
    let once = seemingly_orphaned_loops()?;
    if once.is_empty() {
        return Ok(once);
    }
    // One that is being detached looks the same for a moment: the kernel does not tell of its file any more.
    thread::sleep(LOOK);
    Ok(seemingly_orphaned_loops()?.intersection(&once).cloned().collect())
}

fn seemingly_orphaned_loops() -> Result<BTreeSet<String>> {
    let listed = said("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-MAJ:MIN"])?;
    if listed.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        let table = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        seen.extend(table.lines().filter_map(|line| line.split(' ').nth(2).map(str::to_owned)));
    }
    let of = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?.to_owned();
        // Where the kernel does not tell of a file, nobody serves it.
        words.next().is_none_or(|device| !seen.contains(device)).then_some(name)
    };
    Ok(listed.lines().filter_map(of).collect())
}

/// The control groups of this path, in all hierarchies.
pub fn groups_of(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(GROUPS).into_iter().flatten().flatten();
    hierarchies.map(|hierarchy| hierarchy.path().join(name)).filter(|group| group.exists()).collect()
}

/// Takes loop devices from their files, which nobody serves any more. One that has let go of its file by itself needs nothing.
pub fn detach(loops: &BTreeSet<String>) -> Result<()> {
    loops.iter().try_for_each(|name| {
        let mut detached = Ok(());
        let done = until(&format!("{name} has no file"), CLEARED, || {
            detached = must("losetup", ["--detach", name]);
            let is_done = detached.is_ok() || !has_file(name);
            if !is_done {
                // While it lets go of its file, this is refused.
                thread::sleep(LOOK);
            }
            Ok(is_done)
        });
        // What losetup says tells more than that it took too long.
        done.or(detached)
    })
}

/// Whether a loop device is on a file.
fn has_file(device: &str) -> bool {
    let name = device.trim_start_matches("/dev/");
    Path::new("/sys/block").join(name).join("loop/backing_file").exists()
}

/// Removes the groups and the bridge of a run whose processes have ended.
pub fn remove_all(name: &str) -> Result<()> {
    // Those of version 2 as well, where container runtimes make groups of the same name.
    remove_groups(name)?;
    // A node's link goes with its namespace, which the kernel may keep for a while.
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let link = entry.file_name().to_string_lossy().into_owned();
        if link.starts_with(&format!("{name}-")) {
            // It may have gone by itself in between.
            let _ = must("ip", ["link", "delete", &link]);
        }
    }
    let bridge = Path::new("/sys/class/net").join(name);
    if bridge.exists()
        && let Err(error) = must("ip", ["link", "delete", name])
        // Another may have been quicker.
        && bridge.exists()
    {
        return Err(error);
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
    // One that is not empty stays: whoever waits for it to be gone tries again.
    let _ = fs::remove_dir(group);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_already_is_removed() {
        detach(&BTreeSet::from(["/dev/loop-that-is-gone".into()])).unwrap();
        remove_all("tk-that-is-gone").unwrap();
    }

    #[test]
    fn a_filesystem_of_torus_is_told_from_others() {
        let ours = "630 29 0:52 / /var/lib/torus/x rw,nosuid shared:5 - fuse.torus torus rw,user_id=0";
        assert_eq!(fuse_device(ours).as_deref(), Some("0:52"));
        assert_eq!(fuse_device(&ours.replace("fuse.torus", "fuse")).as_deref(), Some("0:52"));
        assert_eq!(fuse_device("630 29 0:53 / /mnt rw - fuse.sshfs torus rw"), None);
        assert_eq!(fuse_device("29 1 254:0 / / rw - ext4 /dev/vda rw"), None);
    }
}
