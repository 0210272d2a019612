//! Images without a registry.
//!
//! Torus's own is the runtime stage of `deploy/image/Containerfile`, built by buildah on a Debian that mmdebstrap has put
//! together, with the programs of this workspace. The programs around it (the CSI sidecars, and busybox for pods that test) are one static
//! file each, and get an image of one layer. All carry the names under which a cluster with a registry would pull them,
//! so that the chart and the manifests are used as they are.
//!
//! What changes rarely is kept outside the tree: the Debian, and the layer of its packages in buildah's store. After a change of a
//! program only the layer with the programs is made anew.

use super::go;
use super::node::PAUSE_IMAGE;
use super::progress::Progress;
use super::run;
use super::shell::{must, output, said, thrice};
use crate::{binaries, cache};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As the chart names it.
pub const TORUS: &str = "ghcr.io/torus-storage/torus:0.1.0";
/// As the operator names the sidecars where nothing else is said, and what they are built from.
const SIDECARS: [(&str, &go::Module, &str); 3] = [
    ("registry.k8s.io/sig-storage/csi-provisioner:v6.3.0", &go::PROVISIONER, "csi-provisioner"),
    ("registry.k8s.io/sig-storage/csi-attacher:v4.13.0", &go::ATTACHER, "csi-attacher"),
    ("registry.k8s.io/sig-storage/csi-resizer:v2.3.0", &go::RESIZER, "csi-resizer"),
];
const CONTAINERFILE: &str = include_str!("../../../image/Containerfile");
/// What runs on hosts, whatever libraries they have.
const ON_HOSTS: &str = "torus-flexvolume";
const BASE: &str = "localhost/torus-e2e/debian:bookworm";
const RELEASE: &str = "bookworm";

/// Makes what is not made yet; the archives of all images that pods need, in `directory`.
///
/// # Errors
/// Without root, or when something does not build.
pub fn all(profile: &str, directory: &Path, progress: &Progress) -> Result<Vec<PathBuf>> {
    let _alone = run::alone("images")?;
    let mut archives = vec![busybox()?];
    for (tag, module, program) in SIDECARS {
        archives.push(of_program(tag, &module.program(program, progress)?)?);
    }
    archives.push(torus(profile, progress)?);
    // Another run may throw away what it takes for old.
    let link = |archive: &PathBuf| {
        let own = directory.join(archive.file_name().context("an archive without a name")?);
        let _ = fs::remove_file(&own);
        fs::hard_link(archive, &own).with_context(|| format!("cannot link {}", own.display()))?;
        Ok(own)
    };
    archives.iter().map(link).collect()
}

/// Brings the image of what is built now to where `all` would put it.
///
/// # Errors
/// As [`all`].
pub fn torus_into(profile: &str, directory: &Path, progress: &Progress) -> Result<PathBuf> {
    let _alone = run::alone("images")?;
    let archive = torus(profile, progress)?;
    let own = directory.join("torus-again.tar");
    let _ = fs::remove_file(&own);
    fs::hard_link(&archive, &own).with_context(|| format!("cannot link {}", own.display()))?;
    Ok(own)
}

/// An image with a shell. It also is what pods begin with.
fn busybox() -> Result<PathBuf> {
    let busybox = Path::new("/bin/busybox");
    let archive = archive_for(PAUSE_IMAGE, &stamp(busybox)?)?;
    if !archive.exists() {
        let root = tempfile::tempdir().context("cannot make a directory")?;
        for directory in ["bin", "dev", "proc", "sys", "tmp", "etc", "data", "var", "root"] {
            fs::create_dir(root.path().join(directory)).context("cannot make a directory")?;
        }
        let bin = root.path().join("bin");
        fs::copy(busybox, bin.join("busybox")).context("there is no /bin/busybox: install busybox-static")?;
        for applet in said("/bin/busybox", ["--list"])?.lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).context("cannot link an applet")?;
        }
        // The kernel ignores what the first process of a namespace does not handle: this one handles what asks it to end.
        plain(PAUSE_IMAGE, root.path(), &["/bin/sh", "-c", "trap exit TERM INT; sleep 1000000000 & wait"], &archive)?;
    }
    Ok(archive)
}

/// An image of one static program.
fn of_program(tag: &str, program: &Path) -> Result<PathBuf> {
    let archive = archive_for(tag, &stamp(program)?)?;
    if !archive.exists() {
        let root = tempfile::tempdir().context("cannot make a directory")?;
        let name = program.file_name().context("a program without a name")?;
        fs::copy(program, root.path().join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        plain(tag, root.path(), &[&format!("/{}", name.display())], &archive)?;
    }
    Ok(archive)
}

/// Writes an archive with an image of one layer, which holds what is in `root`.
fn plain(tag: &str, root: &Path, entrypoint: &[&str], archive: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("cannot make a directory")?;
    let path = |name: &str| work.path().join(name);
    let tar = |directory: &Path, to: &Path, what: &[&str]| {
        let mut command = Command::new("tar");
        command.args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--sort=name", "--file"]);
        output(command.arg(to).arg("--directory").arg(directory).args(what))
    };
    tar(root, &path("layer.tar"), &["."])?;
    let digest = said("sha256sum", [path("layer.tar")])?;
    let digest = digest.split(' ').next().unwrap_or_default();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(path(name), content.to_string()).with_context(|| format!("cannot write {name}"))?;
    }
    let unfinished = archive.with_extension("new");
    tar(work.path(), &unfinished, &["manifest.json", "config.json", "layer.tar"])?;
    fs::rename(&unfinished, archive).context("cannot keep an image")
}

/// Torus's own image.
fn torus(profile: &str, progress: &Progress) -> Result<PathBuf> {
    let names: Vec<_> = programs().collect();
    progress.say(&format!("building {} ({profile})", names.join(", ")));
    let mut built = binaries::build_all(profile, &names)?;
    for (name, program) in names.iter().zip(&mut built).filter(|(name, _)| **name == ON_HOSTS) {
        *program = binaries::build_static(profile, name)?;
    }
    let stamps = built.iter().map(|program| stamp(program)).collect::<Result<Vec<_>>>()?.join(" ");
    let archive = archive_for(TORUS, &format!("{stamps} {CONTAINERFILE}"))?;
    if archive.exists() {
        return Ok(archive);
    }
    let buildah = Buildah::new()?;
    buildah.base(progress)?;
    progress.say("building the image");
    let work = tempfile::tempdir().context("cannot make a directory")?;
    let programs = work.path().join("programs");
    let context = work.path().join("context");
    for directory in [&programs, &context] {
        fs::create_dir(directory).context("cannot make a directory")?;
    }
    for (name, program) in names.iter().zip(&built) {
        let mut strip = Command::new("strip");
        output(strip.arg("-o").arg(programs.join(name)).arg(program))?;
    }
    let containerfile = work.path().join("Containerfile");
    fs::write(&containerfile, CONTAINERFILE).context("cannot write the Containerfile")?;
    let mut bud = buildah.command("bud");
    bud.args(["--quiet", "--layers", "--target", "runtime", "--build-arg", &format!("BASE={BASE}")]);
    bud.arg("--build-context").arg(format!("programs={}", programs.display())).args(["--tag", TORUS]);
    bud.arg("--file").arg(&containerfile).arg(&context);
    // It installs packages.
    thrice("building the image", || output(&mut bud))?;
    let unfinished = archive.with_extension("new");
    // What is written to must not be there.
    let _ = fs::remove_file(&unfinished);
    let to = format!("docker-archive:{}:{TORUS}", unfinished.display());
    output(buildah.command("push").args(["--quiet", TORUS, &to]))?;
    fs::rename(&unfinished, &archive).context("cannot keep the image")?;
    Ok(archive)
}

/// The programs that the Containerfile builds, as it names them.
fn programs() -> impl Iterator<Item = &'static str> {
    let mut words = CONTAINERFILE.split_ascii_whitespace();
    std::iter::from_fn(move || words.by_ref().find(|word| *word == "--bin").and_then(|_| words.next()))
}

/// buildah, with a store of its own.
struct Buildah {
    store: PathBuf,
}

impl Buildah {
    fn new() -> Result<Self> {
        let store = cache::directory()?.join("buildah");
        fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
        Ok(Self { store })
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new("buildah");
        // Neither a daemon, nor namespaces that a container may lack.
        command.env("BUILDAH_ISOLATION", "chroot");
        command.arg("--root").arg(self.store.join("root")).arg("--runroot").arg(self.store.join("run")).arg(what);
        command
    }

    /// The Debian that the image is built on.
    fn base(&self, progress: &Progress) -> Result<()> {
        if output(self.command("inspect").args(["--type", "image", BASE])).is_ok() {
            return Ok(());
        }
        progress.say(&format!("putting together a Debian {RELEASE} (a minute)"));
        let work = tempfile::tempdir_in(&self.store).context("cannot make a directory")?;
        let tar = work.path().join("base.tar");
        let tar = tar.to_str().context("a path that is no UTF-8")?;
        thrice(&format!("a Debian {RELEASE}"), || {
            // What is written to must not be there.
            let _ = fs::remove_file(tar);
            must("mmdebstrap", ["--variant=minbase", "--quiet", RELEASE, tar])
        })?;
        let container = output(self.command("from").arg("scratch"))?;
        let container = container.trim();
        output(self.command("add").args(["--quiet", container, tar, "/"]))?;
        output(self.command("commit").args(["--quiet", "--rm", container, BASE])).map(drop)
    }
}

/// Where the archive of an image is kept that was made from what `stamp` says. Older ones of the same name are removed.
fn archive_for(tag: &str, stamp: &str) -> Result<PathBuf> {
    let directory = cache::directory()?.join("images");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let name = tag.replace(['/', ':'], "_");
    let archive = directory.join(format!("{name}-{}.tar", digest(stamp)?));
    if !archive.exists() {
        for entry in fs::read_dir(&directory).context("cannot list images")?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                fs::remove_file(entry.path()).context("cannot remove an older image")?;
            }
        }
    }
    Ok(archive)
}

/// What tells a program from what it was before, without reading all of it.
fn stamp(program: &Path) -> Result<String> {
    let metadata = fs::metadata(program).with_context(|| format!("there is no {}", program.display()))?;
    let changed = metadata.modified().context("no time of change")?;
    Ok(format!("{} {} {changed:?}", program.display(), metadata.len()))
}

fn digest(text: &str) -> Result<String> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    ensure!(!text.is_empty(), "nothing to tell apart");
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containerfile_says_which_programs_go_in() {
        let programs: Vec<_> = programs().collect();
        for program in ["torus-agent", "torusctl", "torus-operator", "torus-csi", "torus-flexvolume"] {
            assert!(programs.contains(&program), "{program} is not in {programs:?}");
        }
    }

    #[test]
    fn another_version_is_another_archive() {
        assert_ne!(digest("a 1").unwrap(), digest("a 2").unwrap());
    }
}
