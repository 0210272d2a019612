//! The flags of `torus-agent`. Each is defined here once: its long name is also its key in the configuration file, its
//! environment variable stands beside it, and help and completions are made from it.

use super::config::{Config, ConfigError, Logging, NodeConfig};
use super::exports::ExportArg;
use crate::metadata::{MetaArgs, MetaConfig};
use crate::units::Size;
use clap::{Parser, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;
use torus_store::{Engine, Fill};

/// A Torus storage agent: keeps extents on this machine's disks and serves them to the owners of volumes
#[derive(Parser, Clone, Debug)]
#[command(name = "torus-agent", version, max_term_width = 110)]
#[command(after_help = "Every setting is also read from the file given by --config, under its long name \
    (`data-dir: /var/lib/torus`), and from the environment variable shown. A flag wins over the environment, and \
    that over the file.")]
pub struct Args {
    /// A YAML file with any of these settings
    #[arg(long, env = "TORUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What this agent does: storage keeps data on disks, node attaches volumes on this host for Kubernetes
    #[arg(
        long,
        env = "TORUS_ROLE",
        value_name = "ROLES",
        value_enum,
        value_delimiter = ',',
        default_value = "storage"
    )]
    pub role: Vec<RoleArg>,

    /// Keep data in DIR/disk0.torus, a file that is made when there is none
    #[arg(long, env = "TORUS_DATA_DIR", value_name = "DIR", help_heading = "Disks")]
    pub data_dir: Option<PathBuf>,
    /// Keep data on this file or partition; may be given several times
    #[arg(long, env = "TORUS_DISKS", value_name = "PATH", value_delimiter = ',', help_heading = "Disks")]
    pub disk: Vec<PathBuf>,
    /// Size of the file in the data directory, when it is made
    #[arg(long, env = "TORUS_SIZE", value_name = "SIZE", default_value = "10GiB", help_heading = "Disks")]
    pub size: Size,
    /// How that file gets its space: zeros writes all of it at once, reserve is instant and slower later
    #[arg(long, env = "TORUS_FILL", value_name = "HOW", value_enum, default_value = "zeros", help_heading = "Disks")]
    pub fill: FillArg,
    /// Format disks that hold something else: what they hold is lost. Disks of any Torus are never formatted
    #[arg(long, env = "TORUS_FORMAT_NEW_DISKS", help_heading = "Disks")]
    pub format_new_disks: bool,
    /// Who carries out disk I/O
    #[arg(
        long,
        env = "TORUS_IO_ENGINE",
        value_name = "ENGINE",
        value_enum,
        default_value = "auto",
        help_heading = "Disks"
    )]
    pub io_engine: EngineArg,
    /// Go through the page cache, for filesystems without direct I/O. Writes are synced all the same
    #[arg(long, env = "TORUS_BUFFERED_IO", help_heading = "Disks")]
    pub buffered_io: bool,

    /// Take data connections on this address
    #[arg(long, env = "TORUS_HOST", value_name = "HOST", default_value = "127.0.0.1", help_heading = "Network")]
    pub host: String,
    /// Take data connections on this port; 0 for any free one
    #[arg(long, env = "TORUS_PORT", value_name = "PORT", default_value_t = 40_000, help_heading = "Network")]
    pub port: u16,
    /// Where others reach this agent's data port, if not at --host and --port
    #[arg(long, env = "TORUS_PEER_ADDRESS", value_name = "HOST[:PORT]", help_heading = "Network")]
    pub peer_address: Option<String>,
    /// Serve gRPC control here [default: --host, port 40001]
    #[arg(long, env = "TORUS_CONTROL_ADDRESS", value_name = "HOST:PORT", help_heading = "Network")]
    pub control_address: Option<String>,
    /// Serve /metrics, /healthz and /readyz here; "none" for nowhere [default: --host, port 4321]
    #[arg(long, env = "TORUS_HTTP_ADDRESS", value_name = "HOST:PORT", help_heading = "Network")]
    pub http_address: Option<String>,

    /// What people call this agent [default: the host's name]
    #[arg(long, env = "TORUS_NAME", value_name = "NAME", help_heading = "Cluster")]
    pub name: Option<String>,
    /// Failure domain, outermost first, ending with the machine: zone-a/rack-3/node-7 [default: the host's name]
    #[arg(long, env = "TORUS_DOMAIN", value_name = "PATH", help_heading = "Cluster")]
    pub domain: Option<String>,
    /// Read the failure domain from this file, whose first line it is
    #[arg(long, env = "TORUS_DOMAIN_FILE", value_name = "FILE", conflicts_with = "domain", help_heading = "Cluster")]
    pub domain_file: Option<PathBuf>,
    /// Join the storage pool without waiting for `torusctl peer add`
    #[arg(long, env = "TORUS_AUTO_JOIN", help_heading = "Cluster")]
    pub auto_join: bool,
    /// Initialize the cluster if there is none, as `torusctl init` would
    #[arg(long, env = "TORUS_DEBUG_INIT", help_heading = "Cluster")]
    pub debug_init: bool,
    /// Own this volume and serve it over NBD from here, as `torusctl serve` does beside an agent: what this agent's own disks
    /// hold crosses no socket on its way. VOLUME=PATH for a unix socket, VOLUME=ADDRESS:PORT for TCP; may be given several times
    #[arg(
        long,
        env = "TORUS_EXPORTS",
        value_name = "VOLUME=PLACE",
        value_delimiter = ',',
        help_heading = "Volumes on this host"
    )]
    pub export: Vec<ExportArg>,
    /// Role node: what Kubernetes calls this host [default: the host's name]
    #[arg(long, env = "TORUS_NODE_NAME", value_name = "NAME", help_heading = "Volumes on this host")]
    pub node_name: Option<String>,
    /// Role node: serve the CSI plugin and the FlexVolume driver of this host on this socket
    #[arg(
        long,
        env = "TORUS_NODE_SOCKET",
        value_name = "PATH",
        default_value = crate::node::SOCKET,
        help_heading = "Volumes on this host"
    )]
    pub node_socket: PathBuf,
    /// Role node: torus-holder keeps devices of FUSE files there, for the next agent; where none listens, they end with this one
    #[arg(
        long,
        env = "TORUS_HOLDER_SOCKET",
        value_name = "PATH",
        default_value = crate::holder::SOCKET,
        help_heading = "Volumes on this host"
    )]
    pub holder_socket: PathBuf,
    /// Role node: write down here what is attached on this host
    #[arg(
        long,
        env = "TORUS_ATTACHED_DIR",
        value_name = "DIR",
        default_value = crate::node::DIRECTORY,
        help_heading = "Volumes on this host"
    )]
    pub attached_dir: PathBuf,
    /// Role node: the kubelet's directory. Nothing is mounted elsewhere
    #[arg(
        long,
        env = "TORUS_KUBELET_DIR",
        value_name = "DIR",
        default_value = "/var/lib/kubelet",
        help_heading = "Volumes on this host"
    )]
    pub kubelet_dir: PathBuf,
    /// Role node: install the FlexVolume driver here, the kubelet's --volume-plugin-dir
    #[arg(long, env = "TORUS_FLEXVOLUME_DIR", value_name = "DIR", help_heading = "Volumes on this host")]
    pub flexvolume_dir: Option<PathBuf>,
    /// The metadata store.
    #[command(flatten, next_help_heading = "Metadata")]
    pub meta: MetaArgs,

    /// What to log: a level, or target=level pairs such as info,torus_agent::tdp=debug
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "info", help_heading = "Logs")]
    pub log: String,
    /// How to log
    #[arg(
        long,
        env = "TORUS_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Logs"
    )]
    pub log_format: LogFormat,
    /// Log everything that debugging needs: --log debug
    #[arg(long, env = "TORUS_DEBUG", help_heading = "Logs")]
    pub debug: bool,
    /// Levels for single modules, added to --log: MODULE=LEVEL,…
    #[arg(long, env = "TORUS_LOGPKG", value_name = "LEVELS", help_heading = "Logs")]
    pub logpkg: Option<String>,

    /// Print a completion script for this shell, and end
    #[arg(long, value_name = "SHELL", value_enum)]
    pub completion: Option<Shell>,
}

/// What an agent does.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleArg {
    /// Keep extents on disks
    Storage,
    /// Attach volumes on this host
    Node,
}

/// See [`Fill`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum FillArg {
    /// Write zeros from end to end
    Zeros,
    /// Reserve the space only
    Reserve,
}

/// See [`Engine`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineArg {
    /// io_uring where the kernel allows it, else threads
    Auto,
    /// io_uring
    Uring,
    /// Threads that block
    Threads,
}

/// How log lines are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

impl Args {
    /// Everything checked that can be checked without looking at the machine.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn config(&self) -> Result<(Config, MetaConfig), ConfigError> {
        let mut config = Config::new(self.name.clone());
        config.disks = self.disk.clone();
        config.data_dir.clone_from(&self.data_dir);
        config.size_bytes = self.size.0;
        config.fill = match self.fill {
            FillArg::Zeros => Fill::Zeros,
            FillArg::Reserve => Fill::Reserve,
        };
        config.engine = match self.io_engine {
            EngineArg::Auto => Engine::Auto,
            EngineArg::Uring => Engine::Uring,
            EngineArg::Threads => Engine::Threads,
        };
        config.buffered = self.buffered_io;
        config.format_new_disks = self.format_new_disks;
        config.host.clone_from(&self.host);
        config.port = self.port;
        config.peer_address.clone_from(&self.peer_address);
        config.control_address.clone_from(&self.control_address);
        config.http_address = match self.http_address.as_deref() {
            Some("none") => None,
            Some(address) => Some(address.into()),
            None => config.http_address,
        };
        if let Some(domain) = self.domain()? {
            config.domain = domain;
        }
        config.auto_join = self.auto_join;
        config.debug_init = self.debug_init;
        match self.has(RoleArg::Storage) {
            true => config.check()?,
            false if !self.export.is_empty() => return Err(ConfigError::ExportWithoutStorage),
            false => config.check_names()?,
        }
        Ok((config, self.meta.config()?))
    }

    /// Whether this agent has `role`.
    #[must_use]
    pub fn has(&self, role: RoleArg) -> bool {
        self.role.contains(&role)
    }

    /// The settings of the role `node`; `config` are the others.
    #[must_use]
    pub fn node(&self, config: &Config) -> Option<NodeConfig> {
        self.has(RoleArg::Node).then(|| NodeConfig {
            name: self.node_name.clone().unwrap_or_else(|| config.name()),
            domain: config.domain.clone(),
            socket: self.node_socket.clone(),
            attached_dir: std::path::absolute(&self.attached_dir).unwrap_or_else(|_| self.attached_dir.clone()),
            kubelet_dir: self.kubelet_dir.clone(),
            flexvolume_dir: self.flexvolume_dir.clone(),
            holder: Some(self.holder_socket.clone()),
        })
    }

    fn domain(&self) -> Result<Option<String>, ConfigError> {
        let Some(path) = &self.domain_file else { return Ok(self.domain.clone()) };
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| ConfigError::DomainFile { path: path.clone(), source })?;
        Ok(Some(text.lines().next().unwrap_or_default().trim().to_owned()))
    }

    /// What to log, and how.
    #[must_use]
    pub fn logging(&self) -> Logging {
        let mut filter = if self.debug { "debug".to_owned() } else { self.log.clone() };
        if let Some(levels) = &self.logpkg {
            filter = format!("{filter},{levels}");
        }
        Logging { filter, json: self.log_format == LogFormat::Json }
    }
}
