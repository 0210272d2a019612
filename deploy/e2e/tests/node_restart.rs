//! Agents of role `node` that are killed, stopped and replaced while volumes are mounted and written to, with FUSE and loop
//! devices: what those who use a volume see of it.
//!
//! With a holder on the host, a pause. Without one, errors; but no hang, and everything that was synced is there when the volume
//! is attached again.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use torus_e2e::flexvolume::Driver;
use torus_e2e::load::fsx::Fsx;
use torus_e2e::load::{LoadError, Random, fsstress};
use torus_e2e::node::Bed;
use torus_e2e::process::until;

/// For how long there is load before, and after, an agent goes.
const LOAD: Duration = Duration::from_secs(2);
/// How long the load may take to notice that its disk is gone.
const NOTICED: Duration = Duration::from_secs(60);
/// How long a new agent may take until a device works again.
const BACK: Duration = Duration::from_secs(60);

/// Makes a volume and mounts it as a kubelet has it done.
fn mount(bed: &Bed, volume: &str, kind: &str) -> Result<PathBuf> {
    bed.cluster.torusctl(["volume", "create", volume, "512MiB"])?;
    let directory = bed.host.path("kubelet").join(volume);
    bed.driver.mount(&directory, volume, kind)?;
    Ok(directory)
}

fn unmount(bed: &Bed, volume: &str) -> Result<()> {
    bed.driver.unmount(&bed.host.path("kubelet").join(volume))
}

/// Makes a call, kills the agent at some moment of it, and makes it again until it is done.
fn interrupted(bed: &mut Bed, random: &mut Random, call: impl Fn(&Driver) -> Result<()> + Sync) -> Result<()> {
    let driver = bed.driver.clone();
    let after = Duration::from_millis(random.below(700));
    let first = std::thread::scope(|scope| {
        let calling = scope.spawn(|| call(&driver));
        std::thread::sleep(after);
        let killed = bed.host.kill_agent();
        let ended = calling.join().unwrap_or_else(|_| bail!("the call panicked"));
        killed.map(|()| ended)
    })?;
    let waited = Instant::now();
    bed.host.start_agent()?;
    let mut last = None;
    until("a call that was interrupted is done", BACK, || {
        last = call(&bed.driver).err();
        Ok(last.is_none())
    })
    .with_context(|| format!("{last:?}"))?;
    let cut = if first.is_ok() { "done" } else { "cut off" };
    println!("{cut} after {after:?}, done again {:?} later", waited.elapsed());
    Ok(())
}

fn is_abnormal(bed: &Bed, volume: &str) -> Result<bool> {
    let record = fs::read_to_string(bed.host.path("attached").join(id(bed, volume)?).join("record.json"))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    Ok(!record["lost"].is_null())
}

fn id(bed: &Bed, volume: &str) -> Result<String> {
    let info = bed.cluster.torusctl_json(["volume", "info", volume])?;
    Ok(info["id"].as_str().context("a volume has an id")?.to_owned())
}

fn load(fsx: &mut Fsx) -> Result<Duration> {
    let started = Instant::now();
    let mut longest = Duration::ZERO;
    while started.elapsed() < LOAD {
        let step = Instant::now();
        fsx.step()?;
        longest = longest.max(step.elapsed());
    }
    Ok(longest)
}

#[test]
fn an_agent_is_replaced_and_nobody_sees_an_error() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.host.start_holder(300)?;
    for kind in ["ext4", "xfs"] {
        let mount = mount(&bed, kind, kind)?;
        let stress = fsstress::start(&mount, 2, 1)?;
        let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
        load(&mut fsx)?;
        ensure!(
            bed.host.metric("torus_volume_serving")? == 1.0,
            "the agent does not tell of the volume that it serves"
        );
        ensure!(bed.host.metric("torus_volume_user_bytes_total")? > 0.0, "the agent does not tell of what was written");
        for round in 0..3 {
            match round {
                0 | 2 => bed.host.kill_agent()?,
                _ => bed.host.stop_agent()?,
            }
            bed.host.start_agent()?;
            let longest = load(&mut fsx)?;
            println!("{kind}, round {round}: the longest operation afterwards took {longest:?}");
        }
        let trees = stress.stop();
        fsx.check()?;
        for (tree, result) in trees {
            result?;
            tree.check()?;
        }
        fsx.close();
        ensure!(!is_abnormal(&bed, kind)?, "the volume's record says that it was lost");
        unmount(&bed, kind)?;
        ensure!(bed.host.metric("torus_volume_serving").is_err(), "the agent tells of a volume that it has let go");
        // From the disks of the agents, and not from the kernel's memory.
        bed.driver.mount(&mount, kind, kind)?;
        fsx.check()?;
        unmount(&bed, kind)?;
    }
    bed.host.must_be_bare()
}

#[test]
fn a_volume_that_grows_while_no_agent_runs_has_grown_afterwards() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.host.start_holder(300)?;
    let mount = mount(&bed, "grows", "xfs")?;
    let blocks = || -> Result<u64> { Ok(nix::sys::statvfs::statvfs(&mount)?.blocks()) };
    let before = blocks()?;
    bed.host.kill_agent()?;
    bed.cluster.torusctl(["volume", "resize", "grows", "1GiB"])?;
    bed.host.start_agent()?;
    until("the filesystem has grown", BACK, || Ok(blocks()? > before * 3 / 2))?;
    unmount(&bed, "grows")?;
    bed.host.must_be_bare()
}

#[test]
fn a_holder_is_replaced_before_the_agent_is() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    // One that comes after the volume was mounted.
    let mount = mount(&bed, "late", "ext4")?;
    bed.host.start_holder(300)?;
    let held = |bed: &Bed| -> Result<usize> {
        let holder = bed.host.holder.as_ref().context("there is a holder")?;
        let log = fs::read_to_string(holder.log())?;
        Ok(log.matches("keeping ").count())
    };
    until("the holder has the device", BACK, || Ok(held(&bed)? == 1))?;
    // And one in the place of that one.
    bed.host.start_holder(300)?;
    until("the next holder has the device", BACK, || Ok(held(&bed)? == 2))?;
    let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
    load(&mut fsx)?;
    bed.host.kill_agent()?;
    bed.host.start_agent()?;
    load(&mut fsx)?;
    fsx.check()?;
    fsx.close();
    unmount(&bed, "late")?;
    bed.host.must_be_bare()
}

/// While a volume is attached, formatted, mounted, unmounted and detached, a device is not held; and what was begun is finished, or
/// undone, by the next agent.
#[test]
fn an_agent_is_killed_at_any_moment() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.host.start_holder(300)?;
    let mut random = Random(3);
    for round in 0..8 {
        // A new one each time, so that there is a filesystem to be made.
        let volume = format!("any-{round}");
        bed.cluster.torusctl(["volume", "create", &volume, "256MiB"])?;
        let directory = bed.host.path("kubelet").join(&volume);
        let mount = |driver: &Driver| driver.mount(&directory, &volume, "ext4");
        let unmount = |driver: &Driver| driver.unmount(&directory);
        interrupted(&mut bed, &mut random, mount)?;
        // Synced, as an unmounting that is cut short writes nothing back.
        let mut file = File::create(directory.join("file"))?;
        file.write_all(volume.as_bytes())?;
        file.sync_all()?;
        drop(file);
        File::open(&directory)?.sync_all()?;
        interrupted(&mut bed, &mut random, unmount)?;
        bed.host.must_be_bare()?;
        bed.driver.mount(&directory, &volume, "ext4")?;
        ensure!(fs::read(directory.join("file"))? == volume.as_bytes(), "the file is not there");
        bed.driver.unmount(&directory)?;
        bed.host.must_be_bare()?;
    }
    Ok(())
}

/// The agent goes in the middle of mkfs: what that has written so far is nobody's, and the next agent makes the filesystem anew.
#[test]
fn a_filesystem_that_was_being_made_is_made_anew() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.cluster.torusctl(["volume", "create", "half", "256MiB"])?;
    let (directory, tools) = (bed.host.path("kubelet").join("half"), bed.host.path("tools"));
    let (mkfs, begun) = (tools.join("mkfs.ext4"), tools.join("begun"));
    fs::create_dir(&tools)?;
    let script = "#!/bin/sh\nfor device; do :; done\n\
        dd if=/dev/urandom of=\"$device\" bs=4k count=64 conv=notrunc,fsync && touch \"${0%/*}/begun\"\n\
        while kill -0 $PPID; do sleep 0.1; done\n";
    // By another process: a child that is started here meanwhile would have it open for writing too, and keep it from being run.
    let mut write = Command::new("sh");
    write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"", "sh", script]).arg(&mkfs);
    ensure!(write.status()?.success(), "the program cannot be written");

    let driver = bed.driver.clone();
    let cut_off = std::thread::scope(|scope| {
        let calling = scope.spawn(|| driver.mount(&directory, "half", "ext4"));
        let waited = until("mkfs has begun", BACK, || Ok(begun.exists()));
        let killed = waited.and_then(|()| bed.host.kill_agent());
        let ended = calling.join().unwrap_or_else(|_| bail!("the call panicked"));
        killed.map(|()| ended)
    })?;
    ensure!(cut_off.is_err(), "it was mounted without a filesystem");
    fs::remove_file(&mkfs)?;
    bed.host.start_agent()?;
    until("it is mounted", BACK, || Ok(bed.driver.mount(&directory, "half", "ext4").is_ok()))?;
    fs::write(directory.join("file"), b"there")?;
    unmount(&bed, "half")?;
    bed.driver.mount(&directory, "half", "ext4")?;
    ensure!(fs::read(directory.join("file"))? == b"there", "the file is not there");
    unmount(&bed, "half")?;
    bed.host.must_be_bare()
}

#[test]
fn nobody_waits_for_ever_for_an_agent_that_does_not_come() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.host.start_holder(3)?;
    let mount = mount(&bed, "dead", "ext4")?;
    let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
    load(&mut fsx)?;
    let killed = Instant::now();
    bed.host.kill_agent()?;
    let error = errors(&mut fsx, killed)?;
    println!("errors after {:?}: {error}", killed.elapsed());
    fsx.close();
    comes_back(&mut bed, &mount, "dead", &fsx)
}

#[test]
fn without_a_holder_there_are_errors_and_the_next_agent_mends_it() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    let mount = mount(&bed, "alone", "xfs")?;
    let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
    load(&mut fsx)?;
    let killed = Instant::now();
    bed.host.kill_agent()?;
    errors(&mut fsx, killed)?;
    fsx.close();
    comes_back(&mut bed, &mount, "alone", &fsx)
}

#[test]
fn agent_and_holder_die_together() -> Result<()> {
    let Some(mut bed) = Bed::start()? else { return Ok(()) };
    bed.host.start_holder(300)?;
    let mount = mount(&bed, "both", "ext4")?;
    let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
    load(&mut fsx)?;
    let killed = Instant::now();
    bed.host.kill_agent()?;
    bed.host.holder = None;
    errors(&mut fsx, killed)?;
    fsx.close();
    bed.host.start_holder(300)?;
    comes_back(&mut bed, &mount, "both", &fsx)
}

/// Goes on until there is an error, and says which.
fn errors(fsx: &mut Fsx, since: Instant) -> Result<LoadError> {
    let error = loop {
        match fsx.step() {
            Ok(()) => ensure!(since.elapsed() < NOTICED, "a dead disk was not noticed"),
            Err(error) => break error,
        }
    };
    ensure!(matches!(error, LoadError::Io(_)), "{error}");
    Ok(error)
}

/// The next agent attaches and mounts again, by itself, what died with the last one.
fn comes_back(bed: &mut Bed, mount: &Path, volume: &str, fsx: &Fsx) -> Result<()> {
    let waited = Instant::now();
    bed.host.start_agent()?;
    let bytes = fsx.check_synced()?;
    ensure!(bytes > 0, "nothing was synced: the load is too short to say anything");
    println!("{bytes} synced bytes are as they were, {:?} after the next agent began", waited.elapsed());
    fs::write(mount.join("more"), b"written afterwards")?;
    unmount(bed, volume)?;
    bed.driver.mount(mount, volume, "")?;
    ensure!(fs::read(mount.join("more"))? == b"written afterwards", "what was written afterwards is not there");
    unmount(bed, volume)?;
    let left = Command::new("losetup").arg("--list").output()?;
    bed.host.must_be_bare().with_context(|| String::from_utf8_lossy(&left.stdout).into_owned())
}
