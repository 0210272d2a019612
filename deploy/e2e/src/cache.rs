//! Where what is expensive to make is kept between runs, outside the tree.

use anyhow::{Context, Result};
use std::path::PathBuf;

/// `~/.cache/torus-e2e`, or where `XDG_CACHE_HOME` says.
pub fn directory() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Ok(base.or_else(home).context("neither HOME nor XDG_CACHE_HOME is set")?.join("torus-e2e"))
}
