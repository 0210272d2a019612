//! The system's errors in the words of the port.

use rustix::io::Errno;
use std::path::Path;
use torus_core::member::{DiskError, DiskErrorKind};

/// `doing` something to the disk at `path` failed.
pub(crate) fn failed(doing: &str, path: &Path, offset: Option<u64>, error: Errno) -> DiskError {
    let kind = match error {
        Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM => DiskErrorKind::Gone,
        _ => DiskErrorKind::Io,
    };
    let text = std::io::Error::from(error).to_string();
    // The number adds nothing to the system's words for it.
    let words = text.split(" (os error").next().unwrap_or_default();
    let at = offset.map(|offset| format!(" at {offset}")).unwrap_or_default();
    DiskError { kind, text: format!("{doing} {}{at}: {words}", path.display()) }
}

/// A read or a write at `offset` that ended early. A device that takes or gives less than a whole, aligned request is
/// not asked again for the rest: whatever is the matter with it, the operation did not do what it was for.
pub(crate) fn short(doing: &str, path: &Path, offset: u64, done: usize, want: usize) -> DiskError {
    let text = format!("{doing} {} at {offset}: ended after {done} of {want} bytes", path.display());
    DiskError { kind: DiskErrorKind::Io, text }
}
