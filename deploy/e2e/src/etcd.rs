//! A real etcd.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let mut etcd = torus_e2e::etcd::Etcd::start()?;
//! println!("{}", etcd.url());
//! etcd.kill()?; // as `kill -9` does; the data stays
//! etcd.restart()?; // on the same ports, with the same data
//! # Ok(())
//! # }
//! ```
//!
//! The program is `$TORUS_ETCD_BIN`, or else the first `etcd` in `PATH`. Readiness is asked of etcd's own `/health`, on a
//! port in the clear of its own, whatever TLS the client port has.

use crate::ports;
use crate::process::Process;
use crate::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long etcd may take to become ready. It takes about a second; a loaded machine takes longer.
const READY: Duration = Duration::from_secs(60);
/// How often other ports are tried when somebody else was faster.
const PORT_TRIES: usize = 5;

/// How an etcd is started. [`Etcd::start`] takes the defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--quota-backend-bytes`.
    pub quota_bytes: Option<u64>,
    /// TLS on the client port.
    pub tls: Option<Tls>,
    /// Where it listens to clients; 127.0.0.1 unless given.
    pub host: Option<Ipv4Addr>,
    /// Further flags.
    pub flags: Vec<String>,
}

/// PEM files for TLS on the client port.
#[derive(Clone, Debug)]
pub struct Tls {
    /// etcd's certificate, for the address it listens on.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// If given, clients must show a certificate signed by this CA.
    pub client_ca: Option<PathBuf>,
}

/// An etcd of one member. Dropped: killed, its data removed.
pub struct Etcd {
    options: Options,
    ports: Ports,
    // Before the directory that it writes to, so that it is dropped first.
    process: Option<Process>,
    scratch: Scratch,
}

#[derive(Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    metrics: u16,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self { client: ports::free()?, peer: ports::free()?, metrics: ports::free()? })
    }
}

impl Etcd {
    /// Starts an etcd with defaults and waits until it is ready.
    ///
    /// # Errors
    /// When there is no etcd program, or it does not become ready; its log's end is in the text.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts an etcd and waits until it is ready.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_with(options: Options) -> Result<Self> {
        let mut etcd = Self { options, ports: Ports::free()?, process: None, scratch: Scratch::new("etcd")? };
        for _ in 1..PORT_TRIES {
            match etcd.restart() {
                // Between finding a port and using it, somebody else may have taken it.
                Err(error) if format!("{error:#}").contains("address already in use") => etcd.ports = Ports::free()?,
                result => return result.map(|()| etcd),
            }
        }
        etcd.restart().map(|()| etcd)
    }

    /// The client address, such as `http://127.0.0.1:port`, or with `https` where it has TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.options.host.unwrap_or(Ipv4Addr::LOCALHOST), self.ports.client)
    }

    /// Where it serves metrics and health, in the clear.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.metrics)
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends it as a crash would (SIGKILL). Ports and data are kept for [`Etcd::restart`].
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Starts it again, on the same ports with the same data, and waits until it is ready. Kills it first if it runs.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut process = Process::start("etcd", self.command()?, self.scratch.path())?;
        process.until("it is ready", READY, || Ok(self.is_ready()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Keeps a copy of its data as it is now. It is killed and started again for that.
    ///
    /// # Errors
    /// When the data cannot be copied, and as [`Etcd::start`].
    pub fn back_up(&mut self) -> Result<Backup> {
        self.kill()?;
        let scratch = Scratch::new("etcd-backup")?;
        copy(&self.data(), &scratch.path().join("data"))?;
        self.restart()?;
        Ok(Backup(scratch))
    }

    /// Puts it back to the state of a backup, as an operator might: revisions since then are given out again.
    ///
    /// # Errors
    /// When the data cannot be copied, and as [`Etcd::start`].
    pub fn restore(&mut self, backup: &Backup) -> Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.data()).context("cannot remove etcd's data")?;
        copy(&backup.0.path().join("data"), &self.data())?;
        self.restart()
    }

    /// Halts it (SIGSTOP): its ports take connections and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&self) -> Result<()> {
        self.process.as_ref().context("etcd does not run")?.halt()
    }

    /// Lets it go on after [`Etcd::stop`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("etcd does not run")?.signal(signal)
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn command(&self) -> Result<Command> {
        let Ports { client, peer, metrics } = self.ports;
        let mut command = Command::new(program()?);
        let client_url = self.url();
        let peer_url = format!("http://127.0.0.1:{peer}");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.scratch.path());
        command.args(["--name", "test", "--data-dir"]).arg(self.data());
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("test={peer_url}")]);
        // Two clusters that a test starts must not have the same id.
        command.args(["--initial-cluster-token", &format!("torus-test-{client}-{peer}-{metrics}")]);
        command.args(["--listen-metrics-urls", &self.metrics_url()]);
        if let Some(bytes) = self.options.quota_bytes {
            command.args(["--quota-backend-bytes", &bytes.to_string()]);
        }
        if let Some(tls) = &self.options.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            if let Some(ca) = &tls.client_ca {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            }
        }
        command.args(&self.options.flags);
        Ok(command)
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let address = SocketAddr::from(([127, 0, 0, 1], self.ports.metrics));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.take(64 << 10).read_to_string(&mut answer)?;
            Ok(answer)
        };
        // With an alarm raised (such as no space) it reports itself unhealthy for good; it serves all the same.
        ask().is_ok_and(|answer| answer.contains("\"health\":\"true\"") || answer.contains("ALARM"))
    }
}

/// What [`Etcd::back_up`] keeps. Dropped: removed.
pub struct Backup(Scratch);

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = || -> std::io::Result<Vec<PathBuf>> {
        fs::create_dir_all(to)?;
        let mut directories = Vec::new();
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.file_name().into());
            } else {
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(directories)
    };
    let directories = copied().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    directories.iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))
}

/// The etcd program.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TORUS_ETCD_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "TORUS_ETCD_BIN names {path:?}, which is not a file");
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file());
    found.context(
        "this test needs a real etcd, and there is none in PATH: install the Debian package etcd-server, or set \
         TORUS_ETCD_BIN to an etcd program",
    )
}
