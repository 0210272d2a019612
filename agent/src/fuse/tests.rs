//! A stand-in device through a real kernel. What looks at the file are child processes: this one serves it.

use super::*;
use crate::device::testing::MemoryDevice;
use crate::device::{BlockDevice, IoError, Unaligned};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use tokio::process::Command;
use tokio::task::LocalSet;
use torus_core::ids::BLOCK_BYTES;

const SIZE_BYTES: u64 = 64 << 20;

type Device = Rc<Unaligned<MemoryDevice>>;

/// Runs `test` beside a mounted device, and unmounts that whatever becomes of it.
fn with_mounted(device: MemoryDevice, test: impl AsyncFnOnce(Device, &Path)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let device = Rc::new(Unaligned::new(device));
        let mounted = Mounted::mount(device.clone(), directory.path(), "volume").await.unwrap();
        let file = mounted.file().to_owned();
        test(device, &file).await;
        mounted.unmount().await.unwrap();
        assert!(!file.exists());
    });
}

/// Has a shell carry `script` out, with the file as its first argument; what it printed, on both ways.
async fn shell(script: &str, file: &Path) -> (bool, String) {
    let ran = Command::new("sh").args(["-c", script, "sh"]).arg(file).kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    (ran.status.success(), said)
}

async fn must(script: &str, file: &Path) -> String {
    let (good, said) = shell(script, file).await;
    assert!(good, "{script}: {said}");
    said
}

#[test]
fn what_is_written_to_the_file_is_on_the_device_and_reads_back() {
    with_mounted(MemoryDevice::new(SIZE_BYTES), async |device, file| {
        assert_eq!(must("stat -c %s \"$1\"; ls \"${1%/*}\"", file).await, format!("{SIZE_BYTES}\nvolume\n"));
        // No other file, large requests, a range that is not made of blocks, and what is left at the end.
        let script = "touch \"$1.x\" 2> /dev/null && exit 1
            head -c 8388608 /dev/urandom > /tmp/torus-fuse-$$ && trap 'rm /tmp/torus-fuse-$$' EXIT
            dd if=/tmp/torus-fuse-$$ of=\"$1\" bs=1M seek=3 oflag=direct conv=notrunc,fsync status=none || exit 1
            printf torus | dd of=\"$1\" bs=1 seek=20000001 conv=notrunc status=none || exit 1
            dd if=\"$1\" bs=1M skip=3 count=8 iflag=direct status=none | cmp - /tmp/torus-fuse-$$ || exit 1
            dd if=\"$1\" bs=1 skip=20000001 count=5 status=none; dd if=\"$1\" bs=1M skip=63 status=none | wc -c";
        assert_eq!(must(script, file).await.lines().last().unwrap(), "torus1048576");
        assert!(device.device().flushes() >= 1, "fsync is a flush");
    });
}

#[test]
fn holes_and_zeros_reach_the_device() {
    with_mounted(MemoryDevice::new(SIZE_BYTES), async |device, file| {
        must("tr '\\0' x < /dev/zero | head -c 1048576 | dd of=\"$1\" bs=64K conv=notrunc,fsync status=none", file)
            .await;
        must("fallocate --punch-hole --offset 4096 --length 8192 \"$1\"", file).await;
        must("fallocate --zero-range --keep-size --offset 16384 --length 4096 \"$1\"", file).await;
        let status = device.block_status(0, 6 * BLOCK_BYTES).await.unwrap();
        let seen: Vec<_> = status.iter().map(|extent| (extent.len / BLOCK_BYTES, extent.hole, extent.zero)).collect();
        assert_eq!(seen, [(1, false, false), (2, true, true), (1, false, false), (1, false, true), (1, false, false)]);
        let (good, said) = shell("fallocate --offset 0 --length 134217728 \"$1\"", file).await;
        assert!(!good && said.contains("not supported"), "{said}");
    });
}

#[test]
fn a_device_that_grows_is_a_file_that_grows() {
    with_mounted(MemoryDevice::new(SIZE_BYTES), async |device, file| {
        device.device().grow(2 * SIZE_BYTES);
        assert_eq!(must("stat -c %s \"$1\"", file).await.trim(), (2 * SIZE_BYTES).to_string());
        must("printf x | dd of=\"$1\" bs=1 seek=134217727 conv=notrunc status=none", file).await;
        let (good, said) = shell("printf x | dd of=\"$1\" bs=1 seek=134217728 conv=notrunc status=none", file).await;
        assert!(!good && said.contains("Invalid argument"), "{said}");
    });
}

#[test]
fn errors_of_the_device_are_those_of_the_program() {
    with_mounted(MemoryDevice::new(SIZE_BYTES), async |device, file| {
        let cases = [
            (IoErrorKind::NoSpace, "No space left"),
            (IoErrorKind::Fenced, "Input/output error"),
            (IoErrorKind::Corrupt, "Input/output error"),
        ];
        for (kind, words) in cases {
            device.device().fail_next(IoError::new(kind, "as the test wants"));
            let script = "dd if=/dev/zero of=\"$1\" bs=4096 count=1 oflag=direct conv=notrunc status=none";
            let (good, said) = shell(script, file).await;
            assert!(!good && said.contains(words), "{kind:?}: {said}");
            must(script, file).await;
        }
    });
    with_mounted(MemoryDevice::new(SIZE_BYTES).read_only(), async |_, file| {
        let (good, said) = shell("printf x | dd of=\"$1\" conv=notrunc status=none", file).await;
        assert!(!good && said.contains("Read-only"), "{said}");
        must("dd if=\"$1\" of=/dev/null bs=1M status=none", file).await;
    });
}

/// A device that never answers must hold up nobody but those who wait for it: the process that serves it can be stopped,
/// and they get an error then.
#[test]
fn who_waits_when_the_end_comes_gets_an_error() {
    struct Stuck(MemoryDevice, Cell<bool>);
    impl BlockDevice for Stuck {
        fn info(&self) -> crate::device::DeviceInfo {
            self.0.info()
        }
        async fn read(&self, _: u64, _: u32) -> Result<torus_core::format::Pieces, IoError> {
            self.1.set(true);
            std::future::pending().await
        }
        async fn write(&self, offset: u64, data: torus_core::format::Pieces, fua: bool) -> Result<(), IoError> {
            self.0.write(offset, data, fua).await
        }
        async fn flush(&self) -> Result<(), IoError> {
            self.0.flush().await
        }
        async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
            self.0.trim(offset, len, fua).await
        }
        async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
            self.0.write_zeroes(offset, len, no_hole, fua).await
        }
        async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<crate::device::StatusExtent>, IoError> {
            self.0.block_status(offset, len).await
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let device = Rc::new(Stuck(MemoryDevice::new(SIZE_BYTES), Cell::new(false)));
        let mounted = Mounted::mount(device.clone(), directory.path(), "volume").await.unwrap();
        let file = mounted.file().to_owned();
        let reader = tokio::task::spawn_local(async move {
            shell("dd if=\"$1\" of=/dev/null bs=4096 count=1 iflag=direct status=none", &file).await
        });
        while !device.1.get() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        drop(mounted);
        let (good, said) = reader.await.unwrap();
        assert!(!good && said.contains("Input/output error"), "{said}");
    });
    // It was in use when it was to be unmounted; nobody is left now.
    nix::mount::umount(directory.path()).unwrap();
}
