//! A child process whose output goes to a file.

use crate::guard;
use crate::usage::Usage;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long it may take until a process that was halted stands still.
const HALT_TIME: Duration = Duration::from_secs(10);
/// How much of a log goes into a message.
const TAIL_LINES: usize = 20;

/// A running program. Dropped, it is killed; and so it is when this process is ([`crate::guard`]).
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` as `name`; what it prints is appended to `NAME.log` in `directory`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let out = open().and_then(|out| Ok((out.try_clone()?, out)));
        let (out, err) = out.with_context(|| format!("cannot open {}, where {name} writes", log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        let process = Self { name: name.into(), child, log };
        guard::watch(process.pid())?;
        Ok(process)
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets it run on for good: nobody waits for it any more, and it outlives this process.
    ///
    /// # Errors
    /// When the guard of processes is gone. It is killed then.
    pub fn leave(self) -> Result<()> {
        guard::leave(self.pid())?;
        std::mem::forget(self);
        Ok(())
    }

    /// Its process id, good until [`Process::kill`] or [`Process::wait`].
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines that it printed.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask after {}", self.name))
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When the process ends, `condition` fails, or `limit` passes; each with the end of the log.
    pub fn until(&mut self, what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if condition().with_context(|| format!("waiting until {}: {what}", self.name))? {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                bail!("{} ended ({status}) before {what}; it said:\n{}", self.name, self.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("{} took longer than {limit:?} until {what}; it said:\n{}", self.name, self.log_tail());
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id that is none")?;
        signal::kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Halts it (SIGSTOP), and returns when all of its threads stand still: a busy machine may take its time over that. It goes
    /// on by SIGCONT.
    pub fn halt(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a process id that is none")?);
        // Only looked at: how it ends is for its `Child`.
        let look = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        until(&format!("{} stands still", self.name), HALT_TIME, || {
            Ok(matches!(waitid(Id::Pid(pid), look)?, WaitStatus::Stopped(..)))
        })
    }

    /// Kills it (-9) and collects it. Killing what has ended is no error.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot collect {}", self.name))
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it does not end within `limit`; it is killed then.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`; it is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.kill()?;
                bail!("{} did not end within {limit:?} and was killed; it said:\n{}", self.name, self.log_tail());
            }
            thread::sleep(POLL);
        }
    }

    /// What it has used until now.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// Waits until `condition` holds, where no process of ours is to be watched meanwhile.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition().with_context(|| format!("waiting until {what}"))? {
        if Instant::now() >= deadline {
            bail!("it took longer than {limit:?} until {what}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_condition_is_waited_for_and_output_is_kept() {
        let scratch = Scratch::new("process-test").unwrap();
        let ready = scratch.path().join("ready");
        let script = format!("echo hello; touch {}; exec sleep 1000", ready.display());
        let mut process = Process::start("p", shell(&script), scratch.path()).unwrap();
        process.until("it is ready", SOON, || Ok(ready.exists())).unwrap();
        assert_eq!(process.log_tail(), "hello");
        assert!(process.ended().unwrap().is_none());
        assert!(!process.kill().unwrap().success());
    }

    #[test]
    fn a_wait_ends_with_the_process_and_tells_why() {
        let scratch = Scratch::new("process-test").unwrap();
        let mut process = Process::start("p", shell("echo no disk >&2; exit 3"), scratch.path()).unwrap();
        let error = format!("{:#}", process.until("it is ready", SOON * 100, || Ok(false)).unwrap_err());
        assert!(error.contains("ended") && error.contains("no disk"), "{error}");
    }

    #[test]
    fn what_does_not_stop_is_killed() {
        let scratch = Scratch::new("process-test").unwrap();
        let ready = scratch.path().join("ready");
        let script = format!("trap '' TERM; touch {}; while :; do sleep 0.1; done", ready.display());
        let mut process = Process::start("p", shell(&script), scratch.path()).unwrap();
        process.until("it is ready", SOON, || Ok(ready.exists())).unwrap();
        assert!(process.stop(Duration::from_millis(200)).is_err());
        assert!(process.ended().unwrap().is_some());
    }

    #[test]
    fn a_halted_process_does_nothing_until_it_goes_on() {
        let scratch = Scratch::new("process-test").unwrap();
        let count = scratch.path().join("count");
        // Nothing that another process does for it: only this one is halted.
        let script = format!("i=0; while :; do i=$((i+1)); echo $i >{}; done", count.display());
        let process = Process::start("p", shell(&script), scratch.path()).unwrap();
        let counted = || Ok::<_, anyhow::Error>(fs::read_to_string(&count).unwrap_or_default());
        until("it counts", SOON, || Ok(!counted()?.is_empty())).unwrap();
        for _ in 0..3 {
            process.halt().unwrap();
            let halted = counted().unwrap();
            thread::sleep(Duration::from_millis(100));
            assert_eq!(counted().unwrap(), halted);
            process.signal(Signal::SIGCONT).unwrap();
            until("it counts again", SOON, || Ok(counted()? != halted)).unwrap();
        }
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let scratch = Scratch::new("process-test").unwrap();
        let process = Process::start("p", shell("exec sleep 1000"), scratch.path()).unwrap();
        let proc = format!("/proc/{}", process.pid());
        assert!(Path::new(&proc).exists());
        drop(process);
        assert!(!Path::new(&proc).exists());
    }
}
