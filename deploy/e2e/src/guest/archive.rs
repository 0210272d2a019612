//! The first filesystem of a guest, as the kernel takes it: a `cpio` archive of the "newc" kind.
//!
//! Each entry is a header of 110 ASCII bytes (a magic number and thirteen fields of eight hexadecimal digits), the name with
//! a zero behind it, and the content; name and content are each filled up to four bytes.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

/// An archive that is being written. Directories are made as they are needed.
pub struct Archive<W> {
    out: W,
    entries: u32,
    written: u64,
    made: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty one that goes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0, written: 0, made: BTreeSet::new() }
    }

    /// Makes a directory, and those above it; `path` is absolute.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        for end in path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]) {
            let name = path[..end].trim_start_matches('/');
            if !name.is_empty() && self.made.insert(name.to_owned()) {
                self.entry(name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// Puts a file at `path`, with the permissions `mode`. One that is there already stays.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        let name = path.trim_start_matches('/');
        match self.made.insert(name.to_owned()) {
            true => self.entry(name, FILE | mode, content),
            false => Ok(()),
        }
    }

    /// Puts a copy of this machine's file `from` at `path`.
    pub fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let content = std::fs::read(from).with_context(|| format!("cannot read {} for a guest", from.display()))?;
        self.file(path, mode, &content)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).context("a file for a guest is larger than 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1).context("a name for a guest is too long")?;
        // inode, mode, uid, gid, links, mtime, size, device (2), device number (2), name size, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = "070701".to_owned();
        header.extend(fields.map(|field| format!("{field:08x}")));
        self.write(header.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.fill()?;
        self.write(content)?;
        self.fill()
    }

    fn fill(&mut self) -> Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 3][..missing as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes).context("cannot write the filesystem of a guest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What we write is read by the tool that the format comes from.
    #[test]
    fn cpio_unpacks_it() {
        let scratch = crate::scratch::Scratch::new("archive-test").unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/hello", 0o755, b"hello, guest").unwrap();
        archive.file("/a/b/hello", 0o644, b"the first one stays").unwrap();
        archive.directory("/empty").unwrap();
        let bytes = archive.finish().unwrap();
        let mut cpio = Command::new("cpio");
        cpio.args(["--extract", "--make-directories", "--quiet"]).current_dir(scratch.path()).stdin(Stdio::piped());
        let mut cpio = cpio.spawn().expect("`cargo xtask test --only tools` installs cpio");
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read(scratch.path().join("a/b/hello")).unwrap(), b"hello, guest");
        assert!(scratch.path().join("empty").is_dir());
    }
}
