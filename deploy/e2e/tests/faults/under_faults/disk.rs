//! A disk that starts to fail, under fio with checksums.

use super::{LOAD, Story, cluster, told};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use torus_e2e::bad_disk::BadDisk;
use torus_e2e::cluster::Options;
use torus_e2e::fio::Load;
use torus_e2e::process::until;
use torus_e2e::scratch::Scratch;

#[test]
fn fio_sees_no_error_while_a_disk_fails() -> Result<()> {
    let story = Story::begin("the disk of one of three agents begins to fail every write");
    let scratch = Scratch::new("bad-disk")?;
    let disk = BadDisk::new(scratch.path(), 3 << 30)?;
    let disks = vec![None, None, Some(disk.path().to_path_buf())];
    let cluster = cluster(Options { disk_size: "6GiB".into(), disks, ..Options::default() })?;
    cluster.torusctl(["volume", "create", "db", "4GiB", "--replicas", "2"])?;
    let owner = cluster.serve("owner", "db", false)?;
    let load = Load { sequential_bytes: 512 << 20, time: Duration::from_secs(20), seed: 4, ..LOAD };
    story.tell("agents and owner run");

    let fio = load.write(&owner.uri(), cluster.path())?;
    let used = || Ok(cluster.metric(2, "torus_member_append_blocks_total")? > 1000.0);
    until("the disk is in use", Duration::from_secs(20), used)?;
    disk.fail()?;
    story.tell("the disk of agent 2 fails");
    let reported = || Ok(cluster.metric(2, "torus_disk_failed")? == 1.0);
    until("the agent reports its disk", Duration::from_secs(20), reported)?;
    story.tell("agent 2 reports it");
    let written = fio.finish()?;
    story.tell(format_args!("fio wrote: {}", told(&written)));
    let read = load.verify(&owner.uri(), cluster.path())?;
    story.tell(format_args!("fio verified: {}", told(&read)));

    let refused = cluster.http(2, "/readyz").err().context("an agent without a disk calls itself ready")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains("has failed") && refused.contains(&disk.path().display().to_string()), "{refused}");
    let listed = || {
        let agents = cluster.torusctl_json(["peer", "list"])?;
        Ok(agents
            .as_array()
            .into_iter()
            .flatten()
            .any(|agent| agent["failed_disks"].as_array().is_some_and(|d| d.len() == 1)))
    };
    until("torusctl peer list shows the failed disk", Duration::from_secs(20), listed)?;
    story.tell("torusctl peer list and /readyz name the disk");
    owner.stop()
}
