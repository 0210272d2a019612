//! Text into files.

use anyhow::{Context, Result};
use std::path::Path;

/// Writes `text` to `name` in `directory`.
pub fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
