//! Programs that tests and benchmarks drive: a metadata store, load generators, NBD clients, filesystems.
//!
//! Only what is missing gets installed, only as root and only on Debian and what descends from it; elsewhere the
//! sentence says what to install by hand.

use crate::tester;
use crate::workspace::{must_succeed, shown, works};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;
use torus_e2e::guest::Kernel;

/// A program, how to see that it is there, and the Debian package that brings it.
struct Tool {
    program: &'static str,
    args: &'static [&'static str],
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "etcd", args: &["--version"], package: "etcd-server" },
    Tool { program: "fio", args: &["--version"], package: "fio" },
    Tool { program: "nbdkit", args: &["--version"], package: "nbdkit" },
    Tool { program: "nbdinfo", args: &["--version"], package: "libnbd-bin" },
    Tool { program: "nbdfuse", args: &["--version"], package: "nbdfuse" },
    Tool { program: "/usr/bin/python3", args: &["-c", "import nbd"], package: "python3-libnbd" },
    Tool { program: "qemu-io", args: &["--version"], package: "qemu-utils" },
    Tool { program: "qemu-system-x86_64", args: &["--version"], package: "qemu-system-x86" },
    Tool { program: "/bin/busybox", args: &["true"], package: "busybox-static" },
    Tool { program: "cpio", args: &["--version"], package: "cpio" },
    Tool { program: "strip", args: &["--version"], package: "binutils" },
    Tool { program: "mkfs.xfs", args: &["-V"], package: "xfsprogs" },
    Tool { program: "mkfs.ext4", args: &["-V"], package: "e2fsprogs" },
    Tool { program: "make", args: &["--version"], package: "make" },
    Tool { program: "cc", args: &["--version"], package: "gcc" },
    Tool { program: "xz", args: &["--version"], package: "xz-utils" },
    Tool { program: "bison", args: &["--version"], package: "bison" },
    Tool { program: "flex", args: &["--version"], package: "flex" },
    Tool { program: "pkg-config", args: &["--exists", "glib-2.0"], package: "libglib2.0-dev" },
    Tool { program: "containerd", args: &["--version"], package: "containerd" },
    Tool { program: "runc", args: &["--version"], package: "runc" },
    Tool { program: "test", args: &["-x", "/usr/lib/cni/ptp"], package: "containernetworking-plugins" },
    Tool { program: "buildah", args: &["--version"], package: "buildah" },
    Tool { program: "mmdebstrap", args: &["--version"], package: "mmdebstrap" },
    Tool { program: "iptables", args: &["--version"], package: "iptables" },
    Tool { program: "ip", args: &["-V"], package: "iproute2" },
    Tool { program: "sysctl", args: &["--version"], package: "procps" },
    Tool { program: "fusermount3", args: &["--version"], package: "fuse3" },
];

/// Makes sure that every tool is there, installing what is not, nbd-tester-client, and the kernel that guests run.
pub fn ensure() -> Result<()> {
    install()?;
    tester::ensure()?;
    println!("guests run {}", Kernel::newest()?.image()?.display());
    Ok(())
}

fn install() -> Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|tool| !works(tool.program, tool.args)).collect();
    if missing.is_empty() {
        println!("all there: {}", TOOLS.iter().map(|tool| tool.package).collect::<Vec<_>>().join(" "));
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    if !nix::unistd::Uid::effective().is_root() {
        bail!("missing here: {0}. Install them as root, on Debian with: apt-get install {0}", packages.join(" "));
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing here: {}. This machine has no apt-get: install what brings these programs", packages.join(" "));
    }
    for args in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends"]] {
        let mut apt = Command::new("apt-get");
        // RUNLEVEL=1 keeps packages from starting daemons: the tests start their own.
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        if args[0] == "install" {
            apt.args(&packages);
        }
        println!("$ {}", shown(&apt));
        must_succeed(&mut apt)?;
    }
    match missing.iter().find(|tool| !works(tool.program, tool.args)) {
        Some(tool) => bail!("{} was installed, but {} does not run", tool.package, tool.program),
        None => Ok(()),
    }
}
