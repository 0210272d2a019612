//! A virtual machine with a stock Debian kernel, for what the kernel of this machine lacks.
//!
//! It boots in seconds, without acceleration as well, because there is nothing to boot: the kernel's first filesystem is
//! all it has, made on the spot from busybox, the modules asked for, and programs of this machine with the libraries that
//! they load. What it does is a shell script. What it prints comes back over the serial line.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! let mut image = torus_e2e::guest::Image::new()?;
//! image.modules(&["nbd"]);
//! image.program("mkfs.ext4")?;
//! let said = image.run("ls -l /dev/nbd0", Duration::from_secs(60))?;
//! println!("{said}");
//! # Ok(())
//! # }
//! ```

mod archive;
mod kernel;

pub use kernel::Kernel;

use crate::process::Process;
use crate::scratch::Scratch;
use anyhow::{Context, Result, bail, ensure};
use archive::Archive;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MEMORY_MIB: u32 = 3072;
/// What the guest prints when its script has ended, before the exit code.
const ENDED: &str = "guest-script-ended:";
/// Where modules and the script are in the guest.
const MODULES: &str = "/guest/modules";
const SCRIPT: &str = "/guest/script";

/// What runs first in the guest.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/root
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp
mkdir -p /dev/shm /root; ip link set lo up
for module in /guest/modules/*.ko; do insmod $module || echo "cannot load $module"; done
sh /guest/script </dev/null
echo "guest-script-ended: $?"
poweroff -f
"#;

/// What a guest is made of.
pub struct Image {
    kernel: Kernel,
    archive: Archive<BufWriter<File>>,
    modules: Vec<String>,
    scratch: Scratch,
}

impl Image {
    /// Busybox, and nothing else yet.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new("guest")?;
        let path = scratch.path().join("initrd");
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/var/lib", "/mnt", MODULES] {
            archive.directory(directory)?;
        }
        archive.file("/init", 0o755, INIT.as_bytes())?;
        archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n")?;
        let mut image = Self { kernel: Kernel::newest()?, archive, modules: Vec::new(), scratch };
        image.place(&which("busybox")?, "/bin/busybox")?;
        Ok(image)
    }

    /// Loads `modules`, and what they need, before the script runs.
    pub fn modules(&mut self, modules: &[&str]) {
        self.modules.extend(modules.iter().map(|module| (*module).to_owned()));
    }

    /// Puts the program `name` of this machine, with the libraries that it loads, into `/usr/bin`.
    pub fn program(&mut self, name: &str) -> Result<()> {
        self.program_at(&which(name)?, name)
    }

    /// Puts the program `file`, with its libraries and without what only a debugger reads, into `/usr/bin` as `name`.
    pub fn program_at(&mut self, file: &Path, name: &str) -> Result<()> {
        let stripped = self.scratch.path().join("stripped");
        let mut strip = Command::new("strip");
        let status = strip.arg("-o").arg(&stripped).arg(file).status().context("cannot run strip: install binutils")?;
        ensure!(status.success(), "strip cannot read {}", file.display());
        self.place(&stripped, &format!("/usr/bin/{name}"))
    }

    /// A program and its libraries, which stay where they are.
    fn place(&mut self, program: &Path, path: &str) -> Result<()> {
        self.archive.copy(program, path, 0o755)?;
        for library in libraries(program)? {
            self.archive.copy(&library, &library.to_string_lossy(), 0o755)?;
        }
        Ok(())
    }

    /// Puts a file at `path`.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.archive.file(path, 0o644, content)
    }

    /// Boots, runs `script` in busybox's shell as root, and gives all that was printed.
    ///
    /// # Errors
    /// When the script ends with a code other than 0, or `limit` passes; with what was printed.
    pub fn run(self, script: &str, limit: Duration) -> Result<String> {
        let Self { kernel, mut archive, modules, scratch } = self;
        let modules: Vec<_> = modules.iter().map(String::as_str).collect();
        for (number, file) in kernel.modules(&modules)?.iter().enumerate() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            // The shell gives them in the order of their names.
            archive.copy(file, &format!("{MODULES}/{number:03}-{name}"), 0o644)?;
        }
        archive.file(SCRIPT, 0o644, script.as_bytes())?;
        archive.finish()?.into_inner().context("cannot write the filesystem of a guest")?;
        let mut qemu = Command::new("qemu-system-x86_64");
        // Not KVM: inside another virtual machine it may be there and not work, and the same speed everywhere is worth more.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        qemu.args(["-m", &MEMORY_MIB.to_string(), "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none"]);
        qemu.args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 oops=panic random.trust_cpu=on"]);
        qemu.arg("-kernel").arg(kernel.image()?).arg("-initrd").arg(scratch.path().join("initrd"));
        let mut process = Process::start("guest", qemu, scratch.path())?;
        let ended = process.wait(limit);
        let said = fs::read(process.log()).context("cannot read what the guest said")?;
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        let code =
            said.rsplit_once(ENDED).and_then(|(_, rest)| rest.trim_start().lines().next()?.trim().parse::<i32>().ok());
        match (ended, code) {
            (Ok(_), Some(0)) => Ok(said),
            (Ok(_), Some(code)) => bail!("the guest's script ended with {code}; the guest said:\n{said}"),
            (Ok(status), None) => bail!("the guest ended ({status}) before its script did; it said:\n{said}"),
            (Err(error), _) => Err(error.context(format!("the guest said:\n{said}"))),
        }
    }
}

/// Where a program of this machine is.
fn which(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = directories.map(|directory| directory.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("there is no program {name}: `cargo xtask test --only tools` installs it"))
}

/// The libraries that a program loads, its loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Of a program without libraries it says so, in words.
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_runs_its_script_and_tells_how_it_ended() {
        let mut image = Image::new().unwrap();
        image.modules(&["nbd"]);
        image.file("/etc/word", b"hello from the guest").unwrap();
        image.program("mkfs.ext4").unwrap();
        let script = "uname -r; cat /etc/word; mkfs.ext4 -V 2>&1; test -b /dev/nbd0; exit 7";
        let error = format!("{:#}", image.run(script, Duration::from_secs(120)).unwrap_err());
        assert!(error.contains("hello from the guest") && error.contains("mke2fs 1."), "{error}");
        assert!(error.contains("ended with 7"), "{error}");
    }

    #[test]
    fn libraries_of_a_program_are_found() {
        let found = libraries(&which("sh").unwrap()).unwrap();
        assert!(found.iter().any(|library| library.to_string_lossy().contains("libc.so")), "{found:?}");
        assert!(found.iter().all(|library| library.is_file()), "{found:?}");
    }
}
