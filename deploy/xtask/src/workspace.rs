//! Where the workspace is, and how cargo is called in it.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory that holds the workspace's `Cargo.toml`.
///
/// Asked of cargo at run time, not compiled in: with a shared target directory one build serves several checkouts.
pub fn root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("cannot tell where the workspace is: run this as `cargo xtask`, from inside it")?;
    let root = Path::new(&package).ancestors().find(|dir| dir.join("Cargo.lock").is_file());
    root.map(Path::to_path_buf).with_context(|| format!("no Cargo.lock above {}", Path::new(&package).display()))
}

/// A call of the cargo that runs this, in the workspace's root, with nothing to read from the terminal.
pub fn cargo<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?).args(args).stdin(Stdio::null());
    // What `cargo run` set for this process describes this package, not the one about to be built.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Whether `command` succeeds; its output goes where ours goes.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("cannot run {}", shown(command)))?.success())
}

/// Whether `program args` can be run here and succeeds, in silence.
pub fn works(program: &str, args: &[&str]) -> bool {
    let silent =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    silent.is_ok_and(|status| status.success())
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started or fails; the command line is in the message.
pub fn must_succeed(command: &mut Command) -> Result<()> {
    if !succeeds(command)? {
        bail!("{} failed", shown(command));
    }
    Ok(())
}

/// Has everything that was built on the disk.
///
/// # Errors
/// When the disk fails, or cargo does not say where it builds.
pub fn settle() -> Result<()> {
    let mut metadata = cargo(["metadata", "--format-version=1", "--no-deps"])?;
    let said = metadata.stderr(Stdio::inherit()).output().context("cannot run cargo metadata")?;
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).context("cannot read cargo's metadata")?;
    let target = said["target_directory"].as_str().context("cargo does not say where it builds")?;
    torus_e2e::stalls::settle([Path::new(target)])
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
