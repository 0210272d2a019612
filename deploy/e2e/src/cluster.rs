//! A Torus cluster of real processes on this machine: etcd, agents, owners.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let mut cluster = torus_e2e::cluster::Cluster::start(Default::default())?;
//! cluster.torusctl(["volume", "create", "db", "1GiB"])?;
//! let owner = cluster.serve("a", "db", false)?;
//! println!("{}", owner.uri());
//! cluster.agents[1].kill()?;
//! cluster.restart_agent(1)?;
//! # Ok(())
//! # }
//! ```

use crate::binaries;
use crate::etcd::Etcd;
use crate::http;
use crate::ports;
use crate::process::{Process, until};
use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::stalls::settle;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a process of Torus may take to become ready: preparing a disk takes its time.
const READY: Duration = Duration::from_secs(120);
/// How long a process of Torus may take to stop in order.
const STOP: Duration = Duration::from_secs(60);

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Agents, each on a failure domain of its own.
    pub agents: usize,
    /// Size of each agent's disk, as on the command line.
    pub disk_size: String,
    /// Size of an extent, as on the command line.
    pub extent_size: String,
    /// Further flags for every agent.
    pub agent_flags: Vec<String>,
    /// Volumes that the first agent owns and serves itself, once they exist: see [`Cluster::exported`].
    pub exports: Vec<String>,
    /// The cargo profile whose programs are run: release, or `$TORUS_E2E_PROFILE`.
    pub profile: String,
    /// What agents keep their data on, in order; those that it does not reach have a file in a directory of their own.
    pub disks: Vec<Option<PathBuf>>,
    /// Whether owners reach agents through [`Proxy`] that can be cut.
    pub proxies: bool,
    /// Where directories are made; the system's temporary directory unless given.
    pub base: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            agents: 3,
            disk_size: "4GiB".into(),
            extent_size: "64MiB".into(),
            agent_flags: Vec::new(),
            exports: Vec::new(),
            profile: std::env::var("TORUS_E2E_PROFILE").unwrap_or_else(|_| "release".into()),
            disks: Vec::new(),
            proxies: false,
            base: None,
        }
    }
}

/// A cluster. Dropped: killed, its data removed.
pub struct Cluster {
    /// Its agents' processes, in order.
    pub agents: Vec<Process>,
    /// Its metadata store.
    pub etcd: Etcd,
    /// What stands between owners and agents, if that was asked for.
    pub proxies: Vec<Proxy>,
    options: Options,
    ports: Vec<AgentPorts>,
    programs: Programs,
    // After the processes that write to it, so that it is dropped last.
    scratch: Scratch,
}

#[derive(Clone, Copy)]
struct AgentPorts {
    data: u16,
    control: u16,
    http: u16,
}

struct Programs {
    agent: PathBuf,
    ctl: PathBuf,
}

impl Cluster {
    /// Builds the programs, starts etcd and the agents, makes the cluster, and waits until all agents are ready and in the
    /// ring.
    pub fn start(options: Options) -> Result<Self> {
        let [agent, ctl] = binaries::build(&options.profile, ["torus-agent", "torusctl"])?;
        let scratch = match &options.base {
            Some(base) => Scratch::below(base, "cluster"),
            None => Scratch::new("cluster"),
        }?;
        settle([scratch.path(), agent.as_path()])?;
        let etcd = Etcd::start()?;
        let ports = (0..options.agents)
            .map(|_| Ok(AgentPorts { data: ports::free()?, control: ports::free()?, http: ports::free()? }))
            .collect::<Result<Vec<AgentPorts>>>()?;
        let proxies =
            if options.proxies { ports.iter().map(|ports| Proxy::to(ports.data)).collect() } else { Ok(vec![]) };
        let programs = Programs { agent, ctl };
        let mut cluster = Self { agents: Vec::new(), etcd, proxies: proxies?, options, ports, programs, scratch };
        let size = cluster.options.extent_size.clone();
        cluster.torusctl(["init", "--extent-size", &size])?;
        for index in 0..cluster.options.agents {
            // All at once: preparing disks takes time.
            let process = cluster.spawn_agent(index)?;
            cluster.agents.push(process);
        }
        for index in 0..cluster.options.agents {
            cluster.until_ready(index)?;
        }
        Ok(cluster)
    }

    /// Where logs, disks and sockets are.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Leaves its directory there for a person to look at.
    pub fn keep(&mut self) {
        self.scratch.keep();
    }

    /// Kills an agent if it runs, and starts it on the same ports and disk.
    pub fn restart_agent(&mut self, index: usize) -> Result<()> {
        self.start_agent(index)?;
        self.until_ready(index)
    }

    /// The same, without waiting until it is ready.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index].kill()?;
        self.agents[index] = self.spawn_agent(index)?;
        Ok(())
    }

    /// The directory of an agent's disk.
    #[must_use]
    pub fn disk_dir(&self, index: usize) -> PathBuf {
        self.path().join(format!("disk-{index}"))
    }

    /// What an agent answers to an HTTP request.
    pub fn http(&self, index: usize, path: &str) -> Result<String> {
        http::get(self.ports[index].http, path).with_context(|| format!("agent {index} does not answer {path}"))
    }

    /// The sum of a metric of an agent over all its labels.
    pub fn metric(&self, index: usize, name: &str) -> Result<f64> {
        http::metric(self.ports[index].http, name).with_context(|| format!("agent {index}"))
    }

    /// Runs `torusctl` against this cluster; what it printed.
    ///
    /// # Errors
    /// When it fails; what it said is in the text.
    pub fn torusctl<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = self.command();
        command.args(args);
        let output = command.output().context("cannot run torusctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed ({}): {said}", output.status);
        String::from_utf8(output.stdout).context("torusctl prints no UTF-8")
    }

    /// The exit code and the message of a `torusctl` that fails.
    pub fn torusctl_fails<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<(i32, String)> {
        let mut command = self.command();
        command.args(args);
        let output = command.output().context("cannot run torusctl")?;
        ensure!(!output.status.success(), "{command:?} did not fail");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!message.contains("panicked"), "{command:?} panicked: {message}");
        Ok((output.status.code().context("torusctl was killed")?, message))
    }

    /// What `torusctl … -o json` prints.
    pub fn torusctl_json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let text = self.torusctl(args.into_iter().chain(["-o", "json"]))?;
        serde_json::from_str(&text).context("torusctl -o json prints no JSON")
    }

    /// Starts an owner of `volume` that serves it on a unix socket, and waits until it listens. `name` tells owners apart.
    pub fn serve(&self, name: &str, volume: &str, fence: bool) -> Result<Owner> {
        let socket = self.path().join(format!("{name}.sock"));
        let http = ports::free()?;
        let mut command = self.command();
        command.args(["serve", volume, "--socket"]).arg(&socket).args(["--http", &format!("127.0.0.1:{http}")]);
        if fence {
            command.arg("--fence");
        }
        let mut process = Process::start(name, command, self.path())?;
        process.until(
            "it serves the volume",
            READY,
            || Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok()),
        )?;
        Ok(Owner { process, volume: volume.to_owned(), socket, http })
    }

    /// How clients reach a volume of [`Options::exports`], once it is served.
    pub fn exported(&mut self, volume: &str) -> Result<String> {
        let socket = self.export_socket(volume);
        let serves = || Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok());
        self.agents[0].until("it serves its export", READY, serves)?;
        Ok(format!("nbd+unix:///{volume}?socket={}", socket.display()))
    }

    fn export_socket(&self, volume: &str) -> PathBuf {
        self.path().join(format!("export-{volume}.sock"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.programs.ctl);
        clean(&mut command);
        command.env("TORUS_ETCD", self.etcd.url()).env("TORUS_STATE_DIR", self.path().join("attached"));
        command.env("HOME", self.path()).stdin(Stdio::null());
        command
    }

    /// The exit code and the message of an agent that does not start. It has ports of its own and this cluster's metadata store,
    /// unless `args` say otherwise.
    pub fn agent_fails<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<(i32, String)> {
        let mut command = Command::new(&self.programs.agent);
        clean(&mut command);
        command.env("TORUS_ETCD", self.etcd.url()).env("TORUS_PORT", "0").env("TORUS_CONTROL_ADDRESS", "127.0.0.1:0");
        command.env("TORUS_HTTP_ADDRESS", "none").args(args);
        let mut process = Process::start("agent-refused", command, self.path())?;
        let status = process.wait(READY)?;
        ensure!(!status.success(), "the agent did not fail");
        let said = process.log_tail();
        ensure!(!said.contains("panicked"), "the agent panicked: {said}");
        Ok((status.code().context("the agent was killed")?, said))
    }

    /// Where an agent takes data.
    #[must_use]
    pub fn data_port(&self, index: usize) -> u16 {
        self.ports[index].data
    }

    /// Where an agent serves HTTP.
    #[must_use]
    pub fn http_port(&self, index: usize) -> u16 {
        self.ports[index].http
    }

    fn spawn_agent(&self, index: usize) -> Result<Process> {
        let ports = self.ports[index];
        let mut command = Command::new(&self.programs.agent);
        clean(&mut command);
        match self.options.disks.get(index).into_iter().flatten().next() {
            Some(disk) => command.arg("--disk").arg(disk).arg("--format-new-disks"),
            None => command.arg("--data-dir").arg(self.disk_dir(index)).args(["--size", &self.options.disk_size]),
        };
        if let Some(proxy) = self.proxies.get(index) {
            command.args(["--peer-address", &format!("127.0.0.1:{}", proxy.port())]);
        }
        command.args(["--name", &format!("agent-{index}"), "--domain", &format!("node-{index}"), "--auto-join"]);
        command.args(["--port", &ports.data.to_string(), "--etcd", &self.etcd.url()]);
        command.args(["--control-address", &format!("127.0.0.1:{}", ports.control)]);
        command.args(["--http-address", &format!("127.0.0.1:{}", ports.http)]);
        command.args(&self.options.agent_flags);
        for volume in self.options.exports.iter().filter(|_| index == 0) {
            command.arg("--export").arg(format!("{volume}={}", self.export_socket(volume).display()));
        }
        Process::start(&format!("agent-{index}"), command, self.path())
    }

    /// Waits until an agent says that it is ready.
    pub fn until_ready(&mut self, index: usize) -> Result<()> {
        let port = self.ports[index].http;
        self.agents[index].until("it is ready", READY, || Ok(http::get(port, "/readyz").is_ok()))
    }
}

/// Devices outlive processes: what the test has attached is detached, whatever became of it.
impl Drop for Cluster {
    fn drop(&mut self) {
        let attached = self.torusctl_json(["attached"]).unwrap_or_default();
        for volume in attached.as_array().into_iter().flatten() {
            let name = volume["name"].as_str().unwrap_or_default();
            if self.detach_within(name, "20").is_ok() {
                continue;
            }
            // It waits for agents that are gone, or is in use: nothing of it is worth anything any more.
            if let Err(error) = self.kill_keeper(volume).and_then(|()| self.detach_within(name, "60")) {
                eprintln!("cannot detach {name}: {error:#}");
            }
        }
    }
}

impl Cluster {
    /// Kills (-9) the process that serves an attached volume.
    ///
    /// # Errors
    /// When it is not attached, or cannot be killed.
    pub fn kill_owner_of(&self, volume: &str) -> Result<()> {
        let attached = self.torusctl_json(["attached"])?;
        let found = attached.as_array().and_then(|all| all.iter().find(|one| one["name"] == volume));
        self.kill_keeper(found.with_context(|| format!("volume {volume} is not attached"))?)
    }

    fn kill_keeper(&self, attached: &Value) -> Result<()> {
        let pid = attached["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no process id")?;
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        if attached["served"] != true || program.is_err() {
            return Ok(());
        }
        ensure!(program.ok().as_ref() == Some(&self.programs.ctl), "process {pid} is not ours");
        signal::kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the process of a volume")?;
        until("a killed process is gone", STOP, || {
            let now = self.torusctl_json(["attached"])?;
            Ok(now.as_array().is_none_or(|all| all.iter().all(|one| one["pid"] != pid || one["served"] == false)))
        })
    }

    fn detach_within(&self, name: &str, seconds: &str) -> Result<()> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", seconds]).arg(&self.programs.ctl).args(["detach", "--force", name]);
        clean(&mut command);
        command.env("TORUS_STATE_DIR", self.path().join("attached")).stdin(Stdio::null());
        let output = command.output().context("cannot run torusctl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A process that owns a volume and serves it.
pub struct Owner {
    /// The process.
    pub process: Process,
    volume: String,
    socket: PathBuf,
    http: u16,
}

impl Owner {
    /// The volume's name.
    #[must_use]
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How clients reach the volume.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.volume, self.socket.display())
    }

    /// What it answers to an HTTP request.
    pub fn http(&self, path: &str) -> Result<String> {
        http::get(self.http, path).with_context(|| format!("the owner of {} does not answer {path}", self.volume))
    }

    /// The sum of a metric of it over all its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        http::metric(self.http, name).with_context(|| format!("the owner of {}", self.volume))
    }

    /// Lets the volume go in order.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.stop(STOP)?;
        ensure!(status.success(), "the owner of {} ended with {status}: {}", self.volume, self.process.log_tail());
        Ok(())
    }
}

/// Nothing of a person's own settings gets in.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TORUS_") {
            command.env_remove(name);
        }
    }
}
