//! From the making of a volume to its end: every call is made twice, some too early, and the node service is ended in the middle.

use crate::world::{MIB, World, abnormal, block, code, mounted};
use std::fs;
use std::path::Path;
use tonic::Code;
use torus_proto::csi::volume_capability::access_mode::Mode;

#[test]
fn a_filesystem_from_its_making_to_its_end() {
    let mut world = World::new();
    let use_ = mounted("ext4", Mode::SingleNodeMultiWriter);
    let id = world.create("pvc-1", &use_);
    let (staging, target) = (world.path("globalmount"), world.path("pod-1"));
    let (staging, target) = (staging.as_str(), target.as_str());
    fs::create_dir(staging).unwrap();

    assert_eq!(code(world.stage(&id, staging, &use_)), Code::FailedPrecondition, "not published to this node");
    world.permit(&id, &use_);
    assert_eq!(code(world.publish(&id, staging, target, &use_, false)), Code::FailedPrecondition, "not staged");
    for _ in 0..2 {
        world.stage(&id, staging, &use_).unwrap();
    }
    for _ in 0..2 {
        world.publish(&id, staging, target, &use_, false).unwrap();
    }
    assert_eq!(code(world.publish(&id, staging, target, &use_, true)), Code::AlreadyExists, "in another way");
    fs::write(Path::new(target).join("kept"), b"data").unwrap();
    let reader = world.path("pod-2");
    world.publish(&id, staging, &reader, &use_, true).unwrap();
    assert_eq!(fs::read(Path::new(&reader).join("kept")).unwrap(), b"data");
    assert!(fs::write(Path::new(&reader).join("kept"), b"no").is_err(), "it was published for reading");

    let stats = world.stats(&id, target).unwrap();
    assert!(stats.usage.iter().all(|usage| usage.total > 0) && stats.usage.len() == 2, "{stats:?}");
    assert_eq!(abnormal(stats.clone()), None);
    assert_eq!(code(world.stats(&id, &world.path("nowhere")).map(drop)), Code::NotFound);
    // Without CAP_SYS_RESOURCE, as in most containers, the kernel lets a mounted ext4 not grow.
    match world.expand(&id, target, 96 * MIB) {
        Ok(bytes) => assert_eq!(bytes, 96 * MIB),
        Err(status) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
            assert!(status.message().contains("mounted next"), "{}", status.message());
        }
    }

    assert_eq!(code(world.unstage(&id, staging)), Code::FailedPrecondition, "pods have it");
    for path in [&reader, target] {
        for _ in 0..2 {
            world.unpublish(&id, path).unwrap();
        }
        assert!(!Path::new(path).exists());
    }
    for _ in 0..2 {
        world.unstage(&id, staging).unwrap();
    }
    assert!(!world.dir.path().join("attached").join(&id).exists());

    // A second time, and the process that serves it ends in the middle: its device is dead, and comes back.
    world.stage(&id, staging, &use_).unwrap();
    world.publish(&id, staging, target, &use_, false).unwrap();
    let grown = world.stats(&id, target).unwrap();
    assert!(grown.usage[0].total > stats.usage[0].total + 20 * MIB, "{grown:?}");
    assert_eq!(fs::read(Path::new(target).join("kept")).unwrap(), b"data");
    fs::write(Path::new(target).join("more"), b"again").unwrap();
    world.stop_node();
    world.start_node();
    assert_eq!(fs::read(Path::new(target).join("more")).unwrap(), b"again", "mounted again where it was");
    let why = abnormal(world.stats(&id, target).unwrap()).unwrap();
    assert!(why.contains("started again"), "{why}");
    world.stage(&id, staging, &use_).unwrap();
    world.publish(&id, staging, target, &use_, false).unwrap();
    world.unpublish(&id, target).unwrap();
    assert_eq!(abnormal(world.stats(&id, staging).unwrap()), None);
    world.unstage(&id, staging).unwrap();
    world.forbid_and_delete(&id);
}

#[test]
fn a_device_for_one_pod() {
    let world = World::new();
    let id = world.create("pvc-block", &block());
    let (staging, target, other) = (world.path("staging"), world.path("device-1"), world.path("device-2"));
    fs::create_dir(&staging).unwrap();
    world.permit(&id, &block());
    for _ in 0..2 {
        world.stage(&id, &staging, &block()).unwrap();
        world.publish(&id, &staging, &target, &block(), false).unwrap();
    }
    assert_eq!(code(world.publish(&id, &staging, &other, &block(), false)), Code::FailedPrecondition);
    let mut device = fs::File::options().read(true).write(true).open(&target).unwrap();
    {
        use std::io::{Read, Seek, Write};
        device.write_all(b"raw bytes").unwrap();
        device.sync_all().unwrap();
        device.rewind().unwrap();
        let mut read = [0; 9];
        device.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"raw bytes");
    }
    drop(device);
    let stats = world.stats(&id, &target).unwrap();
    assert_eq!(stats.usage[0].total, 64 * MIB);
    assert_eq!(world.expand(&id, &target, 80 * MIB).unwrap(), 80 * MIB);
    world.unpublish(&id, &target).unwrap();
    assert!(!Path::new(&target).exists());
    for _ in 0..2 {
        world.unstage(&id, &staging).unwrap();
    }

    // What holds data that is no filesystem is never formatted.
    let as_files = mounted("ext4", Mode::SingleNodeSingleWriter);
    let refused = world.stage(&id, &staging, &as_files).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{}", refused.message());
    assert!(refused.message().contains("nothing was changed"), "{}", refused.message());
    world.unstage(&id, &staging).unwrap();
    world.forbid_and_delete(&id);
}
