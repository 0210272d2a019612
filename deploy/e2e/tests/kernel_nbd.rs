//! A filesystem on kernel NBD, in a guest with Debian's kernel: the process that serves it is killed with -9 under load and
//! another takes the device over; the application sees a pause, and no error. What is done in the guest is in
//! `kernel_nbd.sh`.

use anyhow::Result;
use std::time::Duration;
use torus_e2e::binaries;
use torus_e2e::guest::Image;

/// It takes about two minutes alone.
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn a_filesystem_outlives_the_process_behind_it() -> Result<()> {
    let [agent, ctl] = binaries::build("dev", ["torus-agent", "torusctl"])?;
    let mut image = Image::new()?;
    image.modules(&["nbd", "ext4", "crc32c_generic"]);
    image.program_at(&agent, "torus-agent")?;
    image.program_at(&ctl, "torusctl")?;
    for program in
        ["etcd", "mkfs.ext4", "e2fsck", "dumpe2fs", "resize2fs", "blkid", "blockdev", "mount", "umount", "dd", "stat"]
    {
        image.program(program)?;
    }
    let said = image.run(include_str!("kernel_nbd.sh"), LIMIT)?;
    for line in said.lines().filter(|line| line.starts_with('@')) {
        println!("{line}");
    }
    Ok(())
}
