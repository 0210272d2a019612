//! Debian's nbd-tester-client, which only the source package `nbd` has: fetched through apt, built, and kept for later.
//!
//! Whose orig tarball a mirror still has differs, so the releases are tried one after the other. apt works in a directory of its
//! own: nothing of the machine's settings changes.

use crate::workspace::must_succeed;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the signatures of Debian's indexes are checked.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Tried in this order.
const RELEASES: &[&str] = &["bookworm", "trixie", "sid"];
const PROGRAM: &str = "nbd-tester-client";
/// What is kept: the program, and the transactions that it replays.
const KEPT: &[&str] = &[PROGRAM, "integrity-test.tr", "integrityhuge-test.tr"];

/// Makes sure that it is there.
pub fn ensure() -> Result<()> {
    let kept = torus_e2e::cache::directory()?.join(PROGRAM);
    if KEPT.iter().all(|name| kept.join(name).is_file()) {
        return Ok(());
    }
    let work = tempfile::tempdir().context("cannot make a directory")?;
    let source = RELEASES.iter().find_map(|release| match fetch(release, work.path()) {
        Ok(source) => Some(source),
        Err(error) => {
            println!("{PROGRAM}: {error:#}");
            None
        }
    });
    let Some(source) = source else { bail!("no Debian release gives the source of {PROGRAM}") };
    // Without a program that makes manual pages, and told to make none, configure gives up.
    must_succeed(Command::new("./configure").arg("DB2M=true").args(["--quiet"]).current_dir(&source))?;
    let run = source.join("tests/run");
    must_succeed(Command::new("make").arg("--silent").arg(PROGRAM).current_dir(&run))?;
    fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    // Each in one piece: one that is there is taken for whole.
    let unfinished = tempfile::tempdir_in(&kept).context("cannot make a directory")?;
    for name in KEPT {
        let copied = unfinished.path().join(name);
        fs::copy(run.join(name), &copied)
            .and_then(|_| fs::rename(&copied, kept.join(name)))
            .with_context(|| format!("cannot keep {name}"))?;
    }
    println!("{PROGRAM} is in {}", kept.display());
    Ok(())
}

/// The unpacked source of a release.
fn fetch(release: &str, work: &Path) -> Result<PathBuf> {
    let apt = work.join(release);
    for directory in ["lists/partial", "cache/archives/partial", "source"] {
        fs::create_dir_all(apt.join(directory)).with_context(|| format!("cannot make {}", apt.display()))?;
    }
    let list = format!("deb-src [signed-by={KEYRING}] http://deb.debian.org/debian {release} main\n");
    fs::write(apt.join("sources.list"), list).context("cannot write a list of sources")?;
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-q").current_dir(apt.join("source"));
        command.arg("-o").arg(format!("Dir::Etc::sourcelist={}", apt.join("sources.list").display()));
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
        command.arg("-o").arg(format!("Dir::State::lists={}", apt.join("lists").display()));
        command.arg("-o").arg(format!("Dir::Cache={}", apt.join("cache").display()));
        must_succeed(command.args(args))
    };
    apt_get(&["update"])?;
    apt_get(&["source", "--download-only", "nbd"])?;
    let here = || fs::read_dir(apt.join("source")).context("cannot look for the source");
    let named = |entry: &fs::DirEntry, part: &str| entry.file_name().to_string_lossy().contains(part);
    let tarball = here()?.flatten().find(|entry| named(entry, ".orig.tar.")).context("no orig tarball came")?;
    must_succeed(Command::new("tar").arg("xf").arg(tarball.path()).current_dir(apt.join("source")))?;
    let unpacked = here()?.flatten().find(|entry| entry.path().is_dir()).context("nothing was unpacked")?;
    Ok(unpacked.path())
}
