//! Filesystems on attached volumes: real agents, a real etcd, the kernel's own ext4 and XFS.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::load::fsx::Fsx;
use torus_e2e::load::{LoadError, fsstress};
use torus_e2e::process::until;

/// How long there is load where it is not counted in operations.
const LOAD: Duration = Duration::from_secs(4);
/// How long the loads may take to notice that their disk is gone.
const NOTICED: Duration = Duration::from_secs(60);
/// How often it is trimmed meanwhile.
const TRIM_PAUSE: Duration = Duration::from_secs(1);
/// How long trimmed space may take to be free again.
const FREED: Duration = Duration::from_secs(60);

fn cluster() -> Result<Cluster> {
    let options = Options {
        disk_size: "2GiB".into(),
        // Small ones: an owner leaves a few extents half full, and here space is measured.
        extent_size: "4MiB".into(),
        agent_flags: ["--fill", "reserve", "--buffered-io"].map(str::to_owned).into(),
        profile: "dev".into(),
        ..Options::default()
    };
    Cluster::start(options)
}

fn directory(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let path = cluster.path().join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

/// What a command that must be refused said; its exit code is checked.
fn refused(cluster: &Cluster, code: i32, args: &[&str]) -> Result<String> {
    match cluster.torusctl(args.iter().copied()) {
        Ok(said) => bail!("{args:?} was not refused: {said}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(&format!("exit status: {code}")), "{args:?}: {text}");
            Ok(text)
        }
    }
}

/// The device of a volume that is attached without being mounted.
fn device(cluster: &Cluster, volume: &str) -> Result<String> {
    let attached = cluster.torusctl_json(["attach", volume])?;
    attached["device"].as_str().map(str::to_owned).context("an attached volume has a device")
}

/// Has the filesystem's own checker look at it, changing nothing.
fn must_be_clean(cluster: &Cluster, volume: &str, kind: &str) -> Result<()> {
    let device = device(cluster, volume)?;
    let (program, args) = match kind {
        "ext4" => ("e2fsck", ["-fn"]),
        _ => ("xfs_repair", ["-n"]),
    };
    let output = Command::new(program).args(args).arg(&device).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} of {volume}: {said}");
    cluster.torusctl(["detach", volume]).map(drop)
}

fn free_bytes(cluster: &Cluster) -> Result<u64> {
    let peers = cluster.torusctl_json(["peer", "list"])?;
    let peers = peers.as_array().context("a list")?;
    Ok(peers.iter().filter_map(|peer| peer["free_bytes"].as_u64()).sum())
}

fn ended_well(trees: Vec<(fsstress::Tree, Result<(), LoadError>)>) -> Result<Vec<fsstress::Tree>> {
    trees.into_iter().map(|(tree, result)| Ok(result.map(|()| tree)?)).collect()
}

#[test]
fn ext4_survives_the_death_of_its_owner() -> Result<()> {
    survives("ext4")
}

#[test]
fn xfs_survives_the_death_of_its_owner() -> Result<()> {
    survives("xfs")
}

fn survives(kind: &str) -> Result<()> {
    let cluster = cluster()?;
    let mount = directory(&cluster, "mnt")?;
    let attach = ["attach", "fs", "--mount", text(&mount), "--fs", kind];
    cluster.torusctl(["volume", "create", "fs", "512MiB"])?;
    cluster.torusctl(attach)?;

    // While nothing breaks: every byte is right, also after everything was unmounted and another process serves.
    let stress = fsstress::start(&mount, 3, 1)?;
    let mut fsx = Fsx::create(&mount.join("fsx"), 7)?;
    let started = Instant::now();
    while started.elapsed() < LOAD {
        fsx.step()?;
    }
    let trees = ended_well(stress.stop())?;
    fsx.close();
    cluster.torusctl(["detach", "fs"])?;
    ensure!(!mount.join("fsx").exists(), "still mounted after detaching");
    must_be_clean(&cluster, "fs", kind)?;
    cluster.torusctl(attach)?;
    fsx.check()?;
    trees.iter().try_for_each(fsstress::Tree::check)?;
    let operations = trees.iter().map(fsstress::Tree::operations).sum::<u64>();
    println!("{kind}: {} operations on one file, {operations} on many", fsx.operations());

    // Its owner dies in the middle of it.
    let second = directory(&cluster, "mnt/second")?;
    let stress = fsstress::start(&second, 3, 100)?;
    let mut fsx = Fsx::create(&second.join("fsx"), 8)?;
    let started = Instant::now();
    while started.elapsed() < LOAD {
        fsx.step()?;
    }
    cluster.kill_owner_of("fs")?;
    let killed = Instant::now();
    let error = loop {
        match fsx.step() {
            Ok(()) => ensure!(killed.elapsed() < NOTICED, "a dead disk was not noticed"),
            Err(error) => break error,
        }
    };
    ensure!(matches!(error, LoadError::Io(_)), "{error}");
    // Threads that only read what is cached notice nothing: they are told.
    let trees = stress.stop();
    for (_, result) in &trees {
        ensure!(!matches!(result, Err(LoadError::Wrong(_))), "{result:?}");
    }
    fsx.close();

    let said = cluster.torusctl(attach.into_iter().chain(["--fence"]))?;
    ensure!(said.contains("attached"), "{said}");
    let bytes = fsx.check_synced()?;
    let mut files = 0;
    for (tree, _) in &trees {
        files += tree.check_synced()?;
    }
    println!("{kind}: after the death, {bytes} synced bytes of one file and {files} synced files are as they were");
    ensure!(bytes > 0 && files > 0, "nothing was synced: the load is too short to say anything");
    cluster.torusctl(["detach", "fs"])?;
    must_be_clean(&cluster, "fs", kind)?;
    cluster.torusctl(attach)?;

    gives_space_back(&cluster, &mount)?;
    cluster.torusctl(["detach", text(&mount)])?;
    ensure!(cluster.torusctl_json(["attached"])?.as_array().is_some_and(Vec::is_empty), "something is left");
    Ok(())
}

/// What was written to a file is free in the pool again after the file was removed and the filesystem trimmed.
fn gives_space_back(cluster: &Cluster, mount: &Path) -> Result<()> {
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let status = Command::new(program).args(args).status()?;
        ensure!(status.success(), "{program} {args:?}: {status}");
        Ok(())
    };
    const FILE_BYTES: u64 = 240 << 20;
    // What an owner keeps, twice: garbage of eight extents and half of what is live (the filesystem's journal above all)
    // before it collects, and the extents that are open.
    const SLACK_BYTES: u64 = 192 << 20;
    for entry in fs::read_dir(mount)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("lost+found") {
            fs::remove_dir_all(path)?
        } else if path.is_file() {
            fs::remove_file(path)?
        }
    }
    // What was removed can be trimmed when that is in the journal.
    let trim = || run("sync", &["-f", text(mount)]).and_then(|()| run("fstrim", &[text(mount)]));
    trim()?;
    let big = mount.join("big");
    let before = free_bytes(cluster)?;
    run("dd", &["if=/dev/urandom", &format!("of={}", text(&big)), "bs=1M", "count=240", "conv=fsync", "status=none"])?;
    until("the pool is fuller", FREED, || Ok(free_bytes(cluster)? + 2 * FILE_BYTES - SLACK_BYTES < before))?;
    fs::remove_file(&big)?;
    trim()?;
    let trimmed = Instant::now();
    let filled = free_bytes(cluster)?;
    // XFS frees the blocks of a removed file in the background, and trims what is free by then.
    let trimmed_again = || {
        std::thread::sleep(TRIM_PAUSE);
        trim()?;
        Ok(free_bytes(cluster)? + SLACK_BYTES > before)
    };
    until("trimmed space is free", FREED, trimmed_again).with_context(|| {
        let now = free_bytes(cluster).map(|bytes| bytes >> 20);
        format!("MiB free: {} at first, {} with the file, {now:?} now", before >> 20, filled >> 20)
    })?;
    println!("space was back {:.1} s after fstrim", trimmed.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_refused_and_nothing_is_changed() -> Result<()> {
    let cluster = cluster()?;
    let (a, b) = (directory(&cluster, "a")?, directory(&cluster, "b")?);
    let file = cluster.path().join("file");
    fs::write(&file, b"")?;
    for volume in ["db", "other", "held"] {
        cluster.torusctl(["volume", "create", volume, "512MiB"])?;
    }

    let said = refused(&cluster, 1, &["attach", "nothing"])?;
    ensure!(said.contains("there is no volume \"nothing\""), "{said}");
    let said = refused(&cluster, 2, &["attach", "db", "--mount", text(&file)])?;
    ensure!(said.contains("not a directory"), "{said}");
    let said = refused(&cluster, 2, &["attach", "db", "--mount", "/no/such/place"])?;
    ensure!(said.contains("make that directory first"), "{said}");
    let said = refused(&cluster, 3, &["attach", "db", "--mount", "/proc"])?;
    ensure!(said.contains("is mounted there already"), "{said}");
    let said = refused(&cluster, 2, &["attach", "db", "--mount", text(&a), "--fs", "ntfs"])?;
    ensure!(said.contains("ext4 or xfs"), "{said}");
    let said = refused(&cluster, 2, &["attach", "db", "--fs", "xfs"])?;
    ensure!(said.contains("--mount"), "{said}");
    let said = refused(&cluster, 3, &["attach", "db", "--mount", text(&a), "--read-only"])?;
    ensure!(said.contains("is empty and attached read-only"), "{said}");
    let said = refused(&cluster, 1, &["detach", "db"])?;
    ensure!(said.contains("nothing called \"db\" is attached"), "{said}");
    ensure!(cluster.torusctl_json(["attached"])? == serde_json::json!([]), "a refused attach left something");

    let owner = cluster.serve("owner", "held", false)?;
    let said = refused(&cluster, 3, &["attach", "held"])?;
    ensure!(said.contains("held by") && said.contains("--fence"), "{said}");
    owner.stop()?;

    // A volume that is attached and mounted: again is no error, anything else is.
    cluster.torusctl(["attach", "db", "--mount", text(&a), "--fs", "xfs"])?;
    fs::write(a.join("mine"), b"kept")?;
    let said = cluster.torusctl(["attach", "db", "--mount", text(&a)])?;
    ensure!(said.contains("already attached"), "{said}");
    let said = refused(&cluster, 3, &["attach", "db", "--mount", text(&b)])?;
    ensure!(said.contains("already") && said.contains(text(&a)), "{said}");
    let said = refused(&cluster, 3, &["attach", "other", "--mount", text(&a)])?;
    ensure!(said.contains("is mounted there already"), "{said}");

    // Somebody uses it.
    let mut user = Command::new("sleep").arg("600").current_dir(&a).spawn()?;
    let said = refused(&cluster, 3, &["detach", "db"]);
    user.kill()?;
    user.wait()?;
    let said = said?;
    ensure!(said.contains(&format!("process {} sleep", user.id())), "{said}");
    cluster.torusctl(["detach", "db"])?;

    // Another filesystem than the one that is there, and bytes that are none.
    let said = refused(&cluster, 3, &["attach", "db", "--mount", text(&a), "--fs", "ext4"])?;
    ensure!(said.contains("holds xfs, not ext4"), "{said}");
    let node = device(&cluster, "other")?;
    fs::write(&node, b"something")?;
    cluster.torusctl(["detach", &node])?;
    let said = refused(&cluster, 3, &["attach", "other", "--mount", text(&b)])?;
    ensure!(said.contains("holds data that is no filesystem"), "{said}");
    ensure!(cluster.torusctl_json(["attached"])? == serde_json::json!([]), "a refused attach left something");

    // Nothing of all that has changed what is there; and read-only is read-only.
    cluster.torusctl(["attach", "db", "--mount", text(&a), "--read-only"])?;
    ensure!(fs::read(a.join("mine"))? == b"kept", "the file is gone");
    ensure!(fs::write(a.join("new"), b"").is_err(), "a read-only volume took a file");
    cluster.torusctl(["detach", text(&a)])?;
    let node = device(&cluster, "other")?;
    ensure!(fs::read(&node)?.starts_with(b"something"), "the bytes are gone");
    cluster.torusctl(["detach", "other"])?;
    Ok(())
}

#[test]
fn a_device_grows_with_its_volume_and_goes_with_its_process() -> Result<()> {
    let cluster = cluster()?;
    let mount = directory(&cluster, "mnt")?;
    cluster.torusctl(["volume", "create", "db", "400MiB"])?;
    cluster.torusctl(["attach", "db", "--mount", text(&mount), "--fs", "xfs"])?;
    let blocks = || -> Result<u64> { Ok(nix::sys::statvfs::statvfs(&mount)?.blocks()) };
    let before = blocks()?;
    cluster.torusctl(["volume", "resize", "db", "800MiB"])?;
    until("the filesystem has grown", FREED, || Ok(blocks()? > before * 3 / 2))?;

    // A process that died: shown, and put in order by whatever comes next.
    cluster.kill_owner_of("db")?;
    let attached = cluster.torusctl_json(["attached"])?;
    ensure!(attached[0]["served"] == false, "{attached}");
    ensure!(cluster.torusctl(["attached"])?.contains("dead"), "a dead device is listed as one");
    cluster.torusctl(["detach", "db"])?;
    ensure!(!fs::read_to_string("/proc/self/mountinfo")?.contains(text(cluster.path())), "something is still mounted");

    // An ext4 that the kernel would not let grow while it was mounted grows when it is mounted next.
    cluster.torusctl(["volume", "create", "small", "300MiB"])?;
    let attach = ["attach", "small", "--mount", text(&mount), "--fs", "ext4"];
    cluster.torusctl(attach)?;
    let before = blocks()?;
    cluster.torusctl(["detach", "small"])?;
    cluster.torusctl(["volume", "resize", "small", "600MiB"])?;
    cluster.torusctl(attach)?;
    ensure!(blocks()? > before * 3 / 2, "{before} blocks before, {} after", blocks()?);
    cluster.torusctl(["detach", "small"]).map(drop)
}
