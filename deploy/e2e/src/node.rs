//! One host as Kubernetes sees it: an agent of role `node`, the CSI programs, and a directory that stands for the kubelet's.
//!
//! Attaching needs root, FUSE and loop devices, or kernel NBD: [`Host::impossible`] says what is missing.

use crate::binaries;
use crate::cluster::{Cluster, Options};
use crate::flexvolume::Driver;
use crate::http;
use crate::ports;
use crate::process::Process;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a program may take until it listens.
const READY: Duration = Duration::from_secs(60);
/// How long an agent may take to stop in order.
const STOP: Duration = Duration::from_secs(90);
/// What Kubernetes calls the host.
pub const NAME: &str = "host-1";

/// A small cluster and one host with a FlexVolume driver: what tests of attaching and mounting begin with.
pub struct Bed {
    /// The driver, as the host's agent has installed it.
    pub driver: Driver,
    /// The host.
    pub host: Host,
    /// Two agents with storage. Dropped last: the others live in its directory.
    pub cluster: Cluster,
}

impl Bed {
    /// Starts it; `None`, having said why, where no volume can be attached.
    pub fn start() -> Result<Option<Self>> {
        if let Some(why) = Host::impossible() {
            eprintln!("skipped: {why}");
            return Ok(None);
        }
        let options = Options {
            agents: 2,
            disk_size: "2GiB".into(),
            extent_size: "4MiB".into(),
            agent_flags: ["--fill", "reserve", "--buffered-io"].map(str::to_owned).into(),
            profile: "dev".into(),
            ..Options::default()
        };
        let cluster = Cluster::start(options)?;
        let host = Host::start(&cluster)?;
        Ok(Some(Self { driver: host.driver(), host, cluster }))
    }
}

/// The host. Dropped: its processes are killed, what they mounted is unmounted, and their devices are removed.
pub struct Host {
    /// The agent of role `node`.
    pub agent: Option<Process>,
    /// `torus-csi controller` and `torus-csi node`, if they were started.
    pub csi: Vec<Process>,
    /// What keeps the agent's devices for the next one, if it was started.
    pub holder: Option<Process>,
    programs: Vec<PathBuf>,
    /// Where the agent serves HTTP.
    http: u16,
    etcd: String,
    directory: PathBuf,
}

impl Host {
    /// Why no volume can be attached on this machine, if that is so.
    #[must_use]
    pub fn impossible() -> Option<&'static str> {
        if !nix::unistd::Uid::effective().is_root() {
            return Some("devices and mounts need root");
        }
        let there = |path: &str| Path::new(path).exists();
        match there("/sys/module/nbd") || there("/dev/fuse") && there("/dev/loop-control") {
            true => None,
            false => Some("this kernel has neither NBD nor FUSE and loop devices"),
        }
    }

    /// Builds the programs and starts the agent of a host of `cluster`. It installs the FlexVolume driver in `flexvolume`.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let built = binaries::build("dev", ["torus-agent", "torus-csi", "torusctl", "torus-holder"])?;
        let driver = binaries::build_static("dev", "torus-flexvolume")?;
        let directory = cluster.path().join("host");
        for name in ["kubelet", "flexvolume", "bin"] {
            fs::create_dir_all(directory.join(name)).context("cannot make the directories of a host")?;
        }
        // In one directory, as in the image: the agent looks for the driver beside itself.
        let install = |program: &Path| -> Result<PathBuf> {
            let installed = directory.join("bin").join(program.file_name().context("a program has a name")?);
            if fs::hard_link(program, &installed).is_err() {
                // By another process: a child that is started here meanwhile would have it open for writing too, and keep it from being run.
                let copied = Command::new("cp").args([program, &installed]).status().context("cannot run cp")?;
                ensure!(copied.success(), "cannot install {} in {}", program.display(), installed.display());
            }
            Ok(installed)
        };
        install(&driver)?;
        let programs = built.iter().map(|program| install(program)).collect::<Result<Vec<_>>>()?;
        let etcd = cluster.etcd.url();
        let http = ports::free()?;
        let mut host = Self { agent: None, csi: Vec::new(), holder: None, programs, http, etcd, directory };
        host.start_agent()?;
        Ok(host)
    }

    /// A path of the host's own: `kubelet`, `attached`, `node.sock`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts the agent, killing one that runs, and waits until it serves.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.command(0);
        command.args(["--role", "node", "--etcd", &self.etcd, "--node-name", NAME]);
        command.args(["--http-address", &format!("127.0.0.1:{}", self.http)]);
        command.arg("--node-socket").arg(self.path("node.sock")).arg("--attached-dir").arg(self.path("attached"));
        command.arg("--kubelet-dir").arg(self.path("kubelet")).arg("--holder-socket").arg(self.path("holder.sock"));
        command.arg("--flexvolume-dir").arg(self.path("flexvolume"));
        // What a test puts there stands for a program of the system.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("tools").display()));
        self.agent = None;
        // One that was killed leaves its socket.
        let _ = fs::remove_file(self.path("node.sock"));
        self.agent = Some(self.listening("agent-node", command, "node.sock")?);
        Ok(())
    }

    /// The sum of a metric of the agent over all its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        http::metric(self.http, name).context("the host's agent")
    }

    /// Kills the agent (-9).
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill().map(drop)
    }

    /// Stops the agent in order.
    pub fn stop_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        let status = agent.stop(STOP)?;
        ensure!(status.success(), "the agent ended with {status}: {}", agent.log_tail());
        Ok(())
    }

    /// The FlexVolume driver as it is installed.
    #[must_use]
    pub fn driver(&self) -> Driver {
        Driver::at(self.path("flexvolume/coreos.com~torus/torus"))
    }

    /// Starts a holder, killing one that runs; it keeps what nobody attends to for `seconds`.
    pub fn start_holder(&mut self, seconds: u64) -> Result<()> {
        self.holder = None;
        let mut command = self.command(3);
        command.args(["--dead-time", &seconds.to_string()]).arg("--holder-socket").arg(self.path("holder.sock"));
        let socket = self.path("holder.sock");
        // One that was killed leaves its socket.
        let _ = fs::remove_file(&socket);
        let mut holder = Process::start("holder", command, &self.directory)?;
        // The file is there a moment before anybody listens.
        holder.until("it listens", READY, || Ok(listens_for_messages(&socket)))?;
        self.holder = Some(holder);
        Ok(())
    }

    /// Starts the CSI controller and the node plugin, which the files `controller.sock` and `csi.sock` lead to.
    pub fn start_csi(&mut self) -> Result<()> {
        self.csi.clear();
        let mut controller = self.command(1);
        controller.args(["controller", "--etcd", &self.etcd, "--csi-socket"]).arg(self.path("controller.sock"));
        let mut node = self.command(1);
        node.args(["node", "--node-name", NAME, "--csi-socket"]).arg(self.path("csi.sock"));
        node.arg("--node-socket").arg(self.path("node.sock"));
        for (name, command) in [("controller", controller), ("csi", node)] {
            let process = self.listening(name, command, &format!("{name}.sock"))?;
            self.csi.push(process);
        }
        Ok(())
    }

    /// `torusctl` on this host, of which the command is to be completed.
    #[must_use]
    pub fn torusctl(&self) -> Command {
        let mut command = self.command(2);
        command.env("TORUS_ETCD", &self.etcd).env("TORUS_STATE_DIR", self.path("attached"));
        command
    }

    fn command(&self, program: usize) -> Command {
        let mut command = Command::new(&self.programs[program]);
        command.current_dir(&self.directory);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TORUS_")) {
            command.env_remove(name);
        }
        command
    }

    fn listening(&self, name: &str, command: Command, socket: &str) -> Result<Process> {
        let socket = self.path(socket);
        let mut process = Process::start(name, command, &self.directory)?;
        process.until("it listens", READY, || Ok(UnixStream::connect(&socket).is_ok()))?;
        Ok(process)
    }

    /// The mount points below the host's directory, newest first.
    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot tell what is mounted")?;
        let here = fs::canonicalize(&self.directory)?;
        let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut points: Vec<_> = points.filter(|point| point.starts_with(&here)).collect();
        points.reverse();
        Ok(points)
    }

    /// The loop devices whose files are in the host's directory.
    pub fn loop_devices(&self) -> Result<Vec<PathBuf>> {
        let here = fs::canonicalize(&self.directory)?;
        let entries = fs::read_dir("/sys/block").context("cannot tell what devices there are")?.flatten();
        let is_ours = |path: &PathBuf| {
            fs::read_to_string(path.join("loop/backing_file")).is_ok_and(|file| Path::new(&file).starts_with(&here))
        };
        let ours = entries.map(|entry| entry.path()).filter(is_ours);
        Ok(ours.filter_map(|path| Some(Path::new("/dev").join(path.file_name()?))).collect())
    }

    /// Fails when a mount, a device or a record is left of any volume.
    pub fn must_be_bare(&self) -> Result<()> {
        let (mounts, devices) = (self.mounts()?, self.loop_devices()?);
        let records: Vec<_> = fs::read_dir(self.path("attached")).into_iter().flatten().flatten().collect();
        if mounts.is_empty() && devices.is_empty() && records.is_empty() {
            return Ok(());
        }
        bail!("left over: mounts {mounts:?}, devices {devices:?}, records {records:?}")
    }
}

/// Whether somebody listens on a socket whose messages keep their borders, for which the standard library has no type.
fn listens_for_messages(path: &Path) -> bool {
    let connected = || {
        let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(client.as_raw_fd(), &UnixAddr::new(path)?)
    };
    connected().is_ok()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.csi.clear();
        self.agent = None;
        self.holder = None;
        // Everything that is left is dead: it gives errors, and is not waited for. Of a file whose filesystem is unmounted the kernel
        // does not tell any more where it was.
        let devices = self.loop_devices().unwrap_or_default();
        for point in self.mounts().unwrap_or_default() {
            let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
        }
        for device in devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}
