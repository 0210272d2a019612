//! What an agent is told: checked as far as that needs no look at the machine.

use std::io;
use std::path::PathBuf;
use torus_store::{Engine, Fill};

/// Longest name and longest failure domain.
const NAME_BYTES_MAX: usize = 128;
/// Ports, unless configured.
const CONTROL_PORT: u16 = 40_001;
const HTTP_PORT: u16 = 4_321;

/// Settings that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path:?}. Correct the path given by --config or TORUS_CONFIG")]
    File {
        /// Where.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path:?} has {bytes} bytes, which no configuration file has. Correct the path given by --config")]
    FileTooLarge {
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It does not read as YAML, or a value is none of its setting's.
    #[error("the configuration file {path:?} is wrong: {reason}")]
    FileSyntax {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key that is none.
    #[error(
        "in the configuration file {path:?}, {key} is no setting{}",
        near.as_ref().map_or_else(|| ": see `torus-agent --help`".into(), |near| format!(": did you mean {near}?"))
    )]
    UnknownKey {
        /// Where.
        path: PathBuf,
        /// The key.
        key: String,
        /// The setting that was probably meant.
        near: Option<String>,
    },
    /// An agent without a disk.
    #[error("no disk: give --data-dir DIR for a file in a directory, or --disk PATH for a file or a partition")]
    NoDisk,
    /// Volumes to be served by an agent that has no data plane.
    #[error(
        "--export needs --role storage: an agent without disks serves no volumes over NBD. Use `torusctl serve` there"
    )]
    ExportWithoutStorage,
    /// A name that is none.
    #[error("{0:?} is not a name for an agent: 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes or underscores")]
    Name(String),
    /// A file without a failure domain.
    #[error("cannot read the failure domain of this host from {path:?}: {source}. See --domain-file")]
    DomainFile {
        /// Where.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A failure domain that is none.
    #[error(
        "{0:?} is not a failure domain: names of letters, digits, dots, dashes and underscores, with slashes between \
         them, such as zone-a/rack-3/node-7"
    )]
    Domain(String),
    /// Reachable everywhere, but nobody knows where.
    #[error(
        "--host {0} takes connections on every address, but others must be told one: add --peer-address HOST, the \
         address by which they reach this machine"
    )]
    NoPeerAddress(String),
    /// An address that is none.
    #[error("{text:?} is not an address for {flag}: expected HOST:PORT, such as 10.0.0.7:{example}")]
    Address {
        /// The flag.
        flag: &'static str,
        /// What was given.
        text: String,
        /// A port that it could have.
        example: u16,
    },
    /// The metadata store's part.
    #[error(transparent)]
    Meta(#[from] crate::metadata::ConfigError),
}

/// What to log, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logging {
    /// In the syntax of `tracing_subscriber`'s `EnvFilter`.
    pub filter: String,
    /// One JSON object per line instead of text.
    pub json: bool,
}

/// One agent's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// What people call it, if they said so.
    pub name: Option<String>,
    /// Failure domain path; the last part is the machine.
    pub domain: String,
    /// Where `disk0.torus` is kept, and made when absent.
    pub data_dir: Option<PathBuf>,
    /// Size of that file when it is made.
    pub size_bytes: u64,
    /// How it gets its space.
    pub fill: Fill,
    /// More disks, which must exist.
    pub disks: Vec<PathBuf>,
    /// Allowed to format a disk that holds something that is not Torus's.
    pub format_new_disks: bool,
    /// Who carries out disk I/O.
    pub engine: Engine,
    /// Through the page cache.
    pub buffered: bool,
    /// Where data connections are taken.
    pub host: String,
    /// The same; 0: any free port.
    pub port: u16,
    /// Where others reach it: `host` or `host:port`.
    pub peer_address: Option<String>,
    /// Where gRPC is served: `host:port`.
    pub control_address: Option<String>,
    /// Where HTTP is served, if it is: `host:port`.
    pub http_address: Option<String>,
    /// Enter the storage pool without being admitted by a person.
    pub auto_join: bool,
    /// Initialize the cluster if there is none.
    pub debug_init: bool,
}

/// The settings of the role `node`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// What the cluster's control plane calls this host.
    pub name: String,
    /// Its failure domain.
    pub domain: String,
    /// Where the node service is served.
    pub socket: PathBuf,
    /// Where it is written down what is attached.
    pub attached_dir: PathBuf,
    /// The only directory below which anything is mounted.
    pub kubelet_dir: PathBuf,
    /// Where the FlexVolume driver is installed, if it is.
    pub flexvolume_dir: Option<PathBuf>,
    /// Where there may be a holder, which keeps devices for the next agent.
    pub holder: Option<PathBuf>,
}

impl Config {
    /// An agent of this name, or of the host's, with everything else at its default and no disk yet.
    #[must_use]
    pub fn new(name: Option<String>) -> Config {
        Config {
            name,
            domain: host_name(),
            data_dir: None,
            size_bytes: 10 << 30,
            fill: Fill::Zeros,
            disks: Vec::new(),
            format_new_disks: false,
            engine: Engine::Auto,
            buffered: false,
            host: "127.0.0.1".into(),
            port: 40_000,
            peer_address: None,
            control_address: None,
            http_address: Some(String::new()),
            auto_join: false,
            debug_init: false,
        }
    }

    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.is_none() && self.disks.is_empty() {
            return Err(ConfigError::NoDisk);
        }
        self.check_names()?;
        if self.peer_address.is_none() && is_everywhere(&self.host) {
            return Err(ConfigError::NoPeerAddress(self.host.clone()));
        }
        self.control_address()?;
        self.http_address()?;
        Ok(())
    }

    /// Refuses odd names; all there is to check for an agent without storage.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check_names(&self) -> Result<(), ConfigError> {
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(ConfigError::Name(name.clone()));
        }
        if self.domain.len() > NAME_BYTES_MAX || !self.domain.split('/').all(is_name) {
            return Err(ConfigError::Domain(self.domain.clone()));
        }
        Ok(())
    }

    /// Its name, or the host's.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(host_name)
    }

    /// Where to serve gRPC: host and port.
    ///
    /// # Errors
    /// When the setting is no address.
    pub fn control_address(&self) -> Result<(String, u16), ConfigError> {
        let given = self.control_address.as_deref();
        self.address("--control-address", given, CONTROL_PORT)
    }

    /// Where to serve HTTP, if at all: host and port.
    ///
    /// # Errors
    /// When the setting is no address.
    pub fn http_address(&self) -> Result<Option<(String, u16)>, ConfigError> {
        let Some(given) = self.http_address.as_deref() else { return Ok(None) };
        self.address("--http-address", Some(given).filter(|given| !given.is_empty()), HTTP_PORT).map(Some)
    }

    fn address(&self, flag: &'static str, given: Option<&str>, port: u16) -> Result<(String, u16), ConfigError> {
        let Some(text) = given else { return Ok((self.host.clone(), port)) };
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if is_host(host) => Ok((host.trim_matches(['[', ']']).into(), port)),
            _ => Err(ConfigError::Address { flag, text: text.into(), example: port }),
        }
    }

    /// What others are told of where to reach `port` of this agent.
    #[must_use]
    pub fn reachable(&self, host: &str, port: u16, is_data: bool) -> String {
        match self.peer_address.as_deref().map(split_port) {
            Some((host, Some(port))) if is_data => join(host, port),
            Some((host_told, _)) if is_data || is_everywhere(host) => join(host_told, port),
            _ => join(host, port),
        }
    }
}

fn split_port(address: &str) -> (&str, Option<u16>) {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host.trim_matches(['[', ']']), Some(port)),
            Err(_) => (address, None),
        },
        _ => (address.trim_matches(['[', ']']), None),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn is_everywhere(host: &str) -> bool {
    matches!(host, "0.0.0.0" | "::" | "[::]")
}

fn is_host(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(text),
    }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !matches!(text, "." | "..")
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| is_name(name)).unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { data_dir: Some("/srv".into()), ..Config::new(Some("n1".into())) }
    }

    #[test]
    fn contradictions_and_odd_names_are_refused_with_the_way_out() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 8] = [
            (|c| c.data_dir = None, "--data-dir DIR"),
            (|c| c.name = Some("../etc".into()), "is not a name"),
            (|c| c.name = Some("-rf".into()), "is not a name"),
            (|c| c.domain = "zone//node".into(), "zone-a/rack-3/node-7"),
            (|c| c.domain = "zone/../node".into(), "is not a failure domain"),
            (|c| c.host = "0.0.0.0".into(), "--peer-address"),
            (|c| c.http_address = Some("here".into()), "--http-address"),
            (|c| c.control_address = Some("h:99999".into()), "10.0.0.7:40001"),
        ];
        assert!(config().check().is_ok());
        for (change, words) in cases {
            let mut bad = config();
            change(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let config = config();
        assert_eq!(config.reachable("127.0.0.1", 7, true), "127.0.0.1:7");
        let named = Config { host: "0.0.0.0".into(), peer_address: Some("node-7".into()), ..config.clone() };
        assert_eq!(named.reachable("0.0.0.0", 7, true), "node-7:7");
        assert_eq!(named.reachable("0.0.0.0", 8, false), "node-7:8");
        let mapped = Config { peer_address: Some("203.0.113.9:4000".into()), ..config.clone() };
        assert_eq!(mapped.reachable("10.0.0.1", 7, true), "203.0.113.9:4000");
        assert_eq!(mapped.reachable("10.0.0.1", 8, false), "10.0.0.1:8");
        let six = Config { peer_address: Some("fd00::7".into()), ..config };
        assert_eq!(six.reachable("::", 7, true), "[fd00::7]:7");
    }

    #[test]
    fn addresses_default_to_the_host_and_a_port() {
        let mut config = config();
        assert_eq!(config.control_address().unwrap(), ("127.0.0.1".into(), 40_001));
        assert_eq!(config.http_address().unwrap(), Some(("127.0.0.1".into(), 4_321)));
        config.http_address = Some("[::1]:80".into());
        assert_eq!(config.http_address().unwrap(), Some(("::1".into(), 80)));
        config.http_address = None;
        assert_eq!(config.http_address().unwrap(), None);
    }
}
