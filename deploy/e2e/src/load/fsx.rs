//! One file: written, read, truncated, punched, mapped and synced at random, against a model of its bytes.
//!
//! A mapping is used by a child process: a disk that dies kills who has mapped a file with SIGBUS, and that is to be the
//! child. Both see one file, so that what is written by the one way is read by the other.

use super::{LoadError, Random};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The largest that the file gets.
const FILE_BYTES_MAX: u64 = 2 << 20;
/// The most that one operation touches.
const PIECE_BYTES_MAX: u64 = 64 << 10;

/// Reads and writes through a mapping: `r OFFSET LENGTH` gives hexadecimal digits, `w OFFSET DIGITS` a dot.
const MAPPER: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    op, offset, rest = line.split()
    offset = int(offset)
    with mmap.mmap(fd, 0) as m:
        if op == 'r':
            print(m[offset:offset + int(rest)].hex(), flush=True)
        else:
            data = bytes.fromhex(rest)
            m[offset:offset + len(data)] = data
            print('.', flush=True)
";

/// A file, and what it must hold.
pub struct Fsx {
    path: PathBuf,
    /// `None` once it is closed.
    open: Option<Open>,
    model: Vec<u8>,
    /// What it held when it was synced last.
    synced: Vec<u8>,
    /// Bytes that may have changed since.
    touched: Vec<bool>,
    random: Random,
    operations: u64,
}

struct Open {
    file: File,
    mapper: Mapper,
}

impl Fsx {
    /// Makes the file `path`. The same `seed` does the same to it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path, seed: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let mapper = Mapper::start(path)?;
        Ok(Self {
            path: path.to_owned(),
            open: Some(Open { file, mapper }),
            model: Vec::new(),
            synced: Vec::new(),
            touched: vec![false; FILE_BYTES_MAX as usize],
            random: Random(seed),
            operations: 0,
        })
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Nobody has the file open any more, so that its filesystem can be unmounted. There are no steps after that.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Does one thing to the file.
    ///
    /// # Errors
    /// When the filesystem fails, or something is read that was not written.
    pub fn step(&mut self) -> Result<(), LoadError> {
        let mut open = self.open.take().ok_or_else(|| io::Error::other("the file was closed"))?;
        let done = self.step_with(&mut open);
        self.open = Some(open);
        done
    }

    fn step_with(&mut self, open: &mut Open) -> Result<(), LoadError> {
        self.operations += 1;
        let size = self.model.len() as u64;
        match self.random.below(100) {
            0..30 => {
                let offset = self.random.below(FILE_BYTES_MAX - PIECE_BYTES_MAX);
                let data = self.piece();
                self.touch(offset.min(size), offset + data.len() as u64);
                self.model.resize(self.model.len().max(offset as usize + data.len()), 0);
                self.model[offset as usize..][..data.len()].copy_from_slice(&data);
                open.file.write_all_at(&data, offset)?;
            }
            30..55 if size > 0 => {
                let (offset, len) = self.range(size);
                let mut read = vec![0; len as usize];
                open.file.read_exact_at(&mut read, offset)?;
                self.compare("read", offset, &read)?;
            }
            55..67 if size > 0 => {
                let (offset, len) = self.range(size);
                let read = open.mapper.read(offset, len)?;
                self.compare("mapped", offset, &read)?;
            }
            67..79 if size > 0 => {
                let (offset, len) = self.range(size);
                let data = self.random.bytes(len as usize);
                self.touch(offset, offset + len);
                self.model[offset as usize..][..data.len()].copy_from_slice(&data);
                open.mapper.write(offset, &data)?;
            }
            79..86 => {
                let to = self.random.below(FILE_BYTES_MAX);
                self.touch(to.min(size), to.max(size));
                self.model.resize(to as usize, 0);
                open.file.set_len(to)?;
            }
            86..93 if size > 0 => {
                let (offset, len) = self.range(size);
                self.touch(offset, offset + len);
                self.model[offset as usize..][..len as usize].fill(0);
                let how = match self.random.below(2) {
                    0 => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                    _ => FallocateFlags::FALLOC_FL_ZERO_RANGE,
                };
                fallocate(&open.file, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset as i64, len as i64)
                    .map_err(io::Error::from)?;
            }
            _ => {
                open.file.sync_all()?;
                self.synced.clone_from(&self.model);
                self.touched.fill(false);
            }
        }
        Ok(())
    }

    /// Compares the whole file, which was closed by everybody meanwhile.
    ///
    /// # Errors
    /// When it is not what it must be.
    pub fn check(&self) -> Result<(), LoadError> {
        let found = std::fs::read(&self.path)?;
        if found.len() != self.model.len() {
            return Err(self.wrong(format!("it has {} bytes, not {}", found.len(), self.model.len())));
        }
        self.compare("read", 0, &found)
    }

    /// Compares what was synced and not touched since: that has survived whatever has happened.
    ///
    /// # Errors
    /// When some of it has not.
    pub fn check_synced(&self) -> Result<u64, LoadError> {
        let found = std::fs::read(&self.path)?;
        let mut compared = 0;
        let untouched = self.synced.iter().zip(&self.touched).enumerate().filter(|(_, (_, touched))| !**touched);
        for (at, (byte, _)) in untouched {
            if found.get(at) != Some(byte) {
                return Err(self.wrong(format!("byte {at} was synced as {byte:#x} and is {:?} now", found.get(at))));
            }
            compared += 1;
        }
        Ok(compared)
    }

    fn piece(&mut self) -> Vec<u8> {
        let len = 1 + self.random.below(PIECE_BYTES_MAX);
        self.random.bytes(len as usize)
    }

    fn range(&mut self, size: u64) -> (u64, u64) {
        let offset = self.random.below(size);
        (offset, 1 + self.random.below(PIECE_BYTES_MAX.min(size - offset)))
    }

    fn touch(&mut self, from: u64, to: u64) {
        self.touched[from as usize..to as usize].fill(true);
    }

    fn compare(&self, how: &str, offset: u64, found: &[u8]) -> Result<(), LoadError> {
        let expected = &self.model[offset as usize..][..found.len()];
        match expected.iter().zip(found).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(self.wrong(format!(
                "byte {} is {:#x} as {how}, not {:#x}",
                offset as usize + at,
                found[at],
                expected[at]
            ))),
        }
    }

    fn wrong(&self, what: String) -> LoadError {
        LoadError::Wrong(format!("{} after {} operations: {what}", self.path.display(), self.operations))
    }
}

struct Mapper {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    fn start(path: &Path) -> io::Result<Self> {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", MAPPER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = python.spawn()?;
        let commands = child.stdin.take().expect("stdin was asked to be a pipe");
        let answers = child.stdout.take().expect("stdout was asked to be a pipe");
        Ok(Self { child, commands, answers: BufReader::new(answers) })
    }

    fn ask(&mut self, command: &str) -> io::Result<String> {
        writeln!(self.commands, "{command}")?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer)? {
            0 => Err(io::Error::other("who has mapped the file is gone")),
            _ => Ok(answer.trim_end().to_owned()),
        }
    }

    fn read(&mut self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let digits = self.ask(&format!("r {offset} {len}"))?;
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let bytes = pairs.map(|pair| pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()));
        bytes.collect::<Option<_>>().ok_or_else(|| io::Error::other("no hexadecimal digits"))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("w {offset} {digits}")).map(drop)
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        // It has ended, or is ended by this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
