//! Programs of the system, run to their end.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// How often something is tried that needs the network.
const TRIES: u32 = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(10);

/// Runs a program that must succeed.
pub fn must<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<()> {
    said(program, args).map(drop)
}

/// What a program prints that must succeed.
pub fn said<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    output(&mut command)
}

/// What a command prints that must succeed.
///
/// # Errors
/// When it cannot be run or fails; what it said is in the text.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        said
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tries what needs the network up to three times: what a mirror or a proxy refuses, it often gives a moment later.
///
/// # Errors
/// That of the last try.
pub fn thrice<T>(what: &str, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    tried(what, PAUSE, attempt)
}

fn tried<T>(what: &str, pause: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for number in 1..TRIES {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => println!("{what}: try {number} of {TRIES} failed, the next is in {pause:?}: {error:#}"),
        }
        thread::sleep(pause);
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn what_fails_is_tried_three_times_and_no_more() {
        let mut tries = 0;
        let mut fails_before = |good| {
            tried("a download", Duration::ZERO, || {
                tries += 1;
                ensure!(tries >= good, "no network");
                Ok(tries)
            })
        };
        assert_eq!(fails_before(1).unwrap(), 1);
        assert_eq!(fails_before(4).unwrap(), 4);
        let mut tries = 0;
        let failed: Result<()> = tried("a download", Duration::ZERO, || {
            tries += 1;
            bail!("no network, {tries}")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no network, 3");
    }
}
