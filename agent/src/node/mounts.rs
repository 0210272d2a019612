//! What is mounted, and who uses a device: all read from /proc and /sys, where nothing can hang.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of a mountinfo file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `major:minor` of the device.
    pub device: String,
    /// Where.
    pub directory: PathBuf,
    /// Kind of filesystem.
    pub kind: String,
}

/// The mounts that this process sees, oldest first.
#[must_use]
pub fn all() -> Vec<Mount> {
    fs::read("/proc/self/mountinfo").map(|text| parse(&text)).unwrap_or_default()
}

/// What is mounted on `directory`, topmost. The path is compared as it is: resolve links first.
#[must_use]
pub fn on(directory: &Path) -> Option<Mount> {
    all().into_iter().rev().find(|mount| mount.directory == directory)
}

/// Where `device` is mounted, newest first.
#[must_use]
pub fn of(device: &Path) -> Vec<PathBuf> {
    let Some(number) = number(device) else { return Vec::new() };
    all().into_iter().rev().filter(|mount| mount.device == number).map(|mount| mount.directory).collect()
}

/// `major:minor` of a block device.
#[must_use]
pub fn number(device: &Path) -> Option<String> {
    let name = device.file_name()?;
    let number = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")).ok()?;
    Some(number.trim().to_owned())
}

/// Who uses `device` or what is mounted from it, in words: processes of any mount namespace, and other block devices.
/// Empty: nobody that can be seen.
#[must_use]
pub fn users(device: &Path) -> Vec<String> {
    let mut users = Vec::new();
    let name = device.file_name().unwrap_or_default();
    let above = fs::read_dir(Path::new("/sys/class/block").join(name).join("holders")).into_iter().flatten().flatten();
    users.extend(above.map(|entry| format!("block device {}", entry.file_name().to_string_lossy())));
    let number = number(device);
    let ours: Vec<PathBuf> = of(device);
    let mut namespaces = Vec::new();
    for process in processes() {
        let opened = links(&process.join("fd")).chain(["cwd", "root", "exe"].map(|link| process.join(link)));
        let mut targets = opened.filter_map(|link| fs::read_link(link).ok());
        let holds = |target: &PathBuf| {
            target == device
                || ours.iter().any(|directory| *directory != Path::new("/") && target.starts_with(directory))
        };
        let used = targets.find(holds);
        // Mounts of a namespace are told once.
        let namespace = fs::read_link(process.join("ns/mnt")).unwrap_or_default();
        let mounted = if namespaces.contains(&namespace) {
            None
        } else {
            namespaces.push(namespace);
            let mounts = fs::read(process.join("mountinfo")).map(|text| parse(&text)).unwrap_or_default();
            mounts.into_iter().find(|mount| Some(&mount.device) == number.as_ref()).map(|mount| mount.directory)
        };
        if let Some(path) = used.or(mounted.filter(|directory| !ours.contains(directory))) {
            users.push(format!("{} ({})", who(&process), path.display()));
        }
    }
    users
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn links(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn who(process: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("process {} {}", process.file_name().unwrap_or_default().to_string_lossy(), name.trim())
}

fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /dir opts… - kind source opts`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(words.nth(2)?.to_vec()).ok()?;
    let directory = PathBuf::from(std::ffi::OsString::from_vec(unescape(words.nth(1)?)));
    words.find(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    Some(Mount { device, directory, kind })
}

/// Spaces and the like are written as `\040`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let text = b"22 1 254:0 / / rw shared:1 - ext4 /dev/root rw\n\
                     90 22 7:0 / /mnt/a\\040b\\134c rw,relatime shared:5 master:1 - xfs /dev/loop0 rw\nnonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0], Mount { device: "254:0".into(), directory: "/".into(), kind: "ext4".into() });
        assert_eq!(mounts[1], Mount { device: "7:0".into(), directory: "/mnt/a b\\c".into(), kind: "xfs".into() });
    }

    #[test]
    fn what_is_mounted_here_is_seen() {
        assert!(on(Path::new("/proc")).is_some_and(|mount| mount.kind == "proc"));
        assert_eq!(on(Path::new("/nowhere/at/all")), None);
    }
}
