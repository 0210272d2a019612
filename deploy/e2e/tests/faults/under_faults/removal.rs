//! Volumes that are deleted: what they took is given back, on agents that are away as well.

use super::{Story, cluster};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::process::until;
use torus_e2e::writer::{Lane, Writing};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_deleted_volume_leaves_nothing_on_any_agent() -> Result<()> {
    let options = Options { disk_size: "2GiB".into(), extent_size: "16MiB".into(), ..Options::default() };
    let mut cluster = cluster(options)?;
    let empty = free_slots(&cluster)?;
    held_is_refused(&cluster)?;
    until("all of it is given back", SOON, || Ok(free_slots(&cluster)? == empty))?;
    an_agent_is_away(&mut cluster)?;
    until("all of it is given back", SOON, || Ok(free_slots(&cluster)? == empty))?;
    println!("every slot of every agent is free again: {empty:?}");
    ensure!(cluster.torusctl_json(["volume", "list"])? == serde_json::json!([]), "volumes are left");
    cluster.torusctl(["volume", "create", "left", "1GiB"]).map(drop)
}

fn free_slots(cluster: &Cluster) -> Result<Vec<u64>> {
    let free = |agent| Ok(cluster.metric(agent, "torus_disk_slots_free_count")? as u64);
    (0..cluster.agents.len()).map(free).collect()
}

fn write_some(cluster: &Cluster, volume: &str) -> Result<()> {
    let owner = cluster.serve(&format!("of-{volume}"), volume, false)?;
    let writing = Writing::start(&owner, (0..4).map(|lane| Lane::new(lane + 1, lane * 8192, 8192)))?;
    until("something is written", SOON, || Ok(writing.writes() > 2000))?;
    writing.finish()?;
    owner.stop()
}

fn held_is_refused(cluster: &Cluster) -> Result<()> {
    let story = Story::begin("a volume that is held is deleted by force only");
    cluster.torusctl(["volume", "create", "held", "1GiB"])?;
    let owner = cluster.serve("holder", "held", false)?;
    let writing = Writing::start(&owner, (0..4).map(|lane| Lane::new(lane + 1, lane * 8192, 8192)))?;
    until("something is written", SOON, || Ok(writing.writes() > 1000))?;
    let (code, said) = cluster.torusctl_fails(["volume", "delete", "held"])?;
    ensure!(code == 2 && said.contains("--yes"), "{code}: {said}");
    let (code, said) = cluster.torusctl_fails(["volume", "delete", "held", "--yes"])?;
    story.tell(said.trim());
    let pid = format!("process {}", owner.process.pid());
    ensure!(
        code == 3 && said.contains("\"held\"") && said.contains(&pid) && said.contains("--fence"),
        "{code}: {said}"
    );
    ensure!(cluster.torusctl_json(["volume", "info", "held"])?["state"] == "open", "it is open still");

    let said = cluster.torusctl(["volume", "delete", "held", "--yes", "--fence"])?;
    story.tell(said.trim());
    let (_, ended) = writing.stop();
    ensure!(ended.iter().all(|(_, error)| error.is_some()), "a write was acknowledged after the volume was deleted");
    let (code, said) = cluster.torusctl_fails(["volume", "info", "held"])?;
    ensure!(code == 1 && said.contains("\"held\""), "{code}: {said}");
    let mut owner = owner;
    let status = owner.process.wait(SOON)?;
    ensure!(status.code() == Some(3), "the owner ended with {status}: {}", owner.process.log_tail());
    Ok(())
}

fn an_agent_is_away(cluster: &mut Cluster) -> Result<()> {
    let story = Story::begin("a volume is deleted while an agent is away");
    cluster.torusctl(["volume", "create", "left", "1GiB"])?;
    write_some(cluster, "left")?;
    cluster.agents[2].kill()?;
    for _ in 0..2 {
        let (code, said) = cluster.torusctl_fails(["volume", "delete", "left", "--yes"])?;
        story.tell(said.trim());
        ensure!(code == 1 && said.contains("\"left\"") && said.contains("\"agent-2\""), "{code}: {said}");
        ensure!(said.contains("volume delete left") && said.contains("--without agent-2"), "{said}");
        ensure!(cluster.torusctl_json(["volume", "info", "left"])?["state"] == "deleting", "it is deleting");
    }
    let refused = cluster.serve("nobody", "left", true).err().context("a volume that is being deleted was opened")?;
    ensure!(format!("{refused:#}").contains("being deleted"), "{refused:#}");
    let (code, said) = cluster.torusctl_fails(["volume", "create", "left", "1GiB"])?;
    ensure!(code == 1 && said.contains("\"left\""), "{code}: {said}");
    cluster.restart_agent(2)?;
    story.tell("agent 2 is back");
    let said = cluster.torusctl(["volume", "delete", "left", "--yes"])?;
    story.tell(said.trim());
    Ok(())
}
