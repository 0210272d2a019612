//! The FlexVolume driver by direct calls, as old kubelets make them and as current ones do: installed by a real agent, with real
//! devices and mounts; and everything that is no call.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use torus_e2e::node::{Bed, NAME};

/// The longest argument that Linux passes to a program, its end included.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

fn text(path: &Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

#[test]
fn a_pod_of_an_old_kubelet_and_one_of_a_current_one() -> Result<()> {
    let Some(Bed { driver, mut host, cluster }) = Bed::start()? else { return Ok(()) };
    is_static(driver.program())?;
    let doctor = host.torusctl().args(["flex", "doctor", "--flexvolume-dir"]).arg(host.path("flexvolume")).output()?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(doctor.status.success(), "the doctor finds something: {said}");
    cluster.torusctl(["volume", "create", "pgvol", "256MiB"])?;
    let directory = host.path("kubelet/pod-1");
    let at = text(&directory);
    // As the manifests of the first Torus have it.
    let options = json!({
        "kubernetes.io/fsType": "ext4", "kubernetes.io/readwrite": "rw", "volume": "pgvol",
        "etcd": "10.0.0.1:2379", "writeLevel": "all", "writeCacheSize": "512MiB", "trim": "true",
    })
    .to_string();

    // attach JSON, mount DIR DEVICE JSON, unmount DIR, detach DEVICE; each twice, as after a kubelet that was killed.
    driver.must(&["init"])?;
    let device = driver.must(&["attach", &options])?["device"].as_str().context("a device")?.to_owned();
    ensure!(Path::new(&device).exists(), "{device} is not there");
    ensure!(driver.must(&["attach", &options])?["device"] == device.as_str(), "another device at the second call");
    for _ in 0..2 {
        driver.must(&["mount", at, &device, &options])?;
    }
    fs::write(directory.join("rows"), b"of a database")?;
    // A volume is in one place at a time.
    let elsewhere = host.path("kubelet/pod-2");
    let (answer, good) = driver.call(&["mount", text(&elsewhere), &device, &options])?;
    ensure!(!good && answer["message"].as_str().is_some_and(|said| said.contains(at)), "{answer}");
    for _ in 0..2 {
        driver.must(&["unmount", at])?;
    }
    for _ in 0..2 {
        driver.must(&["detach", &device])?;
    }
    host.must_be_bare()?;

    // mount DIR JSON, unmount DIR. A kubelet makes the directory first, and removes it afterwards.
    fs::create_dir_all(&directory)?;
    for _ in 0..2 {
        driver.must(&["mount", at, &options])?;
    }
    ensure!(fs::read(directory.join("rows"))? == b"of a database", "the data is not there");
    // The agent is killed in between: the next one knows what is mounted.
    host.kill_agent()?;
    host.start_agent()?;
    for _ in 0..2 {
        driver.must(&["unmount", at])?;
    }
    host.must_be_bare()?;

    // The calls of a kubelet whose controller attaches.
    ensure!(driver.must(&["getvolumename", &options])?["volumeName"] == "pgvol", "another name");
    ensure!(driver.must(&["isattached", &options, NAME])?["attached"] == false, "it is attached already");
    let (answer, good) = driver.call(&["attach", &options, "another-host"])?;
    ensure!(!good && answer.to_string().contains("another-host"), "{answer}");
    let device = driver.must(&["attach", &options, NAME])?["device"].as_str().context("a device")?.to_owned();
    ensure!(driver.must(&["waitforattach", &device, &options])?["device"] == device.as_str(), "another device");
    ensure!(driver.must(&["isattached", &options, NAME])?["attached"] == true, "it is not attached");
    driver.must(&["mountdevice", at, &device, &options])?;
    ensure!(fs::read(directory.join("rows"))? == b"of a database", "the data is not there");
    driver.must(&["unmountdevice", at])?;
    driver.must(&["detach", "pgvol", NAME])?;
    host.must_be_bare()?;

    // For reading only.
    let reading = json!({"volume": "pgvol", "kubernetes.io/readwrite": "ro"}).to_string();
    driver.must(&["mount", at, &reading])?;
    ensure!(fs::read(directory.join("rows"))? == b"of a database", "the data is not there");
    ensure!(fs::write(directory.join("new"), b"").is_err(), "a volume for reading takes writes");
    driver.must(&["unmount", at])?;
    // Another filesystem than the one that is there is not made.
    let (answer, good) = driver.call(&["mount", at, &options.replace("ext4", "xfs")])?;
    ensure!(!good && answer.to_string().contains("nothing was changed"), "{answer}");
    host.must_be_bare()?;

    // What is wrong is found, and said with what to do.
    host.kill_agent()?;
    let (answer, good) = driver.call(&["mount", at, &options])?;
    ensure!(!good && answer.to_string().contains("flex doctor"), "{answer}");
    fs::set_permissions(driver.program(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let doctor = host.torusctl().args(["flex", "doctor", "--flexvolume-dir"]).arg(host.path("flexvolume")).output()?;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(!doctor.status.success() && said.contains("chmod 755") && said.contains("--role node"), "{said}");
    Ok(())
}

/// Fails where the program needs a loader, and so libraries of the host.
fn is_static(program: &Path) -> Result<()> {
    let bytes = fs::read(program)?;
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "{} is no program", program.display());
    let number =
        |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0usize, |sum, byte| sum << 8 | *byte as usize);
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    const INTERPRETER: usize = 3;
    let needs = (0..count).any(|entry| number(table + entry * size, 4) == INTERPRETER);
    ensure!(!needs, "{} is not static", program.display());
    Ok(())
}

#[test]
fn whatever_it_is_called_with_it_answers_json_and_touches_nothing() -> Result<()> {
    let Some(Bed { driver, host, cluster }) = Bed::start()? else { return Ok(()) };
    cluster.torusctl(["volume", "create", "v", "64MiB"])?;
    let kubelet = host.path("kubelet");
    let outside = host.path("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("precious"), b"data")?;
    symlink(&outside, kubelet.join("link"))?;
    let good = text(&kubelet.join("pod")).to_owned();
    let options = r#"{"volume":"v"}"#;

    let own = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut calls: Vec<Vec<OsString>> = Vec::new();
    calls.extend([&[][..], &[""], &["--help"], &["-h"], &["mount"], &["init", "more"], &["expandfs", "x"]].map(own));
    // Places.
    let places = [
        text(&outside).to_owned(),
        text(&kubelet.join("link")).to_owned(),
        text(&kubelet.join("link/pod")).to_owned(),
        format!("{}/../outside/pod", text(&kubelet)),
        "/".into(),
        "/etc".into(),
        "relative".into(),
        "-o".into(),
        "--bind".into(),
        String::new(),
        format!("{}/a\nb", text(&kubelet)),
        format!("{}/{}", text(&kubelet), "x".repeat(5000)),
    ];
    for place in &places {
        calls.push(own(&["mount", place, options]));
        calls.push(own(&["mount", place, "/dev/loop0", options]));
        calls.push(own(&["mountdevice", place, "/dev/loop0", options]));
    }
    // Options.
    let huge = format!(r#"{{"volume":"{}"}}"#, "v".repeat(ARGUMENT_BYTES_MAX - 100));
    let deep = "[".repeat(ARGUMENT_BYTES_MAX - 1);
    let wide = format!("{{{}\"volume\":\"v\"}}", (0..4000).map(|n| format!("\"k{n}\":\"\",")).collect::<String>());
    let texts = [
        "",
        "null",
        "[]",
        "7",
        "\"v\"",
        "{",
        r#"{"volume":"v""#,
        r#"{"volume":null}"#,
        r#"{"volume":["v"]}"#,
        r#"{"volume":{"volume":"v"}}"#,
        r#"{"volume":""}"#,
        r#"{"volume":"../../etc"}"#,
        r#"{"volume":"-rf"}"#,
        r#"{"volume":"v\u0000"}"#,
        r#"{"volume":"V"}"#,
        r#"{"volume":"no-such-volume"}"#,
        r#"{"volume":"0123456789abcdef"}"#,
        r#"{"volume":"v","kubernetes.io/fsType":"ntfs"}"#,
        r#"{"volume":"v","kubernetes.io/fsType":"-o"}"#,
        r#"{"volume":"v","kubernetes.io/readwrite":"maybe"}"#,
        r#"{"volume":"v","trim":"-1"}"#,
        r#"{"volume":"v","sudo":"true"}"#,
        r#"{"volume":"v"} {"volume":"v"}"#,
        &huge,
        &deep,
        &wide,
    ];
    for options in texts {
        calls.extend([
            own(&["mount", &good, options]),
            own(&["mount", &good, "/dev/loop0", options]),
            own(&["attach", options]),
            own(&["attach", options, NAME]),
            own(&["waitforattach", "/dev/loop0", options]),
        ]);
    }
    // Bytes that are no text.
    let broken = OsString::from_vec(vec![b'/', 0xff, 0xfe]);
    for word in ["mount", "unmount", "attach", "detach", "getvolumename"] {
        calls.push(vec![word.into(), broken.clone(), options.into()]);
    }
    // Devices, and what is no one's.
    for device in ["-a", "--all", "/dev/../etc/passwd;reboot", "a b", "$(reboot)", ""] {
        calls.push(own(&["detach", device]));
    }
    for call in &calls {
        let (answer, good) = driver.call(call).with_context(|| shown(call))?;
        let said = answer["message"].as_str().unwrap_or_default();
        ensure!(!good && answer["status"] != "Success" && !said.is_empty(), "{}: {answer}", shown(call));
        ensure!(said.len() <= 4096, "{}: a message of {} bytes", shown(call), said.len());
    }
    println!("{} calls refused", calls.len());
    // Unmounting what is not mounted is done: an old kubelet repeats it until it hears so. Elsewhere it is refused.
    driver.must(&["unmount", &good])?;
    for place in ["/proc", text(&outside), text(&kubelet.join("link/x"))] {
        let (answer, good) = driver.call(&["unmount", place])?;
        ensure!(!good, "unmount {place}: {answer}");
    }
    ensure!(Path::new("/proc/self").exists(), "/proc was unmounted");
    let left: Vec<PathBuf> =
        fs::read_dir(&outside)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    ensure!(left == [outside.join("precious")] && fs::read(&left[0])? == b"data", "{left:?} is outside");
    host.must_be_bare()
}

fn shown(call: &[OsString]) -> String {
    let words = call.iter().map(|word| OsStr::to_string_lossy(word).chars().take(100).collect::<String>());
    words.collect::<Vec<_>>().join(" ")
}
