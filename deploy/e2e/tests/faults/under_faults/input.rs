//! What makes no sense, or is not there, or belongs to others: a sentence, an exit code, and nothing changed.

use super::{Story, cluster};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use torus_e2e::cluster::Options;
use torus_e2e::ports;

/// What was said has to hold all of `words`, and the exit code to be `code`.
fn check(story: &Story, (got, said): (i32, String), code: i32, words: &[&str]) -> Result<()> {
    let last = said.lines().last().unwrap_or_default();
    story.tell(format_args!("{got}: {last}"));
    ensure!(got == code, "exit code {got} and not {code}: {said}");
    for word in words {
        ensure!(last.contains(word), "it should say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_is_refused_with_a_sentence() -> Result<()> {
    let options = Options { agents: 1, disk_size: "256MiB".into(), extent_size: "4MiB".into(), ..Options::default() };
    let mut cluster = cluster(options)?;
    let story = Story::begin("metadata stores that are not there, or are something else");
    let nobody = format!("http://127.0.0.1:{}", ports::free()?);
    let something = format!("http://127.0.0.1:{}", cluster.http_port(0));
    let dir = cluster.path().join("new");
    let dir = dir.to_str().context("a path that is no UTF-8")?;
    for store in [&nobody, &something] {
        let address = store.trim_start_matches("http://");
        check(&story, cluster.torusctl_fails(["volume", "list", "--etcd", store])?, 1, &[address])?;
        check(&story, cluster.agent_fails(["--etcd", store, "--data-dir", dir])?, 1, &[address])?;
    }
    ensure!(!Path::new(dir).exists(), "an agent that was refused has made its disk");

    let story = Story::begin("ports that are taken, volumes that are not there or are held");
    let port = cluster.data_port(0).to_string();
    check(&story, cluster.agent_fails(["--port", &port, "--data-dir", dir])?, 1, &[&port, "--port"])?;
    let nowhere = ["--export", "db=/tmp/db.sock", "--role", "node"];
    check(&story, cluster.agent_fails(nowhere)?, 2, &["--role storage", "torusctl serve"])?;
    let socket = cluster.path().join("x.sock");
    let socket = socket.to_str().context("a path that is no UTF-8")?;
    let missing = cluster.torusctl_fails(["serve", "nothing", "--socket", socket])?;
    check(&story, missing, 1, &["\"nothing\"", "torusctl volume list"])?;
    check(&story, cluster.torusctl_fails(["volume", "delete", "nothing", "--yes"])?, 1, &["\"nothing\""])?;
    cluster.torusctl(["volume", "create", "db", "64MiB", "--replicas", "1"])?;
    let owner = cluster.serve("owner", "db", false)?;
    let held = cluster.torusctl_fails(["serve", "db", "--socket", socket])?;
    check(&story, held, 3, &["\"db\"", "held by", "--fence"])?;
    let door = owner.socket().to_str().context("a path that is no UTF-8")?;
    check(&story, cluster.torusctl_fails(["serve", "db", "--fence", "--socket", door])?, 1, &[door])?;
    let http = format!("127.0.0.1:{}", cluster.http_port(0));
    let taken = cluster.torusctl_fails(["serve", "db", "--fence", "--socket", socket, "--http", &http])?;
    check(&story, taken, 1, &[&http, "--http"])?;
    let epoch = cluster.torusctl_json(["volume", "info", "db"])?["epoch"].as_u64();
    ensure!(epoch == Some(1), "a refused owner has taken the volume: epoch {epoch:?}");
    owner.stop()?;

    let story = Story::begin("disks of another cluster, copied ones, and of a newer format");
    let own = cluster.disk_dir(0);
    let own = own.to_str().context("a path that is no UTF-8")?;
    check(
        &story,
        cluster.agent_fails(["--data-dir", own, "--name", "second"])?,
        1,
        &["in use by another process", own],
    )?;
    cluster.agents[0].kill()?;
    let copy = cluster.path().join("copy");
    fs::create_dir(&copy)?;
    let disk = copy.join("disk0.torus");
    fs::copy(cluster.disk_dir(0).join("disk0.torus"), &disk)?;
    cluster.torusctl(["init", "--etcd-prefix", "/other/"])?;
    let elsewhere = ["--data-dir", own, "--etcd-prefix", "/other/", "--name", "stranger"];
    check(&story, cluster.agent_fails(elsewhere)?, 3, &["belongs to cluster", own])?;
    // The original runs once more than the copy.
    cluster.restart_agent(0)?;
    let copy = copy.to_str().context("a path that is no UTF-8")?;
    check(&story, cluster.agent_fails(["--data-dir", copy])?, 3, &["copied", "its disks"])?;
    make_newer(&disk)?;
    check(&story, cluster.agent_fails(["--data-dir", copy])?, 3, &["format 2", "newer", copy])?;
    let second = cluster.serve("second", "db", false)?;
    second.stop()
}

/// Makes both superblocks of a disk those of the next format.
fn make_newer(disk: &Path) -> Result<()> {
    let mut bytes = fs::read(disk)?;
    for at in [0, 4096] {
        let sector = &mut bytes[at..at + 512];
        sector[8..12].copy_from_slice(&2u32.to_le_bytes());
        let sum = crc32c(&sector[..508]);
        sector[508..].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(disk, bytes).context("cannot write the disk back")
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
