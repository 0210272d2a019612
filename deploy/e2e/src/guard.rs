//! Ends what this process has started when it cannot do so itself: killed or aborted, it drops nothing.
//!
//! The guard is a shell that reads a pipe. It is told of every child, and of every one that is to outlive its handle; when the pipe
//! closes, which the kernel sees to however this process ends, it kills (-9) the children that are left. A child is named with the time
//! of its start, so that another that has got its id by then is left alone.
//!
//! `PR_SET_PDEATHSIG` would do it without a process, but is bound to the *thread* that started the child, which may end long before,
//! and has to be set between fork and exec.
//!
//! Not here: what children start themselves. What a killed Kubernetes has left, the next one removes ([`crate::kube`]).

use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Lines are `+ PID START` and `- PID START`.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
children=' '
while read -r sign pid start; do
    case $sign in
        +) children="$children$pid:$start " ;;
        -) case $children in
            *" $pid:$start "*) children="${children%%" $pid:$start "*} ${children#*" $pid:$start "}" ;;
        esac ;;
    esac
done
for child in $children; do
    pid=${child%:*}
    # The name of the program, in parentheses, may hold anything. The time of the start is the 22nd word, the 20th after it.
    read -r stat 2>/dev/null < "/proc/$pid/stat" || continue
    set -- ${stat##*) }
    [ "${20}" = "${child#*:}" ] && kill -9 "$pid"
done
"#;

/// That of this process, once it has started something.
static GUARD: Mutex<Option<Guard>> = Mutex::new(None);

/// Looks after the child `pid` from now on.
///
/// # Errors
/// When the guard cannot be started.
pub fn watch(pid: u32) -> Result<()> {
    tell('+', pid)
}

/// Lets the child `pid` live when this process ends.
///
/// # Errors
/// As [`watch`].
pub fn leave(pid: u32) -> Result<()> {
    tell('-', pid)
}

/// `pid start`, as `/proc` has them: what no other process is ever called. `None`: it has ended.
#[must_use]
pub fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    // A process that has ended is there until it is collected.
    if fields.next()? == "Z" {
        return None;
    }
    Some(format!("{pid} {}", fields.nth(18)?))
}

fn tell(sign: char, pid: u32) -> Result<()> {
    let Some(identity) = identity(pid) else { return Ok(()) };
    // A line is written whole or not at all: it is shorter than what a pipe takes at once.
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(Guard::start()?);
    }
    guard.as_mut().map_or(Ok(()), |guard| guard.tell(sign, &identity))
}

struct Guard(ChildStdin);

impl Guard {
    fn start() -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: a Ctrl-C that ends this process must not end it.
        let mut child = shell.process_group(0).spawn().context("cannot start a guard for processes")?;
        Ok(Self(child.stdin.take().context("a guard that reads nothing")?))
    }

    fn tell(&mut self, sign: char, identity: &str) -> Result<()> {
        self.0.write_all(format!("{sign} {identity}\n").as_bytes()).context("the guard for processes is gone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Process, until};
    use crate::scratch::Scratch;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);
    /// Set in the process that is to be killed: where [`start_two_and_wait`] writes what it started.
    const TOLD: &str = "TORUS_GUARD_TEST";

    fn sleeper(scratch: &Scratch, name: &str) -> Process {
        let mut command = Command::new("sleep");
        command.arg("1000");
        Process::start(name, command, scratch.path()).unwrap()
    }

    /// Runs itself in a process of its own, and kills that.
    #[test]
    fn a_killed_test_leaves_only_what_is_to_stay() {
        if let Some(told) = std::env::var_os(TOLD) {
            return start_two_and_wait(&PathBuf::from(told));
        }
        let scratch = Scratch::new("guard-test").unwrap();
        let told = scratch.path().join("told");
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "guard::tests::a_killed_test_leaves_only_what_is_to_stay"]).env(TOLD, &told);
        let mut test = Process::start("test", test, scratch.path()).unwrap();
        let read = || fs::read_to_string(&told).unwrap_or_default();
        test.until("it has started two", SOON, || Ok(read().ends_with("\n"))).unwrap();
        let pids: Vec<u32> = read().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        let [bound, left] = pids[..] else { panic!("{pids:?}") };
        assert!(identity(bound).is_some() && identity(left).is_some());
        test.kill().unwrap();
        until("what was bound to it has ended", SOON, || Ok(identity(bound).is_none())).unwrap();
        assert!(identity(left).is_some(), "what was to stay has ended");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left as i32), nix::sys::signal::SIGKILL).unwrap();
    }

    fn start_two_and_wait(told: &Path) {
        let scratch = Scratch::below(told.parent().unwrap(), "inner").unwrap();
        let (bound, left) = (sleeper(&scratch, "bound"), sleeper(&scratch, "left"));
        let pids = format!("{} {}\n", bound.pid(), left.pid());
        left.leave().unwrap();
        fs::write(told, pids).unwrap();
        std::thread::sleep(Duration::from_secs(1000));
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let scratch = Scratch::new("guard-test").unwrap();
        let (same, other) = (sleeper(&scratch, "same"), sleeper(&scratch, "other"));
        let mut guard = Guard::start().unwrap();
        guard.tell('+', &identity(same.pid()).unwrap()).unwrap();
        // No process has started that early.
        guard.tell('+', &format!("{} 0", other.pid())).unwrap();
        drop(guard);
        until("the one has ended", SOON, || Ok(identity(same.pid()).is_none())).unwrap();
        assert!(identity(other.pid()).is_some());
    }
}
