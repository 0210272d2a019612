//! Many names: files and directories made, written, appended to, renamed, linked and removed, by several threads, each in a
//! directory of its own with a model of it.

use super::{LoadError, Random};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Files of one thread.
const NAMES: u64 = 60;
/// Directories of one thread.
const DIRECTORIES: u64 = 4;
/// The most that is written at once.
const PIECE_BYTES_MAX: u64 = 24 << 10;

/// Threads at work.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Tree, Result<(), LoadError>)>>,
}

/// What one thread has made.
pub struct Tree {
    directory: PathBuf,
    random: Random,
    /// Names, relative to the directory, and what they must hold.
    files: BTreeMap<String, Vec<u8>>,
    /// Those that were synced, with their directories, and not touched since.
    synced: BTreeMap<String, Vec<u8>>,
    operations: u64,
}

/// Starts `threads` below `directory`.
///
/// # Errors
/// When a directory cannot be made.
pub fn start(directory: &Path, threads: u64, seed: u64) -> Result<Running, LoadError> {
    let stop = Arc::new(AtomicBool::new(false));
    let begin = |index| {
        let mut tree = Tree::create(directory.join(format!("t{index}")), seed + index)?;
        let stop = Arc::clone(&stop);
        Ok(thread::spawn(move || {
            let mut result = Ok(());
            while result.is_ok() && !stop.load(Ordering::Relaxed) {
                result = tree.step();
            }
            (tree, result)
        }))
    };
    let threads = (0..threads).map(begin).collect::<Result<Vec<_>, LoadError>>();
    Ok(Running { threads: threads?, stop })
}

impl Running {
    /// Stops them; what they made, and why each ended.
    #[must_use]
    pub fn stop(self) -> Vec<(Tree, Result<(), LoadError>)> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a load panics nowhere")).collect()
    }
}

impl Tree {
    fn create(directory: PathBuf, seed: u64) -> Result<Self, LoadError> {
        for index in 0..DIRECTORIES {
            fs::create_dir_all(directory.join(format!("d{index}")))?;
        }
        File::open(&directory)?.sync_all()?;
        let (files, synced) = Default::default();
        Ok(Self { directory, random: Random(seed), files, synced, operations: 0 })
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    fn step(&mut self) -> Result<(), LoadError> {
        self.operations += 1;
        let name = self.name();
        let path = self.directory.join(&name);
        // From here on, nobody knows what a crash would leave of it.
        self.synced.remove(&name);
        match self.random.below(100) {
            0..30 => {
                let data = self.piece();
                fs::write(&path, &data)?;
                self.files.insert(name, data);
            }
            30..45 => {
                let data = self.piece();
                File::options().append(true).create(true).open(&path)?.write_all(&data)?;
                self.files.entry(name).or_default().extend(data);
            }
            45..57 => {
                let to = self.name();
                self.synced.remove(&to);
                if to != name && self.files.contains_key(&name) {
                    fs::rename(&path, self.directory.join(&to))?;
                    let data = self.files.remove(&name).unwrap_or_default();
                    self.files.insert(to, data);
                }
            }
            57..67 => {
                if self.files.remove(&name).is_some() {
                    fs::remove_file(&path)?;
                }
            }
            67..72 => {
                // Two names of one file would have one fate: the link goes again, as in a safe save.
                if self.files.contains_key(&name) {
                    let link = self.directory.join("link");
                    fs::hard_link(&path, &link)?;
                    fs::remove_file(link)?;
                }
            }
            72..77 => {
                let directory = self.directory.join("passing");
                fs::create_dir(&directory)?;
                fs::remove_dir(directory)?;
            }
            77..90 => {
                if let Some(data) = self.files.get(&name) {
                    expect(&path, &fs::read(&path)?, data)?;
                }
            }
            _ => {
                if let Some(data) = self.files.get(&name) {
                    File::open(&path)?.sync_all()?;
                    File::open(path.parent().unwrap_or(&self.directory))?.sync_all()?;
                    self.synced.insert(name, data.clone());
                }
            }
        }
        Ok(())
    }

    /// Compares all names and all files.
    ///
    /// # Errors
    /// When something is missing, too much, or other than written.
    pub fn check(&self) -> Result<(), LoadError> {
        let mut found = 0;
        for index in 0..DIRECTORIES {
            found += fs::read_dir(self.directory.join(format!("d{index}")))?.count();
        }
        if found != self.files.len() {
            let text = format!("{}: {found} files, and not {}", self.directory.display(), self.files.len());
            return Err(LoadError::Wrong(text));
        }
        compare(&self.directory, &self.files)
    }

    /// Compares the files that were synced and not touched since. How many there are.
    ///
    /// # Errors
    /// When one is missing, or other than written.
    pub fn check_synced(&self) -> Result<usize, LoadError> {
        compare(&self.directory, &self.synced)?;
        Ok(self.synced.len())
    }

    fn name(&mut self) -> String {
        let file = self.random.below(NAMES);
        // A file may be in any directory, but a name says which.
        format!("d{}/f{file}", file % DIRECTORIES)
    }

    fn piece(&mut self) -> Vec<u8> {
        let len = self.random.below(PIECE_BYTES_MAX);
        self.random.bytes(len as usize)
    }
}

fn compare(directory: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<(), LoadError> {
    files.iter().try_for_each(|(name, data)| {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(found) => expect(&path, &found, data),
            Err(error) => Err(LoadError::Wrong(format!("{}: {error}", path.display()))),
        }
    })
}

fn expect(path: &Path, found: &[u8], data: &[u8]) -> Result<(), LoadError> {
    if found == data {
        return Ok(());
    }
    let at = found.iter().zip(data).position(|(a, b)| a != b).unwrap_or(found.len().min(data.len()));
    let text = format!("{} has {} bytes, not {}; they differ from {at} on", path.display(), found.len(), data.len());
    Err(LoadError::Wrong(text))
}
