//! csi-sanity, the conformance tests of the Container Storage Interface, against Torus's programs: real sockets, real agents, a
//! real etcd, FUSE and loop devices, real mounts.
//!
//! Every spec passes, or says itself why it does not apply: because of a capability that Torus does not advertise. Which those
//! are stands in `docs/KUBERNETES.md`; a spec that is skipped for another reason fails this test.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::kube::{Progress, go};
use torus_e2e::node::Host;

const MIB: u64 = 1 << 20;

/// What specs say that are skipped for good reason, and how many of them there are, in every run.
const SKIPPED: &[(&str, usize)] = &[
    // Snapshots and clones.
    ("CreateSnapshot not supported", 6),
    ("DeleteSnapshot not supported", 3),
    ("GetSnapshot not supported", 3),
    ("ListSnapshots not supported", 7),
    ("Snapshot not supported", 2),
    ("GroupControllerService not supported", 6),
    ("Volume Cloning not supported", 2),
    // Parameters that change later.
    ("ControllerModifyVolume not supported", 6),
    ("Modify Volume not supported", 1),
    ("Modify volume not supported", 1),
    // What CSI 1.13 has in the place of the volume condition that is served.
    ("ControllerGetVolumeHealth not supported", 2),
    ("ControllerListVolumeHealth not supported", 1),
    ("NodeGetVolumeHealth not supported", 2),
    ("NodeGetStorageHealth not supported", 1),
    // No node has a limit.
    ("testnodevolumeattachlimit not enabled", 1),
    // csi-sanity's own, for every driver.
    (
        "pending: Controller Service [Controller Server] / ListVolumes / pagination should detect volumes added between \
         pages and accept tokens when the last volume from a page is deleted",
        1,
    ),
];

#[test]
fn every_spec_passes_or_does_not_apply() -> Result<()> {
    if let Some(why) = Host::impossible() {
        eprintln!("skipped: {why}");
        return Ok(());
    }
    let sanity = go::SANITY.program("csi-sanity", &Progress::default())?;
    let options = Options {
        disk_size: "4GiB".into(),
        extent_size: "4MiB".into(),
        agent_flags: ["--fill", "reserve", "--buffered-io"].map(str::to_owned).into(),
        profile: "dev".into(),
        ..Options::default()
    };
    let cluster = Cluster::start(options)?;
    let mut host = Host::start(&cluster)?;
    host.start_csi()?;
    for access in ["mount", "block"] {
        println!("volumes as {access}");
        run(&sanity, &host, access)?;
        host.must_be_bare()?;
        ensure!(cluster.torusctl(["volume", "list", "-o", "json"])?.trim() == "[]", "volumes are left over");
    }
    Ok(())
}

fn run(sanity: &std::path::Path, host: &Host, access: &str) -> Result<()> {
    let parameters = host.path("parameters.yaml");
    fs::write(&parameters, "replicas: \"2\"\ncsi.storage.k8s.io/fstype: ext4\n")?;
    let report = host.path(&format!("sanity-{access}.json"));
    let kubelet = host.path("kubelet");
    let output = Command::new(sanity)
        .arg(format!("--csi.endpoint=unix://{}", host.path("csi.sock").display()))
        .arg(format!("--csi.controllerendpoint=unix://{}", host.path("controller.sock").display()))
        .arg(format!("--csi.stagingdir={}", kubelet.join("staging").display()))
        .arg(format!("--csi.mountdir={}", kubelet.join("target").display()))
        .arg(format!("--csi.testvolumeparameters={}", parameters.display()))
        .arg(format!("--csi.testvolumesize={}", 64 * MIB))
        .arg(format!("--csi.testvolumeexpandsize={}", 128 * MIB))
        .arg(format!("--csi.testvolumeaccesstype={access}"))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .args(["--ginkgo.no-color", "--ginkgo.v"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run csi-sanity")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    fs::write(host.path(&format!("sanity-{access}.log")), &said)?;
    let report: Value = serde_json::from_slice(&fs::read(&report).context("csi-sanity has written no report")?)?;
    let mut failed = Vec::new();
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    let mut passed = 0;
    for spec in report[0]["SpecReports"].as_array().context("a list of specs")? {
        let name = || {
            let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let texts = texts.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
            texts.collect::<Vec<_>>().join(" / ")
        };
        let why = spec["Failure"]["Message"].as_str().unwrap_or_default();
        match spec["State"].as_str() {
            Some("passed") => passed += 1,
            Some("skipped") => *skipped.entry(why.to_owned()).or_default() += 1,
            Some("pending") => *skipped.entry(format!("pending: {}", name())).or_default() += 1,
            state => failed.push(format!("{} ({}): {why}", name(), state.unwrap_or("?"))),
        }
    }
    println!("csi-sanity, {access}: {passed} passed, {} skipped", skipped.values().sum::<usize>());
    for (why, count) in &skipped {
        println!("  {count} skipped: {why}");
    }
    ensure!(failed.is_empty(), "{} specs failed:\n{}", failed.len(), failed.join("\n"));
    ensure!(output.status.success(), "csi-sanity ended with {}: {said}", output.status);
    let expected: BTreeMap<_, _> = SKIPPED.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect();
    ensure!(skipped == expected, "other specs are skipped than docs/KUBERNETES.md says: {skipped:#?}");
    Ok(())
}
