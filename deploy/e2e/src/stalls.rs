//! What the machine itself costs: a disk that is busy with a compiler's files, or answers nobody for a second, is not the fault of what
//! is tested on it.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How often something is measured whose time the machine may have taken.
const TRIES: u32 = 3;

/// Writes one block to a disk again and again.
struct Watch {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Watch {
    /// Of the disk that `directory` is on.
    fn begin(directory: &Path) -> io::Result<Watch> {
        let path = directory.join("watch");
        let file = File::create(&path)?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(LOOK);
                file.write_all_at(&[2; 4096], 0)?;
                file.sync_data()?;
                longest = longest.max(began.elapsed().saturating_sub(LOOK));
            }
            Ok(longest)
        });
        Ok(Watch { file: path, stop, thread })
    }

    /// The longest that a write took, with its sync and with what its thread waited for a core.
    fn end(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(longest) = self.thread.join() else { bail!("the thread that looks at the disk panicked") };
        std::fs::remove_file(&self.file)?;
        longest.context("cannot write to the disk that is looked at")
    }
}

/// Has `measure` tell the longest that something stood still, and again where that is more than `most`, but would not be without
/// the longest that the disk of `directory` has stood still meanwhile for everybody. Its argument counts the tries, from 0.
pub fn measured(
    directory: &Path,
    most: Duration,
    mut measure: impl FnMut(u32) -> Result<Duration>,
) -> Result<Duration> {
    let mut last = Duration::ZERO;
    for n in 0..TRIES {
        let watch = Watch::begin(directory).context("cannot look at the disk")?;
        last = measure(n)?;
        let machine = watch.end()?;
        if last <= most || last.saturating_sub(machine) > most {
            break;
        }
        println!("{last:.0?} of standing still, while the disk kept everybody waiting for {machine:.0?}");
    }
    Ok(last)
}

/// Has what was written to the filesystems of these paths on stable storage. A compiler leaves gigabytes in the page cache, which go to
/// the disk half a minute later; whatever is measured would wait for them then.
///
/// # Errors
/// When the disk fails.
pub fn settle<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    for path in paths {
        let failed = || format!("cannot sync the filesystem of {}", path.display());
        let file = File::open(path).with_context(failed)?;
        nix::unistd::syncfs(&file).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_measured_again_only_where_the_disk_was_slow() {
        let directory = tempfile::tempdir().unwrap();
        let measure = |most: u64, took: [u64; 3]| {
            let mut tries = 0;
            let longest = measured(directory.path(), Duration::from_secs(most), |n| {
                tries += 1;
                thread::sleep(LOOK * 3);
                Ok(Duration::from_secs(took[n as usize]))
            });
            (longest.unwrap().as_secs(), tries)
        };
        assert_eq!(measure(10, [7, 0, 0]), (7, 1));
        // No disk keeps a write of this test for an hour and more.
        assert_eq!(measure(10, [10_000, 7, 0]), (10_000, 1));
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "nothing is left");
    }
}
