//! What one Kubernetes has on this machine: a directory, processes, and things of the kernel that carry its name.
//!
//! Everything is written down before it is made, so that what a killed run left behind is found and removed by the next one.
//! Names are made of the run's own, which no other has; nothing is ever removed because it merely looks like ours.
//!
//! In the run's directory: `owner`, the process that the run belongs to, or `nobody` when it was left running on purpose; and
//! `processes`, a line for each that was started. A process is written down with the time of its start, so that another
//! that has got the same id is left alone.

use super::kernel;
use crate::cache;
use crate::guard::identity;
use crate::process::{Process, until};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long what was killed may take to be gone. A process in the middle of disk I/O takes its time.
const GONE: Duration = Duration::from_secs(60);

/// A run. Dropped, everything of it is removed.
#[derive(Debug)]
pub struct Run {
    name: String,
    directory: PathBuf,
    is_kept: bool,
}

impl Run {
    /// A new run, after removing what dead ones have left.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin() -> Result<Self> {
        sweep()?;
        let all = all()?;
        // In one piece: a run without an owner would look like a dead one.
        let unfinished =
            tempfile::Builder::new().prefix(".new-").tempdir_in(&all).context("cannot make a directory")?;
        fs::write(unfinished.path().join("owner"), identity(std::process::id()).context("cannot tell our own id")?)
            .context("cannot write down the owner of a run")?;
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let number = now.subsec_nanos() ^ std::process::id().rotate_left(16);
            let name = format!("tk{:06x}", number & 0xff_ffff);
            let directory = all.join(&name);
            if !directory.exists() {
                let unfinished = unfinished.keep();
                fs::rename(&unfinished, &directory).context("cannot name a run")?;
                return Ok(Self { name, directory, is_kept: false });
            }
        }
    }

    /// Its name: eight characters.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory in it.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Starts a process and writes it down. Its log is `NAME.log` in `logs`.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        // A group of its own: a Ctrl-C that is meant for us does not reach it before we can end things in order.
        command.process_group(0);
        let process = Process::start(name, command, &self.subdirectory("logs")?)?;
        let mut file = OpenOptions::new().create(true).append(true).open(self.directory.join("processes"));
        let line = identity(process.pid()).map(|identity| format!("{identity} {name}\n"));
        let file = file.as_mut().map_err(|error| anyhow::anyhow!("cannot write down a process: {error}"))?;
        file.write_all(line.unwrap_or_default().as_bytes()).context("cannot write down a process")?;
        Ok(process)
    }

    /// Leaves everything running when this is dropped. [`remove`] ends it.
    pub fn leave(&mut self) -> Result<()> {
        fs::write(self.directory.join("owner"), "nobody").context("cannot write down that a run has no owner")?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = remove(&self.directory)
        {
            eprintln!("not all of {} is removed: {error:#}", self.name);
        }
    }
}

/// The runs that were left running on purpose.
pub fn left() -> Result<Vec<PathBuf>> {
    Ok(directories()?.into_iter().filter(|run| owner(run).is_some_and(|owner| owner == "nobody")).collect())
}

/// Removes what runs have left whose owner is dead.
fn sweep() -> Result<()> {
    for run in directories()? {
        let Some(owner) = owner(&run) else { continue };
        if owner != "nobody" && !is_alive(&owner) {
            println!("removing what an interrupted run has left: {}", run.display());
            remove(&run)?;
        }
    }
    Ok(())
}

/// Ends everything that a run has started, and removes all it has.
///
/// # Errors
/// When something does not go away.
pub fn remove(run: &Path) -> Result<()> {
    let name = run.file_name().context("a run without a name")?.to_string_lossy().into_owned();
    let processes = fs::read_to_string(run.join("processes")).unwrap_or_default();
    // The last ones first: nodes before what they speak to.
    let processes: Vec<_> = processes.lines().rev().map(str::to_owned).collect();
    let mut loops = kernel::loops(&name)?;
    let nodes = fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path().join("lib"));
    let recorded: BTreeSet<_> = nodes.flat_map(|lib| kernel::recorded_loops(&lib)).collect();
    for process in processes.iter().filter(|process| is_alive(process)) {
        if let Some(pid) = pid_of(process) {
            // It may have ended by itself in between.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    kernel::end_groups(&name)?;
    until("all processes are gone", GONE, || Ok(!processes.iter().any(|process| is_alive(process))))?;
    // A record may be older than what its device is used for now.
    loops.extend(kernel::orphaned_loops()?.intersection(&recorded).cloned());
    kernel::detach(&loops)?;
    kernel::remove_all(&name)?;
    fs::remove_dir_all(run).with_context(|| format!("cannot remove {}", run.display()))
}

fn all() -> Result<PathBuf> {
    let path = cache::directory()?.join("clusters");
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn directories() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(all()?).context("cannot list runs")?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.join("owner").is_file()).collect())
}

fn owner(run: &Path) -> Option<String> {
    fs::read_to_string(run.join("owner")).ok()
}

fn pid_of(line: &str) -> Option<Pid> {
    line.split(' ').next()?.parse().ok().map(Pid::from_raw)
}

/// Whether the very process of such a line still runs.
fn is_alive(line: &str) -> bool {
    let mut words = line.split(' ');
    let (Some(pid), Some(start)) = (words.next().and_then(|pid| pid.parse().ok()), words.next()) else { return false };
    identity(pid).is_some_and(|now| now == format!("{pid} {start}"))
}

/// Holds other runs off while `what` is done, such as looking for an address range that nobody has.
pub fn alone(what: &str) -> Result<nix::fcntl::Flock<File>> {
    let file = File::create(all()?.join(format!(".{what}.lock"))).context("cannot make a lock")?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot take a lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    }

    #[test]
    fn all_of_a_run_goes_with_it() {
        let run = Run::begin().unwrap();
        let process = run.start("sleeper", sleeper()).unwrap();
        let (pid, directory) = (process.pid(), run.directory().to_path_buf());
        // Not killed by its own handle, as after a crash.
        process.leave().unwrap();
        drop(run);
        assert!(!directory.exists());
        assert!(identity(pid).is_none());
    }

    #[test]
    fn what_a_dead_run_has_left_is_removed_by_the_next() {
        let mut run = Run::begin().unwrap();
        let process = run.start("sleeper", sleeper()).unwrap();
        let (pid, directory) = (process.pid(), run.directory().to_path_buf());
        process.leave().unwrap();
        run.leave().unwrap();
        drop(run);
        assert!(directory.exists() && identity(pid).is_some());
        assert!(left().unwrap().contains(&directory));
        // No process has started that early.
        fs::write(directory.join("owner"), format!("{} 0", std::process::id())).unwrap();
        drop(Run::begin().unwrap());
        assert!(!directory.exists());
        assert!(identity(pid).is_none());
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let own = identity(std::process::id()).unwrap();
        assert!(is_alive(&own) && is_alive(&format!("{own} name")));
        assert!(!is_alive(&format!("{} 1 name", std::process::id())));
        assert!(!is_alive("") && !is_alive("x y"));
    }
}
