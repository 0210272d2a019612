//! What is still there of a run that was removed: to be asked at the end, so that nothing piles up on the machine unseen.

use super::kernel;
use super::shell::said;
use crate::process::until;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel may take to let go of what has ended.
const GONE: Duration = Duration::from_secs(15);

/// What there was before a run, of what carries no name.
#[derive(Debug)]
pub struct Residue {
    loops: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Residue {
    /// Looks before a run begins.
    ///
    /// # Errors
    /// When losetup fails.
    pub fn before() -> Result<Self> {
        Ok(Self { loops: kernel::orphaned_loops()?, namespaces: namespaces() })
    }

    /// Fails when something of the run in `directory` is left, naming it: processes, mounts, links, routes, control groups, network
    /// namespaces, loop devices whose file is gone, containers of images that were being built, the directory.
    ///
    /// # Errors
    /// So, and when the kernel does not say.
    pub fn check(&self, directory: &Path) -> Result<()> {
        let mut left = Vec::new();
        let gone = until("nothing is left", GONE, || {
            std::thread::sleep(Duration::from_millis(200));
            left = self.left(directory)?;
            Ok(left.is_empty())
        });
        if !left.is_empty() {
            bail!("left behind: {}", left.join("; "));
        }
        gone
    }

    fn left(&self, directory: &Path) -> Result<Vec<String>> {
        let name = directory.file_name().context("a run without a name")?.to_string_lossy().into_owned();
        let path = directory.to_str().context("a path that is no UTF-8")?;
        let mut left = processes(&name, path);
        left.extend(lines("/proc/self/mountinfo", path).map(|line| format!("the mount {line}")));
        let links = names(Path::new("/sys/class/net"));
        let is_its = |link: &String| *link == name || link.starts_with(&format!("{name}-"));
        left.extend(links.into_iter().filter(is_its).map(|link| format!("the link {link}")));
        left.extend(
            said("ip", ["-4", "route"])?
                .lines()
                .filter(|route| route.contains(&name))
                .map(|r| format!("the route {r}")),
        );
        let groups = kernel::groups_of(&name);
        left.extend(groups.into_iter().map(|group| format!("the control group {}", group.display())));
        left.extend(namespaces().difference(&self.namespaces).map(|name| format!("the network namespace {name}")));
        left.extend(
            kernel::orphaned_loops()?.difference(&self.loops).map(|name| format!("{name} on a file that is gone")),
        );
        if directory.exists() {
            left.push(format!("the directory {path}"));
        }
        Ok(left)
    }
}

/// Processes in the run's groups, or that see something of its directory mounted.
fn processes(name: &str, directory: &str) -> Vec<String> {
    let group = format!("/{name}/");
    let mut left = Vec::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let proc = PathBuf::from("/proc").join(&pid);
        let holds = |file: &str, text: &str| fs::read_to_string(proc.join(file)).is_ok_and(|all| all.contains(text));
        if holds("cgroup", &group) || holds("mountinfo", directory) {
            let command = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            left.push(format!("process {pid} ({})", command.trim()));
        }
    }
    left
}

/// Network namespaces that have a name. Others end with their processes.
fn namespaces() -> BTreeSet<String> {
    // Those of container networks; people give theirs other names.
    names(Path::new("/run/netns")).into_iter().filter(|name| name.starts_with("cni-")).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The lines of a file that hold a text.
fn lines(file: &str, text: &str) -> impl Iterator<Item = String> {
    let all = fs::read_to_string(file).unwrap_or_default();
    all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::run::Run;
    use std::process::Command;
    use std::sync::{Mutex, PoisonError};

    /// Loop devices are the machine's: the device of one test must not come and go while the other looks.
    static LOOPS: Mutex<()> = Mutex::new(());

    #[test]
    fn what_is_left_is_named_and_nothing_is_found_where_nothing_is() {
        let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
        let before = Residue::before().unwrap();
        let run = Run::begin().unwrap();
        let directory = run.directory().to_path_buf();
        let left = before.left(&directory).unwrap();
        assert_eq!(left, [format!("the directory {}", directory.display())]);
        drop(run);
        assert_eq!(before.left(&directory).unwrap(), [] as [String; 0]);
    }

    #[test]
    fn a_loop_device_whose_file_is_there_is_no_orphan() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output().unwrap();
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let orphans = kernel::orphaned_loops();
        kernel::detach(&BTreeSet::from([device.clone()])).unwrap();
        assert!(device.starts_with("/dev/loop") && !orphans.unwrap().contains(&device), "{device}");
    }
}
