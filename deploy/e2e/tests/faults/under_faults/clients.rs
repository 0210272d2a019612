//! Other people's NBD clients on a volume with two copies, one agent of three being killed and restarted all the while.

use super::{Story, cluster};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use torus_e2e::cache;
use torus_e2e::cluster::{Options, Owner};
use torus_e2e::process::Process;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// What the file that is copied holds: offset and length.
const DATA: [(u64, u64); 4] = [(0, 4096), (5 * MIB, 2 * MIB), (31 * MIB + 8192, MIB), (SIZE - 4096, 4096)];
const SOON: Duration = Duration::from_secs(60);

/// What `command` prints; it must succeed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}{said}", output.status, text(&output.stdout));
    Ok(text(&output.stdout))
}

fn timed(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120"]).arg(program.as_ref());
    command
}

#[test]
fn clients_are_content_with_a_replicated_volume() -> Result<()> {
    let story = Story::begin("NBD clients on a replicated volume while agents are killed");
    let options = Options { disk_size: "1GiB".into(), extent_size: "16MiB".into(), ..Options::default() };
    let mut cluster = cluster(options)?;
    for volume in ["copies", "integrity", "integrityhuge"] {
        cluster.torusctl(["volume", "create", volume, "64MiB", "--replicas", "2"])?;
    }
    let owner = cluster.serve("copies", "copies", false)?;
    let info: serde_json::Value = serde_json::from_str(&run(timed("nbdinfo").args(["--json", &owner.uri()]))?)?;
    ensure!(info["exports"][0]["export-size"] == SIZE, "nbdinfo says {info}");
    cluster.agents[0].kill()?;
    copied(&owner, cluster.path())?;
    story.tell("nbdinfo, nbdcopy both ways with holes kept, agent 0 being dead");
    cluster.restart_agent(0)?;
    mounted(&owner, cluster.path())?;
    story.tell("nbdfuse: written and read through a file");
    owner.stop()?;

    // A volume for each: the client takes blocks that it has not written itself for zeros.
    for (agent, volume) in [(1, "integrity"), (2, "integrityhuge")] {
        let (owner, name) = (cluster.serve(volume, volume, false)?, format!("{volume}-test.tr"));
        cluster.agents[agent].kill()?;
        let kept = cache::directory()?.join("nbd-tester-client");
        let tester = kept.join("nbd-tester-client");
        ensure!(tester.is_file(), "{} is not there: `cargo xtask test --only tools` makes it", tester.display());
        let mut tester = timed(tester);
        tester.arg("-u").arg(owner.socket()).args(["-N", owner.volume(), "-i", "-t"]).arg(kept.join(&name));
        run(&mut tester)?;
        story.tell(format_args!("nbd-tester-client replays {name} with integrity checks, agent {agent} being dead"));
        cluster.restart_agent(agent)?;
        owner.stop()?;
    }
    Ok(())
}

fn copied(owner: &Owner, scratch: &Path) -> Result<()> {
    let [source, copy] = ["source", "copy"].map(|name| scratch.join(name));
    let file = File::create_new(&source)?;
    file.set_len(SIZE)?;
    for (at, length) in DATA {
        let bytes: Vec<u8> = (0..length).map(|i| ((at + i) / 7 % 251) as u8 | 1).collect();
        file.write_all_at(&bytes, at)?;
    }
    run(timed("nbdcopy").args(["--connections=4", "--requests=32"]).arg(&source).arg(owner.uri()))?;
    let map: serde_json::Value = serde_json::from_str(&run(timed("nbdinfo").args(["--json", "--map", &owner.uri()]))?)?;
    let data = map.as_array().context("no map")?.iter().filter(|extent| extent["type"] == 0);
    let data: u64 = data.filter_map(|extent| extent["length"].as_u64()).sum();
    let least: u64 = DATA.iter().map(|(_, length)| length).sum();
    // Tools round what is zero inside of data to 64 KiB at most.
    ensure!((least..least + 4 * 65536).contains(&data), "{data} bytes hold data, {least} were written: {map}");
    run(timed("nbdcopy").arg("--destination-is-zero").arg(owner.uri()).arg(&copy))?;
    ensure!(fs::read(&source)? == fs::read(&copy)?, "the copy differs");
    ensure!(fs::metadata(&copy)?.blocks() * 512 < 8 * MIB, "the copy's holes are filled");
    Ok(())
}

fn mounted(owner: &Owner, scratch: &Path) -> Result<()> {
    let mount = scratch.join("fuse");
    fs::create_dir(&mount)?;
    let path = mount.join("disk");
    let mut fuse = Command::new("nbdfuse");
    fuse.arg(&path).arg(owner.uri());
    let mut fuse = Process::start("nbdfuse", fuse, scratch)?;
    fuse.until("the file is there", SOON, || Ok(path.exists()))?;
    let used = || -> Result<()> {
        let file = File::options().read(true).write(true).open(&path)?;
        let bytes: Vec<u8> = (0..3 * MIB).map(|i| (i / 5 % 250) as u8).collect();
        file.write_all_at(&bytes, 40 * MIB + 123)?;
        file.sync_all()?;
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, 40 * MIB + 123)?;
        ensure!(back == bytes, "what was read is not what was written");
        Ok(())
    };
    let used = used();
    run(Command::new("fusermount3").arg("-u").arg(&mount))?;
    fuse.wait(SOON)?;
    used
}
