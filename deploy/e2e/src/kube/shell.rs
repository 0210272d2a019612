//! Programs of the system, run to their end.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::process::{Command, Stdio};

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
