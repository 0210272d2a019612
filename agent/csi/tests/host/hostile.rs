//! Requests that nobody in his right mind makes: each is refused with a status that says why, and nothing is touched outside.

use crate::world::{MIB, NODE, World, block, code, mounted};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::{Code, Request};
use torus_agent::node::mounts;
use torus_proto::csi::controller_server::Controller as _;
use torus_proto::csi::node_server::Node as _;
use torus_proto::csi::volume_capability::access_mode::Mode;
use torus_proto::csi::volume_capability::{AccessType, MountVolume};
use torus_proto::csi::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, NodeGetInfoRequest, VolumeCapability,
};

/// A busy machine may take as long for what should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn nothing_is_touched_outside() {
    let world = World::new();
    let use_ = mounted("", Mode::SingleNodeWriter);
    let id = world.create("pvc-paths", &use_);
    world.permit(&id, &use_);
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"data").unwrap();
    let staging = world.path("staging");
    fs::create_dir(&staging).unwrap();
    std::os::unix::fs::symlink(&outside, world.path("link")).unwrap();
    let through = world.path("link/target");
    let up = world.path("../outside");
    let bad = [outside.to_str().unwrap(), &up, &world.path("link"), &through, "relative", "-o", "/", "/etc", "a\0b"]
        .map(str::to_owned);
    for path in &bad {
        assert_eq!(code(world.stage(&id, path, &use_)), Code::InvalidArgument, "{path:?}");
    }
    world.stage(&id, &staging, &use_).unwrap();
    for path in &bad {
        assert_eq!(code(world.publish(&id, &staging, path, &use_, false)), Code::InvalidArgument, "{path:?}");
        assert_eq!(code(world.unpublish(&id, path)), Code::InvalidArgument, "{path:?}");
        assert_eq!(code(world.stats(&id, path).map(drop)), Code::NotFound, "{path:?}");
        let expanded = code(world.expand(&id, path, 64 * MIB).map(drop));
        assert!(matches!(expanded, Code::InvalidArgument | Code::NotFound), "{path:?}: {expanded}");
    }
    for handle in ["made-up", "../../etc", "-rf", "pvc-paths", "0123456789abcdef"] {
        assert_eq!(
            code(world.publish(handle, &staging, &world.path("t"), &use_, false)),
            if handle.len() == 16 { Code::FailedPrecondition } else { Code::NotFound },
            "{handle}"
        );
        assert_eq!(code(world.unstage(handle, &world.path("other"))), Code::Ok, "{handle}");
        assert_eq!(code(world.stats(handle, &staging).map(drop)), Code::NotFound, "{handle}");
        assert_eq!(world.grow(handle, 64 * MIB).unwrap_err().code(), Code::NotFound, "{handle}");
    }
    let flags = VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: vec!["bind".into()],
            ..MountVolume::default()
        })),
        ..use_.clone()
    };
    assert_eq!(code(world.stage(&id, &staging, &flags)), Code::InvalidArgument);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"data");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    world.unstage(&id, &staging).unwrap();
    world.forbid_and_delete(&id);
    let info = world.runtime.block_on(world.plugin.node_get_info(Request::new(NodeGetInfoRequest {}))).unwrap();
    assert_eq!(info.into_inner().node_id, NODE);
}

#[test]
fn a_path_that_changes_meanwhile_leads_nowhere_else() {
    let world = World::new();
    let use_ = mounted("ext4", Mode::SingleNodeMultiWriter);
    let id = world.create("pvc-race", &use_);
    world.permit(&id, &use_);
    let outside = world.dir.path().join("outside");
    for place in ["target", "staging"] {
        fs::create_dir_all(outside.join(place)).unwrap();
    }
    fs::write(outside.join("precious"), b"data").unwrap();
    let (middle, other) = (world.path("middle"), world.path("other"));
    let (staging, target) = (world.path("middle/staging"), world.path("middle/target"));
    fs::create_dir_all(&staging).unwrap();
    std::os::unix::fs::symlink(&outside, &other).unwrap();
    let stop = AtomicBool::new(false);
    let mut done = 0;
    std::thread::scope(|scope| {
        // One moment it is a directory, the next a link to somewhere else; then it rests for a while as the one or the other,
        // so that calls get anywhere at all: for longer and longer, as a busy machine takes its time.
        scope.spawn(|| {
            for rest_ms in (1..).flat_map(|factor| (0..40).map(move |rest| factor * rest)) {
                for _ in 0..101 {
                    renameat_with(CWD, &middle, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
                std::thread::sleep(Duration::from_millis(rest_ms));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let begun = Instant::now();
        let mut rounds = 0..20;
        while rounds.next().is_some() || done == 0 && begun.elapsed() < PATIENCE {
            if code(world.stage(&id, &staging, &use_)) != Code::Ok {
                continue;
            }
            for _ in 0..20 {
                done += u32::from(code(world.publish(&id, &staging, &target, &use_, false)) == Code::Ok);
                let _ = world.unpublish(&id, &target);
            }
            let _ = world.unstage(&id, &staging);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done > 0, "the test is too fast for itself: nothing was ever published");
    let outside = fs::canonicalize(&outside).unwrap();
    let wrong: Vec<_> = mounts::all().into_iter().filter(|mount| mount.directory.starts_with(&outside)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"data");
    assert!(outside.join("target").is_dir() && outside.join("staging").is_dir(), "something outside was removed");
    assert_eq!(fs::read_dir(outside.join("target")).unwrap().count(), 0);

    // Once nobody interferes, all is put in order.
    if !fs::symlink_metadata(&middle).unwrap().is_dir() {
        renameat_with(CWD, &middle, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    }
    repeated(|| world.unpublish(&id, &target));
    repeated(|| world.unstage(&id, &staging));
    world.must_be_bare();
    world.forbid_and_delete(&id);
}

/// As the kubelet does it: until it works.
fn repeated<T, E: std::fmt::Debug>(mut call: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match call() {
            Ok(done) => return done,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error:?}"),
            Err(error) => eprintln!("to be repeated: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn numbers_and_names_out_of_all_range() {
    let world = World::new();
    let ask = |change: &dyn Fn(&mut CreateVolumeRequest)| {
        let mut request = CreateVolumeRequest {
            name: "pvc-odd".into(),
            capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![block()],
            ..CreateVolumeRequest::default()
        };
        change(&mut request);
        let made = world.runtime.block_on(world.controller.create_volume(Request::new(request)));
        made.map(|reply| reply.into_inner().volume.unwrap())
    };
    // More than the pool: it has 1 GiB, and every block is kept twice.
    let larger = ask(&|request| request.capacity_range.as_mut().unwrap().required_bytes = 1 << 40).unwrap_err();
    assert!(matches!(larger.code(), Code::OutOfRange | Code::ResourceExhausted), "{larger}");
    let said = larger.message();
    assert!(said.contains("in all") && said.contains("are free") && said.contains("ask for less"), "{said}");
    // An XFS has a least size, which is kept to where nobody forbids it.
    let xfs = mounted("xfs", Mode::SingleNodeWriter);
    let made = ask(&|request| request.volume_capabilities = vec![xfs.clone()]).unwrap();
    assert_eq!(made.capacity_bytes, 300 * MIB);
    world.forbid_and_delete(&made.volume_id);
    let refused = ask(&|request| {
        request.volume_capabilities = vec![xfs.clone()];
        request.capacity_range.as_mut().unwrap().limit_bytes = 100 * MIB;
    });
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    for (required_bytes, limit_bytes) in [(-1, 0), (0, -1), (i64::MIN, 0), (i64::MAX, 0), (2, 1), (0, 1), (1, 4095)] {
        let range = CapacityRange { required_bytes, limit_bytes };
        let status = ask(&|request| request.capacity_range = Some(range)).unwrap_err();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{range:?}: {status}");
        assert!(!status.message().is_empty());
    }
    for (key, value) in [
        ("", ""),
        ("Replicas", "2"),
        ("replicas", ""),
        ("replicas", "0"),
        ("replicas", "256"),
        ("replicas", "-1"),
        ("replicas", "2; reboot"),
        ("minReplicas", "3"),
        ("ackMode", "../durable"),
        ("csi.storage.k8s.io/fstype", "-o"),
        ("csi.storage.k8s.io/provisioner-secret-name", "s"),
        (&"k".repeat(100_000), "v"),
        ("ackMode", &"v".repeat(100_000)),
    ] {
        let parameters = HashMap::from([(key.to_owned(), value.to_owned())]);
        let status = ask(&|request| request.parameters.clone_from(&parameters)).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().len() < 1000, "a message of {} bytes", status.message().len());
    }
    for name in ["", "a\0b", "a\nb", &"n".repeat(129), &"n".repeat(900_000)] {
        let status = ask(&|request| request.name = name.to_owned()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    // Odd, but names: what they become is a volume's, and the same each time.
    for name in ["-rf", "../../etc", "$(reboot)", "A B", &"n".repeat(128)] {
        let made = ask(&|request| request.name = name.to_owned()).unwrap();
        assert_eq!(ask(&|request| request.name = name.to_owned()).unwrap(), made);
        world.forbid_and_delete(&made.volume_id);
    }
    let id = ask(&|_| {}).unwrap().volume_id;
    let larger = world.grow(&id, 1 << 40).unwrap_err();
    assert_eq!(larger.code(), Code::OutOfRange, "{larger}");
    assert!(larger.message().contains("ask for less, or add disks"), "{larger}");
    for size in [-1, i64::MIN, i64::MAX] {
        let status = world.grow(&id, size).unwrap_err();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::OutOfRange), "{size}: {status}");
    }
    for node in ["", "-rf", "../node", "a\0b", "no-such-node", &"n".repeat(100_000)] {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.clone(),
            node_id: node.into(),
            volume_capability: Some(block()),
            ..ControllerPublishVolumeRequest::default()
        };
        let status = world.runtime.block_on(world.controller.controller_publish_volume(Request::new(request)));
        let status = status.unwrap_err();
        let expected = if node.is_empty() { Code::InvalidArgument } else { Code::NotFound };
        assert_eq!(status.code(), expected, "{node:.20}: {:.200}", status.message());
        assert!(status.message().len() < 1000, "a message of {} bytes", status.message().len());
    }
    let long = format!("{}/{}", world.path("x"), "p".repeat(200_000));
    for path in [&long, &world.path(&"p".repeat(300))] {
        let status = world.stage(&id, path, &mounted("", Mode::SingleNodeWriter)).unwrap_err();
        assert_ne!(status.code(), Code::Ok);
        assert!(status.message().len() < 1000, "a message of {} bytes", status.message().len());
    }
    world.forbid_and_delete(&id);
    world.must_be_bare();
}
