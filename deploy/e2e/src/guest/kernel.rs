//! Debian's stock kernel, taken out of its package. Nothing is compiled, and nothing of this machine is changed.

use crate::kube::thrice;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that depends on the newest kernel's.
const PACKAGE: &str = "linux-image-amd64";
/// Directories of modules that are kept; the whole would be 400 MiB.
const KEPT: [&str; 8] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/drivers/block/*",
    "./lib/modules/*/kernel/fs/ext4/*",
    "./lib/modules/*/kernel/fs/jbd2/*",
    "./lib/modules/*/kernel/fs/mbcache.ko",
    "./lib/modules/*/kernel/fs/xfs/*",
    "./lib/modules/*/kernel/lib/*",
];

/// A kernel and its modules, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The newest that Debian's archive has for this machine, from the cache (`~/.cache/torus-e2e`) or, once, from the
    /// archive; where the archive does not give it, what the cache has.
    pub fn newest() -> Result<Self> {
        let cache = cache()?;
        let package = match newest_package() {
            Ok(package) => package,
            Err(error) => match cached(&cache) {
                Some(directory) => return Ok(Self { directory }),
                None => return Err(error),
            },
        };
        let directory = cache.join(format!("kernel-{}", package.replace('=', "-")));
        if directory.exists() {
            return Ok(Self { directory });
        }
        let Some(older) = cached(&cache) else {
            thrice(&package, || unpack(&package, &directory))?;
            return Ok(Self { directory });
        };
        match unpack(&package, &directory) {
            Ok(()) => Ok(Self { directory }),
            Err(error) => {
                println!("guests run {} instead of the newest kernel: {error:#}", older.display());
                Ok(Self { directory: older })
            }
        }
    }

    /// The kernel itself.
    pub fn image(&self) -> Result<PathBuf> {
        only(&self.directory.join("boot"))
    }

    /// The files of `modules` and all that they need, in the order in which they are to be loaded.
    pub fn modules(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        find_modules(&only(&self.directory.join("lib/modules"))?.join("kernel"), &mut files)?;
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in modules {
            load(module, &files, &mut seen, &mut order)?;
        }
        Ok(order)
    }
}

/// Puts `module` behind what it needs.
fn load(module: &str, files: &[PathBuf], seen: &mut BTreeSet<String>, order: &mut Vec<PathBuf>) -> Result<()> {
    // The same module is written with either sign.
    let plain = |name: &str| name.replace('-', "_");
    if !seen.insert(plain(module)) {
        return Ok(());
    }
    let is_it = |file: &&PathBuf| file.file_stem().is_some_and(|stem| plain(&stem.to_string_lossy()) == plain(module));
    let file = files.iter().find(is_it).with_context(|| format!("the guest's kernel has no module {module}"))?;
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for needed in needs(&bytes) {
        load(&needed, files, seen, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// What a module says it needs: `depends=a,b` among the strings in it.
fn needs(module: &[u8]) -> Vec<String> {
    let line = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find_modules(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

/// The one thing in `directory`.
fn only(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let first = entries.next().with_context(|| format!("nothing is in {}", directory.display()))?;
    Ok(first.with_context(|| format!("cannot read {}", directory.display()))?.path())
}

fn cache() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: there is nowhere to keep a kernel")?;
    Ok(PathBuf::from(home).join(".cache/torus-e2e"))
}

/// The newest kernel that was unpacked before.
fn cached(cache: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kernel-linux"))).max()
}

/// `PACKAGE=VERSION` of the newest kernel.
fn newest_package() -> Result<String> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("a guest runs Debian's kernel, which apt-get gets: this machine has none");
    }
    let mut depends = output(&["apt-cache", "depends", PACKAGE])?;
    if depends.is_empty() {
        // A fresh machine has no lists of packages yet.
        output(&["apt-get", "update", "-q"])?;
        depends = output(&["apt-cache", "depends", PACKAGE])?;
    }
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("apt knows no package {PACKAGE}: a guest runs Debian's kernel"))?;
    let shown = output(&["apt-cache", "show", "--no-all-versions", package])?;
    let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
    Ok(format!("{package}={}", version.with_context(|| format!("apt tells no version of {package}"))?))
}

/// Downloads `package` and takes out of it what a guest needs. The directory appears whole or not at all.
fn unpack(package: &str, directory: &Path) -> Result<()> {
    let cache = directory.parent().context("the cache is no directory")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = crate::scratch::Scratch::below(cache, "kernel")?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-q", package]).current_dir(scratch.path()).stdin(Stdio::null()).stdout(Stdio::null());
    let status = download.status().context("cannot run apt-get")?;
    ensure!(status.success(), "apt-get download {package} failed ({status})");
    let archive = only(scratch.path())?;
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let unpacking = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&archive).stdout(Stdio::piped()).spawn();
    let mut unpacking = unpacking.context("cannot run dpkg-deb")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--wildcards"]).args(KEPT).current_dir(&unpacked);
    let status = tar.stdin(unpacking.stdout.take().context("dpkg-deb has no output")?).status();
    ensure!(status.context("cannot run tar")?.success(), "tar cannot unpack {}", archive.display());
    ensure!(unpacking.wait().context("cannot wait for dpkg-deb")?.success(), "dpkg-deb cannot read {package}");
    match fs::rename(&unpacked, directory) {
        // Another test was quicker.
        Err(_) if directory.exists() => Ok(()),
        moved => moved.with_context(|| format!("cannot put a kernel into {}", directory.display())),
    }
}

fn output(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", words[0]))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        assert_eq!(
            needs(b"\x7fELF\0license=GPL\0depends=jbd2,mbcache,crc16\0retpoline=Y\0"),
            ["jbd2", "mbcache", "crc16"]
        );
        assert!(needs(b"license=GPL\0depends=\0").is_empty());
        assert!(needs(b"").is_empty());
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let kernel = Kernel::newest().unwrap();
        let order = kernel.modules(&["ext4", "nbd", "xfs"]).unwrap();
        let at = |name: &str| order.iter().position(|file| file.ends_with(name)).unwrap();
        assert!(at("jbd2.ko") < at("ext4.ko") && at("libcrc32c.ko") < at("xfs.ko"));
        assert!(kernel.modules(&["no-such-module"]).is_err());
        assert!(kernel.image().unwrap().is_file());
    }
}
