//! A directory for one run: data, sockets and logs.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Removed when dropped; kept, and named on stderr, when the test that holds it panics or asks for that.
pub struct Scratch {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// A new directory whose name begins with `name`, below the system's temporary directory or `$TORUS_E2E_DIR`.
    pub fn new(name: &str) -> Result<Self> {
        let base = std::env::var_os("TORUS_E2E_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::below(&base, name)
    }

    /// A new directory whose name begins with `name`, in `base`.
    pub fn below(base: &Path, name: &str) -> Result<Self> {
        let made = tempfile::Builder::new().prefix(&format!("torus-{name}-")).tempdir_in(base);
        let directory = made.with_context(|| format!("cannot make a directory for {name} in {}", base.display()))?;
        Ok(Self { path: directory.path().to_path_buf(), directory: Some(directory) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there for a person to look at.
    pub fn keep(&mut self) {
        if let Some(directory) = self.directory.take() {
            eprintln!("kept: {}", directory.keep().display());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_away_with_all_that_is_in_it() {
        let scratch = Scratch::new("scratch-test").unwrap();
        let path = scratch.path().to_path_buf();
        std::fs::write(path.join("file"), b"x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn it_stays_when_kept() {
        let outer = Scratch::new("scratch-test").unwrap();
        let mut scratch = Scratch::below(outer.path(), "inner").unwrap();
        let path = scratch.path().to_path_buf();
        scratch.keep();
        drop(scratch);
        assert!(path.is_dir());
    }
}
