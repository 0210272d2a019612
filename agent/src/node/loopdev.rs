//! Loop devices: a block device from a file.
//!
//! When the file is taken from one, its node goes to whoever asks for a loop device next. So one is known by its node and by
//! the number that the kernel gives whatever comes to a disk, `diskseq` (since Linux 5.15; before, the node has to do).

use super::tool::{self, SOON, ToolError};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a loop device may take to let its file go when nobody has it open.
const CLEARED: Duration = Duration::from_secs(5);
/// How often that is looked at: udev may have it open for a moment.
const POLL: Duration = Duration::from_millis(20);

/// Puts a loop device on `file`: direct I/O, blocks of 4 KiB where the system takes that.
///
/// # Errors
/// When losetup fails.
pub async fn attach(file: &Path, read_only: bool) -> Result<PathBuf, ToolError> {
    let file_arg = file.to_string_lossy();
    let mut args = vec!["--find", "--show", "--direct-io=on"];
    if read_only {
        args.push("--read-only");
    }
    let blocks = [&args[..], &["--sector-size=4096", &file_arg]].concat();
    let made = match tool::must(SOON, "losetup", &blocks).await {
        // Before Linux 4.14 and util-linux 2.30 there are only blocks of 512 bytes.
        Err(ToolError::Failed { .. }) => tool::must(SOON, "losetup", &[&args[..], &[&file_arg]].concat()).await,
        made => made,
    };
    let device = PathBuf::from(made?.trim());
    if read(&sysfs(&device).join("loop/dio")).as_deref() != Some("1") {
        tracing::warn!("{}: no direct I/O, so that data is cached twice", device.display());
    }
    Ok(device)
}

/// Takes the file of this `sequence` from a loop device. False: somebody still has it open, and it goes when they close it.
///
/// # Errors
/// When losetup fails.
pub async fn detach(device: &Path, sequence: Option<u64>) -> Result<bool, ToolError> {
    if !is_attached(device, sequence) {
        return Ok(true);
    }
    let ended = tool::run(SOON, "losetup", &[Path::new("--detach"), device]).await?;
    let deadline = Instant::now() + CLEARED;
    while is_attached(device, sequence) {
        if ended.code != Some(0) {
            return Err(ended.failure());
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL).await;
    }
    Ok(true)
}

/// Has a loop device find out that its file has grown.
///
/// # Errors
/// When stat or losetup fails.
pub async fn grow(device: &Path, file: &Path) -> Result<(), ToolError> {
    // Older kernels believe what they were told of the file last.
    tool::must(SOON, "stat", &[file]).await?;
    tool::must(SOON, "losetup", &[Path::new("--set-capacity"), device]).await.map(drop)
}

/// The loop devices on `file`.
#[must_use]
pub fn find(file: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let loops = names.filter(|name| name.starts_with("loop"));
    let on = |name: &String| {
        let backing = read(&Path::new("/sys/block").join(name).join("loop/backing_file"));
        // What is unmounted is marked by the kernel.
        backing.is_some_and(|path| Path::new(path.trim_end_matches(" (deleted)")) == file)
    };
    loops.filter(on).map(|name| Path::new("/dev").join(name)).collect()
}

/// The number of what is on a disk now; `None` where the kernel has none.
#[must_use]
pub fn sequence(device: &Path) -> Option<u64> {
    read(&sysfs(device).join("diskseq"))?.parse().ok()
}

/// Whether the file of this `sequence` is under it; any file, where that is `None`.
#[must_use]
pub fn is_attached(device: &Path, sequence: Option<u64>) -> bool {
    sysfs(device).join("loop/backing_file").exists() && sequence.is_none_or(|of| self::sequence(device) == Some(of))
}

fn sysfs(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_is_given_to_another_file_is_not_taken_for_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
            path
        };
        let (first, second) = (file("first"), file("second"));
        let Ok(device) = attach(&first, false).await else {
            return eprintln!("no loop device to be had here");
        };
        let number = sequence(&device);
        assert!(is_attached(&device, number));
        assert!(detach(&device, number).await.unwrap());
        assert!(!is_attached(&device, number));
        // Most likely at the same node.
        let next = attach(&second, false).await.unwrap();
        if number.is_some() {
            assert!(detach(&device, number).await.unwrap(), "it is gone already");
        }
        assert_eq!(find(&second), std::slice::from_ref(&next), "what is there now stays");
        assert!(detach(&next, sequence(&next)).await.unwrap());
    }
}
