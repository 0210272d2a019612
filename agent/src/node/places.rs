//! Paths that others give: below one directory, and through no link.
//!
//! A path is walked from a descriptor of that directory, part by part, and no part may be a link: what is made, mounted on or
//! removed is what the path says, and never something outside. Walking by parts, and not by openat2, works on every
//! kernel that there still is under a kubelet.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

/// The longest path that a system takes.
const PATH_BYTES_MAX: usize = 4095;

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It makes no sense.
    #[error("{0:?} is no path for a volume: it must be absolute, without `.`, `..`, or control characters")]
    Malformed(String),
    /// It is somewhere else.
    #[error(
        "{path:?} is not below {root}, and nothing is mounted elsewhere. If it is the kubelet's, start the agent with its --kubelet-dir"
    )]
    Outside {
        /// The path.
        path: String,
        /// Where it should be.
        root: PathBuf,
    },
    /// A part of it is a link, or a file.
    #[error("{0} is not used: a part of the path is a link, or no directory")]
    Link(PathBuf),
    /// It, or what it is in, is not there.
    #[error("{0} is not there: it should have been made before")]
    Absent(PathBuf),
    /// Something else is there.
    #[error("{0} is there already, and is not {1}")]
    Other(PathBuf, &'static str),
    /// The system refuses.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The directory below which all places are.
#[derive(Clone, Debug)]
pub struct Places {
    given: PathBuf,
    root: PathBuf,
}

impl Places {
    /// Those below `given`, which may be a link itself.
    ///
    /// # Errors
    /// When it is not there.
    pub fn below(given: &Path) -> Result<Self, PlaceError> {
        let failed = |source| PlaceError::Io { doing: "find", path: given.into(), source };
        let root = std::fs::canonicalize(given).map_err(failed)?;
        Ok(Self { given: given.into(), root })
    }

    /// What all of them are below.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a path. Whether it is there is another question.
    ///
    /// # Errors
    /// When it is malformed or outside.
    pub fn of(&self, path: &str) -> Result<PathBuf, PlaceError> {
        let shown = || path.chars().take(200).collect::<String>();
        let parts = Path::new(path);
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        // `components` hides a `.` in the middle.
        let hidden = path.split('/').any(|part| matches!(part, "." | ".."));
        if path.len() > PATH_BYTES_MAX
            || !parts.is_absolute()
            || path.chars().any(char::is_control)
            || hidden
            || !parts.components().all(plain)
        {
            return Err(PlaceError::Malformed(shown()));
        }
        let below = parts.strip_prefix(&self.given).or_else(|_| parts.strip_prefix(&self.root));
        match below {
            Ok(below) if !below.as_os_str().is_empty() => Ok(self.root.join(below)),
            _ => Err(PlaceError::Outside { path: shown(), root: self.given.clone() }),
        }
    }

    /// What there is at `place`; `None`: nothing.
    ///
    /// # Errors
    /// When a part of the path is a link or no directory.
    pub fn look(&self, place: &Path) -> Result<Option<FileType>, PlaceError> {
        let (parent, name) = match self.walk(place) {
            Err(PlaceError::Absent(_)) => return Ok(None),
            walked => walked?,
        };
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error("look at", place)(error)),
        }
    }

    /// Fails unless a directory is at `place`.
    ///
    /// # Errors
    /// When none is, or the path goes through a link.
    pub fn directory(&self, place: &Path) -> Result<(), PlaceError> {
        match self.look(place)? {
            Some(FileType::Directory) => Ok(()),
            Some(_) => Err(PlaceError::Other(place.into(), "a directory")),
            None => Err(PlaceError::Absent(place.into())),
        }
    }

    /// Takes hold of what there is at `place`, or of what is mounted there: whoever changes a part of the path afterwards changes
    /// nothing of that.
    ///
    /// # Errors
    /// When nothing is there, or the path goes through a link.
    pub fn pin(&self, place: &Path) -> Result<Pinned, PlaceError> {
        let (parent, name) = self.walk(place)?;
        match openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(found) => match fstat(&found).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::Symlink) => Err(PlaceError::Link(place.into())),
                Ok(_) => Ok(Pinned(found)),
                Err(error) => Err(io_error("look at", place)(error)),
            },
            Err(Errno::NOENT) => Err(PlaceError::Absent(place.into())),
            Err(error) => Err(io_error("open", place)(error)),
        }
    }

    /// Makes a directory at `place`, or leaves the one that is there.
    ///
    /// # Errors
    /// When something else is there, or what it is in is not.
    pub fn make_directory(&self, place: &Path) -> Result<(), PlaceError> {
        let (parent, name) = self.walk(place)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o750)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => self.directory(place),
            Err(error) => Err(io_error("make the directory", place)(error)),
        }
    }

    /// Makes an empty file at `place`, or leaves the one that is there.
    ///
    /// # Errors
    /// When something else is there, or what it is in is not.
    pub fn make_file(&self, place: &Path) -> Result<(), PlaceError> {
        let (parent, name) = self.walk(place)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::from_raw_mode(0o640)) {
            Ok(_) => Ok(()),
            Err(Errno::EXIST) => match self.look(place)? {
                Some(FileType::RegularFile) => Ok(()),
                _ => Err(PlaceError::Other(place.into(), "a file")),
            },
            Err(error) => Err(io_error("make the file", place)(error)),
        }
    }

    /// Removes an empty directory or a file at `place`, if there is one.
    ///
    /// # Errors
    /// When it is not empty, or something else.
    pub fn remove(&self, place: &Path) -> Result<(), PlaceError> {
        let flags = match self.look(place)? {
            None => return Ok(()),
            Some(FileType::Directory) => AtFlags::REMOVEDIR,
            Some(FileType::RegularFile) => AtFlags::empty(),
            Some(_) => return Err(PlaceError::Other(place.into(), "a directory or a file")),
        };
        let (parent, name) = self.walk(place)?;
        match unlinkat(&parent, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", place)(error)),
        }
    }

    /// The directory that `place` is in, and its name there.
    fn walk<'a>(&self, place: &'a Path) -> Result<(OwnedFd, &'a OsStr), PlaceError> {
        let below = place.strip_prefix(&self.root).map_err(|_| PlaceError::Link(place.into()))?;
        let name = below.file_name().ok_or_else(|| PlaceError::Link(place.into()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = openat(CWD, &self.root, flags, Mode::empty()).map_err(io_error("open", &self.root))?;
        for part in below.parent().into_iter().flat_map(Path::components) {
            at = match openat(&at, part.as_os_str(), flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Err(PlaceError::Absent(place.into())),
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(PlaceError::Link(place.into())),
                Err(error) => return Err(io_error("open", place)(error)),
            };
        }
        Ok((at, name))
    }
}

/// What there was at a place, whatever becomes of the path.
#[derive(Debug)]
pub struct Pinned(OwnedFd);

impl Pinned {
    /// A path that leads to it, from this process and from its children.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> PlaceError {
    let path = path.to_owned();
    move |error| PlaceError::Io { doing, path, source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_paths_below_the_root_are_places() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::below(directory.path()).unwrap();
        let root = directory.path().display();
        assert_eq!(places.of(&format!("{root}/a/-b")).unwrap(), places.root().join("a/-b"));
        for bad in ["", "a", "-rf", "/", "/etc", "//etc/passwd", &root.to_string(), &format!("{root}x/a")] {
            assert!(places.of(bad).is_err(), "{bad:?}");
        }
        for part in ["..", "../x", "./x", "a/../../x", "a\0b", "a\nb", "a/."] {
            let error = places.of(&format!("{root}/{part}")).unwrap_err();
            assert!(matches!(error, PlaceError::Malformed(_)), "{part:?}: {error}");
        }
        assert!(places.of(&format!("{root}/{}", "x".repeat(5000))).is_err());
    }

    #[test]
    fn links_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), b"data").unwrap();
        let places = Places::below(directory.path()).unwrap();
        symlink(outside.path(), directory.path().join("link")).unwrap();
        symlink(outside.path().join("precious"), directory.path().join("file")).unwrap();
        let through = places.root().join("link/target");
        assert!(matches!(places.make_directory(&through), Err(PlaceError::Link(_))));
        assert!(matches!(places.make_file(&through), Err(PlaceError::Link(_))));
        assert!(matches!(places.remove(&places.root().join("link/precious")), Err(PlaceError::Link(_))));
        for name in ["link", "file"] {
            let link = places.root().join(name);
            assert!(matches!(places.make_directory(&link), Err(PlaceError::Other(..))));
            assert!(matches!(places.make_file(&link), Err(PlaceError::Other(..))));
            assert!(matches!(places.remove(&link), Err(PlaceError::Other(..))));
            assert!(matches!(places.directory(&link), Err(PlaceError::Other(..))));
        }
        assert!(matches!(places.pin(&through), Err(PlaceError::Link(_))));
        assert!(matches!(places.pin(&places.root().join("link")), Err(PlaceError::Link(_))));
        assert_eq!(fs::read(outside.path().join("precious")).unwrap(), b"data");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_pinned_stays_what_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::below(directory.path()).unwrap();
        let place = places.root().join("d");
        places.make_directory(&place).unwrap();
        fs::write(place.join("inside"), b"data").unwrap();
        let pinned = places.pin(&place).unwrap();
        fs::rename(&place, places.root().join("elsewhere")).unwrap();
        symlink("/etc", &place).unwrap();
        assert_eq!(fs::read(pinned.path().join("inside")).unwrap(), b"data");
        assert!(matches!(places.pin(&places.root().join("nothing")), Err(PlaceError::Absent(_))));
    }

    #[test]
    fn what_is_made_can_be_made_and_removed_again() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::below(directory.path()).unwrap();
        let (dir, file) = (places.root().join("d"), places.root().join("f"));
        for _ in 0..2 {
            places.make_directory(&dir).unwrap();
            places.make_file(&file).unwrap();
        }
        fs::write(dir.join("kept"), b"data").unwrap();
        assert!(places.remove(&dir).is_err(), "what is not empty stays");
        fs::remove_file(dir.join("kept")).unwrap();
        for _ in 0..2 {
            places.remove(&dir).unwrap();
            places.remove(&file).unwrap();
        }
        assert!(matches!(places.make_file(&places.root().join("no/f")), Err(PlaceError::Absent(_))));
        assert_eq!(places.look(&places.root().join("no/f")).unwrap(), None);
    }
}
