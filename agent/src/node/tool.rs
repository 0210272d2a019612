//! Programs of the system that are run as children: losetup, mkfs, mount and the like.
//!
//! Children, and not library calls, because what they do may wait for I/O on a device that this process serves: a
//! process that is killed while it waits for itself never ends, a child's parent does.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// How long most programs may take: on a healthy device they take milliseconds.
pub const SOON: Duration = Duration::from_secs(60);
/// How long a program may take that goes through a whole filesystem.
pub const LONG: Duration = Duration::from_secs(3600);
/// Characters of what a program said that go into a message.
const SAID_MAX: usize = 600;

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not there.
    #[error("cannot run {program}: install it (on Debian: the package {})", package(program))]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended in failure.
    #[error("`{command}` failed ({code}): {said}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        code: String,
        /// What it printed.
        said: String,
    },
    /// It was killed after a while.
    #[error("`{command}` was stopped after {limit:?}: the device may not answer")]
    Late {
        /// What was run.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
}

fn package(program: &str) -> &'static str {
    match program {
        "mkfs.ext4" | "e2fsck" | "dumpe2fs" | "resize2fs" => "e2fsprogs",
        "mkfs.xfs" | "xfs_growfs" => "xfsprogs",
        "dd" | "stat" | "sync" => "coreutils",
        "mount" | "umount" => "mount",
        _ => "util-linux",
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    command: String,
    /// Its exit code; `None`: a signal killed it.
    pub code: Option<i32>,
    /// What it printed on stdout.
    pub stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    /// Its error, whatever its code.
    pub fn failure(&self) -> ToolError {
        let said = [&self.stderr[..], &self.stdout[..]].concat();
        let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
        let code = self.code.map_or("killed".to_owned(), |code| format!("exit code {code}"));
        ToolError::Failed { command: self.command.clone(), code, said: said.chars().take(SAID_MAX).collect() }
    }
}

/// Runs a program to its end; any exit code will do. Dropped, it is killed.
///
/// # Errors
/// When it is not there, or takes longer than `limit`.
pub async fn run<A: AsRef<OsStr>>(limit: Duration, program: &str, args: &[A]) -> Result<Ended, ToolError> {
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    let shown = args.iter().map(|arg| arg.to_string_lossy());
    let command = std::iter::once(program.into()).chain(shown).collect::<Vec<_>>().join(" ");
    let mut child = Command::new(program);
    child.args(args).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(limit, child.output()).await {
        Ok(output) => output.map_err(|source| ToolError::Run { program: program.into(), source })?,
        Err(_) => return Err(ToolError::Late { command, limit }),
    };
    Ok(Ended { command, code: output.status.code(), stdout: output.stdout, stderr: output.stderr })
}

/// Runs a program that must succeed; what it printed on stdout.
///
/// # Errors
/// As [`run`], and when it fails.
pub async fn must<A: AsRef<OsStr>>(limit: Duration, program: &str, args: &[A]) -> Result<String, ToolError> {
    let ended = run(limit, program, args).await?;
    match ended.code {
        Some(0) => Ok(String::from_utf8_lossy(&ended.stdout).into_owned()),
        _ => Err(ended.failure()),
    }
}
