//! Real agents, a real etcd, real owners, and qemu-io as the client.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::Duration;
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::process::until;

/// Has `qemu-io` carry out `commands` on `uri`; fails when one of them does.
fn qemu_io(uri: &str, commands: &[&str]) -> Result<()> {
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "raw"]);
    for command in commands {
        qemu.args(["-c", command]);
    }
    let output = qemu.arg(uri).output().context("cannot run qemu-io: `cargo xtask test --only tools` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !said.contains("failed"), "qemu-io {commands:?}: {said}");
    Ok(())
}

fn cluster(exports: &[&str]) -> Result<Cluster> {
    let options = Options {
        disk_size: "1GiB".into(),
        extent_size: "16MiB".into(),
        agent_flags: ["--fill", "reserve", "--buffered-io"].map(str::to_owned).into(),
        profile: "dev".into(),
        exports: exports.iter().map(|&volume| volume.to_owned()).collect(),
        ..Options::default()
    };
    Cluster::start(options)
}

#[test]
fn what_was_written_is_there_after_agents_and_owners_were_killed() -> Result<()> {
    let mut cluster = cluster(&[])?;
    cluster.torusctl(["volume", "create", "db", "256MiB"])?;
    let mut first = cluster.serve("first", "db", false)?;
    qemu_io(&first.uri(), &["write -P 0x11 0 64M", "write -P 0x22 1M 512", "flush"])?;
    assert_eq!(cluster.torusctl_json(["volume", "info", "db"])?["state"], "open");

    cluster.agents[1].kill()?;
    qemu_io(&first.uri(), &["write -P 0x33 128M 8M", "flush", "read -P 0x11 2M 62M", "read -P 0x22 1M 512"])?;

    first.process.kill()?;
    let second = cluster.serve("second", "db", true)?;
    let all = ["read -P 0x11 0 1M", "read -P 0x22 1M 512", "read -P 0x33 128M 8M", "read -P 0 64M 64M"];
    qemu_io(&second.uri(), &all)?;
    assert_eq!(cluster.torusctl_json(["volume", "info", "db"])?["epoch"], 2);

    let refused = cluster.serve("third", "db", false).err().context("a volume that is held was opened")?;
    let refused = format!("{refused:#}");
    assert!(refused.contains("held by") && refused.contains("--fence"), "{refused}");

    cluster.restart_agent(1)?;
    second.stop()?;
    // A sign of life that could not be taken back in time runs out by itself.
    let is_closed = || Ok(cluster.torusctl_json(["volume", "info", "db"])?["state"] == "closed");
    until("the volume is closed", Duration::from_secs(20), is_closed)?;
    let last = cluster.serve("last", "db", false)?;
    qemu_io(&last.uri(), &all)?;
    last.stop()
}

#[test]
fn an_agent_that_serves_a_volume_itself_serves_it_again_after_a_crash_and_not_after_a_takeover() -> Result<()> {
    let mut cluster = cluster(&["db"])?;
    // It waits for the volume to be made.
    cluster.torusctl(["volume", "create", "db", "256MiB"])?;
    let uri = cluster.exported("db")?;
    qemu_io(&uri, &["write -P 0x11 0 64M", "write -P 0x22 1M 512", "flush"])?;
    let told = |metric: &str| cluster.metric(0, metric);
    ensure!(told("torus_volume_serving")? == 1.0 && told("torus_volume_user_bytes_total")? >= f64::from(64 << 20));
    cluster.agents[1].kill()?;
    qemu_io(&uri, &["write -P 0x33 128M 8M", "flush", "read -P 0x11 2M 62M"])?;
    cluster.restart_agent(1)?;

    cluster.agents[0].kill()?;
    cluster.restart_agent(0)?;
    let uri = cluster.exported("db")?;
    let all = ["read -P 0x11 0 1M", "read -P 0x22 1M 512", "read -P 0x33 128M 8M", "read -P 0 64M 64M"];
    qemu_io(&uri, &all)?;
    assert_eq!(cluster.torusctl_json(["volume", "info", "db"])?["epoch"], 2);

    let other = cluster.serve("other", "db", true)?;
    qemu_io(&other.uri(), &all)?;
    qemu_io(&other.uri(), &["write -P 0x44 0 1M", "flush"])?;
    let late = qemu_io(&uri, &["read -P 0x11 0 1M"]);
    ensure!(late.is_err(), "the agent still serves a volume that was taken over");
    let serving = cluster.metric(0, "torus_volume_serving").unwrap_or_default();
    ensure!(serving == 0.0, "the agent says that it serves a volume that was taken over");
    // The agent goes on, and lets the other have the volume.
    ensure!(cluster.http(0, "/readyz")?.contains("ready"), "the agent is not ready any more");
    qemu_io(&other.uri(), &["read -P 0x44 0 1M"])?;
    other.stop()
}
