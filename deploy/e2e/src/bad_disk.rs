//! A disk that can be made to fail: nbdkit's memory, through its error filter, as a file by way of FUSE.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long its programs may take to start.
const READY: Duration = Duration::from_secs(20);

/// The disk. Dropped: unmounted, its contents gone. Whoever uses it has to be gone before.
pub struct BadDisk {
    file: PathBuf,
    trigger: PathBuf,
    fuse: Process,
    // After what uses it.
    _nbdkit: Process,
}

impl BadDisk {
    /// A disk of `bytes`, made of memory as it is written to, in `directory`. It works.
    pub fn new(directory: &Path, bytes: u64) -> Result<BadDisk> {
        let [socket, trigger, mount] = ["bad.sock", "bad-now", "bad-disk"].map(|name| directory.join(name));
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.arg("--foreground").arg("--unix").arg(&socket).args(["--filter=error", "memory"]).arg(bytes.to_string());
        nbdkit.args(["error=EIO", "error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%"]);
        nbdkit.arg(format!("error-file={}", trigger.display()));
        let mut nbdkit = Process::start("nbdkit", nbdkit, directory)?;
        nbdkit.until("it listens", READY, || Ok(socket.exists()))?;
        fs::create_dir(&mount).with_context(|| format!("cannot make {}", mount.display()))?;
        let file = mount.join("disk");
        let mut fuse = Command::new("nbdfuse");
        fuse.arg(&file).arg("--unix").arg(&socket);
        let mut fuse = Process::start("nbdfuse", fuse, directory)?;
        fuse.until("the disk is there", READY, || Ok(file.exists()))?;
        Ok(BadDisk { file, trigger, fuse, _nbdkit: nbdkit })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// From now on every write fails.
    pub fn fail(&self) -> Result<()> {
        fs::write(&self.trigger, b"").with_context(|| format!("cannot make {}", self.trigger.display()))
    }

    fn unmount(&mut self) -> Result<()> {
        let mount = self.file.parent().context("a file in a mount point")?;
        let unmounted = Command::new("fusermount3").arg("-u").arg("-z").arg(mount).status();
        ensure!(unmounted.context("cannot run fusermount3")?.success(), "cannot unmount {}", mount.display());
        self.fuse.wait(READY).map(drop)
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
        }
    }
}
