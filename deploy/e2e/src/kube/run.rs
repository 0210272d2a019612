//! What one Kubernetes has on this machine: a directory, processes, and things of the kernel that carry its name.
//!
//! Everything is written down before it is made, so that what a killed run left behind is found and removed by the next one.
//! Names are made of the run's own, which no other has; nothing is ever removed because it merely looks like ours.
//!
//! In the run's directory: `owner`, the process that the run belongs to, or `nobody` when it was left running on purpose; and
//! `processes`, a line for each that was started. A process is written down with the time of its start, so that another
//! that has got the same id is left alone. A directory with an owner is a run, so `owner` goes last: what was not removed to the end is
//! found again.

use super::kernel;
use crate::cache;
use crate::guard::identity;
use crate::process::{Process, until};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long what was killed may take to be gone. A process in the middle of disk I/O takes its time.
const GONE: Duration = Duration::from_secs(60);

/// The file that says whose a run is.
const OWNER: &str = "owner";

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
        write_owner(unfinished.path(), &identity(std::process::id()).context("cannot tell our own id")?)?;
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
        write_owner(&self.directory, "nobody")?;
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

/// Removes what runs have left whose owner is dead. One at a time: two that remove the same would be in each other's way.
fn sweep() -> Result<()> {
    let _alone = alone("sweep")?;
    for run in directories()? {
        let Some(owner) = owner(&run) else { continue };
        if owner != "nobody" && !is_alive(&owner) {
            println!("removing what an interrupted run has left: {}", run.display());
            remove(&run)?;
        }
    }
    Ok(())
}

/// Ends everything that a run has started, and removes all it has. What is gone already is no error.
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
    remove_directory(run)
}

/// Removes a run's directory, its owner last.
fn remove_directory(run: &Path) -> Result<()> {
    // Once for the bulk, however long that takes. Then for what was written meanwhile: children of the processes that were waited for end
    // after them.
    let mut removed = try_remove_directory(run);
    let done = until("its directory is gone", GONE, || {
        if removed.is_err() {
            removed = try_remove_directory(run);
        }
        Ok(removed.is_ok())
    });
    // What could not be removed tells more than that it took too long.
    done.or(removed)
}

fn try_remove_directory(run: &Path) -> Result<()> {
    let entries = match fs::read_dir(run) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot list {}", run.display()))?,
    };
    let mut removed = Ok(());
    for entry in entries.flatten().filter(|entry| entry.file_name() != OWNER) {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_gone = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed = gone(&path, is_gone).and(removed);
    }
    removed?;
    let owner = run.join(OWNER);
    gone(&owner, fs::remove_file(&owner))?;
    gone(run, fs::remove_dir(run))
}

/// What was gone already is removed.
fn gone(path: &Path, removed: io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn all() -> Result<PathBuf> {
    let path = cache::directory()?.join("clusters");
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn directories() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(all()?).context("cannot list runs")?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.join(OWNER).is_file()).collect())
}

fn owner(run: &Path) -> Option<String> {
    fs::read_to_string(run.join(OWNER)).ok()
}

/// In one piece: a run whose owner is half written would look like a dead one.
fn write_owner(run: &Path, owner: &str) -> Result<()> {
    let unfinished = run.join(".owner-new");
    fs::write(&unfinished, owner)
        .and_then(|()| fs::rename(&unfinished, run.join(OWNER)))
        .with_context(|| format!("cannot write down the owner of {}", run.display()))
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
    use std::time::Instant;

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
        write_owner(&directory, &format!("{} 0", std::process::id())).unwrap();
        drop(Run::begin().unwrap());
        assert!(!directory.exists());
        assert!(identity(pid).is_none());
    }

    #[test]
    fn many_that_begin_at_once_are_not_in_each_others_way() {
        let mut dead = Run::begin().unwrap();
        let directory = dead.directory().to_path_buf();
        for name in ["a", "b/c"] {
            fs::write(dead.subdirectory(name).unwrap().join("file"), name).unwrap();
        }
        dead.leave().unwrap();
        drop(dead);
        write_owner(&directory, &format!("{} 0", std::process::id())).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| drop(Run::begin().unwrap()));
            }
        });
        assert!(!directory.exists());
    }

    #[test]
    fn a_run_that_is_removed_twice_is_gone() {
        let run = Run::begin().unwrap();
        let directory = run.directory().to_path_buf();
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn what_is_still_written_to_is_removed() {
        let run = Run::begin().unwrap();
        let directory = run.directory().to_path_buf();
        let busy = run.subdirectory("busy").unwrap();
        // As a process does that has been killed and has not ended yet.
        let writer = std::thread::spawn(move || {
            let started = Instant::now();
            for number in 0.. {
                let _ = fs::write(busy.join(number.to_string()), "x");
                if started.elapsed() > Duration::from_millis(500) {
                    return;
                }
            }
        });
        remove(&directory).unwrap();
        assert!(!directory.exists());
        writer.join().unwrap();
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let own = identity(std::process::id()).unwrap();
        assert!(is_alive(&own) && is_alive(&format!("{own} name")));
        assert!(!is_alive(&format!("{} 1 name", std::process::id())));
        assert!(!is_alive("") && !is_alive("x y"));
    }
}
