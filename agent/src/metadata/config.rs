//! Which metadata store is meant: the `--etcd` flag and what goes with it.
//!
//! | written | meant |
//! |---|---|
//! | `http://a:2379,b:2379`, `etcd://a,b`, `a:2379` | an etcd with these members, in the clear |
//! | `https://a,https://b` | the same with TLS; needs `--etcd-ca` |
//! | `embedded:/var/lib/torus/meta.redb` | one file, one process |
//! | `memory:` | one process, gone with it |

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// etcd's client port.
const PORT: u16 = 2379;
/// Where etcd is, unless configured.
pub const URL_DEFAULT: &str = "http://127.0.0.1:2379";
/// Where Torus keeps its keys in an etcd, unless configured.
pub const PREFIX_DEFAULT: &str = "/torus/";
/// How long one operation may take, unless configured.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The address of a metadata store. Parsed from and shown as in the table above.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaUrl {
    /// The members of an etcd, as `http://host:port` or `https://host:port`. Never empty.
    Etcd(Vec<String>),
    /// A file.
    Embedded(PathBuf),
    /// Nothing but memory.
    Memory,
}

/// Why a configuration of the metadata store is no good.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address cannot be understood.
    #[error(
        "{text:?} is not the address of a metadata store: {reason}. Write http://HOST:2379[,HOST:2379…] for an etcd, \
         embedded:/PATH for a file, or memory:"
    )]
    Url {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key prefix cannot be used.
    #[error("{0:?} is not a key prefix: it begins and ends with a slash, such as {PREFIX_DEFAULT}")]
    Prefix(String),
    /// TLS without anything to trust.
    #[error("an https:// etcd needs the CA that signed its certificate: pass --etcd-ca FILE")]
    NoCa,
    /// TLS options for an etcd without TLS, or for no etcd at all.
    #[error("--etcd-ca, --etcd-cert and --etcd-key are for https:// endpoints, and {0} is none")]
    TlsUnused(MetaUrl),
    /// A user for something that has no users.
    #[error("--etcd-user is for an etcd, and {0} is none")]
    UserUnused(MetaUrl),
    /// Half of an identity.
    #[error("--etcd-cert and --etcd-key belong together: pass both or neither")]
    HalfIdentity,
    /// A user without a password.
    #[error("the etcd user {0:?} needs a password: pass --etcd-password-file FILE or set TORUS_ETCD_PASSWORD")]
    NoPassword(String),
    /// A file that is named cannot be read.
    #[error("cannot read {path:?}, named by --etcd-password-file")]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is named cannot be read.
    #[error("cannot read {path:?}, named by --etcd-ca, --etcd-cert or --etcd-key")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is named is not what it should be.
    #[error("{path:?} holds no {what} in PEM form: check --etcd-ca, --etcd-cert and --etcd-key")]
    TlsContent {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The files can be read, and not used.
    #[error(
        "the certificates and the key for etcd cannot be used ({reason}): check --etcd-ca, --etcd-cert and --etcd-key"
    )]
    Tls {
        /// What the TLS library says.
        reason: String,
    },
}

impl FromStr for MetaUrl {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = |reason: &str| ConfigError::Url { text: text.into(), reason: reason.into() };
        let trimmed = text.trim();
        if trimmed == "memory:" || trimmed == "memory" {
            return Ok(Self::Memory);
        }
        if let Some(path) = trimmed.strip_prefix("embedded:") {
            if path.is_empty() || path.ends_with('/') {
                return Err(bad("it names no file"));
            }
            return Ok(Self::Embedded(path.into()));
        }
        if trimmed.is_empty() {
            return Err(bad("it is empty"));
        }
        let mut scheme = "http";
        let mut urls = Vec::new();
        for (index, part) in trimmed.split(',').map(str::trim).enumerate() {
            let (own, rest) = match part.split_once("://") {
                Some(("http" | "etcd", rest)) => ("http", rest),
                Some(("https", rest)) => ("https", rest),
                Some((other, _)) => return Err(bad(&format!("{other}:// is not known"))),
                // Members after the first inherit its scheme.
                None => (scheme, part),
            };
            if index > 0 && own != scheme {
                return Err(bad("all members must use http, or all https"));
            }
            scheme = own;
            urls.push(format!("{scheme}://{}", authority(rest).map_err(|reason| bad(&reason))?));
        }
        Ok(Self::Etcd(urls))
    }
}

/// `host:port` of a member, with the default port if it has none.
fn authority(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.contains('@') {
        return Err("user and password do not go into the address: use --etcd-user".into());
    }
    let (host, port) = match text.rfind(']') {
        Some(end) if text.starts_with('[') => (&text[..=end], text[end + 1..].strip_prefix(':')),
        _ => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let sound = match name {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
    };
    if !sound {
        return Err(format!("{host:?} is not a host"));
    }
    let port = match port {
        Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(format!("{port:?} is not a port"))?,
        None if host.len() < text.len() => return Err(format!("{text:?} is not a host and a port")),
        None => PORT,
    };
    Ok(format!("{host}:{port}"))
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(urls) => f.write_str(&urls.join(",")),
            Self::Embedded(path) => write!(f, "embedded:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

/// The files for TLS to etcd, all PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificates of the CAs that sign etcd's.
    pub ca: PathBuf,
    /// Our own certificate and its key, where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Everything about the metadata store that can be configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaConfig {
    /// Which store.
    pub url: MetaUrl,
    /// Where in an etcd: begins and ends with a slash.
    pub prefix: String,
    /// User and password for etcd.
    pub user: Option<(String, String)>,
    /// TLS to etcd.
    pub tls: Option<TlsFiles>,
    /// How long one operation may take.
    pub timeout: Duration,
}

impl MetaConfig {
    /// A store with everything else at its default.
    #[must_use]
    pub fn new(url: MetaUrl) -> Self {
        Self { url, prefix: PREFIX_DEFAULT.into(), user: None, tls: None, timeout: TIMEOUT_DEFAULT }
    }

    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let p = &self.prefix;
        if !p.starts_with('/') || !p.ends_with('/') || p.len() < 3 || p.contains("//") || p.contains(char::is_control) {
            return Err(ConfigError::Prefix(p.clone()));
        }
        let (etcd, encrypted) = match &self.url {
            MetaUrl::Etcd(urls) => (true, urls.iter().all(|url| url.starts_with("https://"))),
            MetaUrl::Embedded(_) | MetaUrl::Memory => (false, false),
        };
        match &self.tls {
            Some(_) if !encrypted => return Err(ConfigError::TlsUnused(self.url.clone())),
            None if encrypted => return Err(ConfigError::NoCa),
            _ => {}
        }
        if self.user.is_some() && !etcd {
            return Err(ConfigError::UserUnused(self.url.clone()));
        }
        Ok(())
    }
}

/// The flags of every program that uses a metadata store.
#[derive(clap::Args, Clone, Debug)]
pub struct MetaArgs {
    /// The metadata store: http[s]://HOST:2379[,HOST:2379…] for an etcd, embedded:/PATH for a file, or memory:
    /// [default: http://127.0.0.1:2379]
    #[arg(long, env = "TORUS_ETCD", value_name = "URL")]
    pub etcd: Option<String>,
    /// Where in etcd Torus keeps its keys
    #[arg(long, env = "TORUS_ETCD_PREFIX", value_name = "PREFIX", default_value = PREFIX_DEFAULT)]
    pub etcd_prefix: String,
    /// The user to sign in to etcd as
    #[arg(long, env = "TORUS_ETCD_USER", value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// A file with that user's password (or set TORUS_ETCD_PASSWORD)
    #[arg(long, env = "TORUS_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
    /// The certificates of the CA that signs etcd's, for https
    #[arg(long, env = "TORUS_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Our certificate, if etcd asks for one
    #[arg(long, env = "TORUS_ETCD_CERT", value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,
    /// The key to that certificate
    #[arg(long, env = "TORUS_ETCD_KEY", value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
}

impl MetaArgs {
    /// The configuration that the flags and `TORUS_ETCD_PASSWORD` make.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn config(&self) -> Result<MetaConfig, ConfigError> {
        let mut config = MetaConfig::new(self.etcd.as_deref().unwrap_or(URL_DEFAULT).parse()?);
        config.prefix.clone_from(&self.etcd_prefix);
        if let Some(user) = &self.etcd_user {
            let password = match &self.etcd_password_file {
                Some(path) => Some(password_in(path)?),
                None => std::env::var("TORUS_ETCD_PASSWORD").ok(),
            };
            let password = password.ok_or_else(|| ConfigError::NoPassword(user.clone()))?;
            config.user = Some((user.clone(), password));
        }
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(ConfigError::HalfIdentity),
        };
        config.tls = match &self.etcd_ca {
            Some(ca) => Some(TlsFiles { ca: ca.clone(), identity }),
            None if identity.is_some() => return Err(ConfigError::NoCa),
            None => None,
        };
        config.check()?;
        Ok(config)
    }
}

fn password_in(path: &Path) -> Result<String, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::PasswordFile { path: path.into(), source })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> MetaUrl {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn addresses_read_as_they_are_meant() {
        let etcd = |urls: &[&str]| MetaUrl::Etcd(urls.iter().map(ToString::to_string).collect());
        assert_eq!(parsed("memory:"), MetaUrl::Memory);
        assert_eq!(parsed("embedded:/a/b.redb"), MetaUrl::Embedded("/a/b.redb".into()));
        assert_eq!(parsed("etcd://a,b:1"), etcd(&["http://a:2379", "http://b:1"]));
        assert_eq!(parsed("http://a:2379, http://b:2379/"), etcd(&["http://a:2379", "http://b:2379"]));
        assert_eq!(parsed("https://a,b"), etcd(&["https://a:2379", "https://b:2379"]));
        assert_eq!(parsed("10.0.0.1:12379"), etcd(&["http://10.0.0.1:12379"]));
        assert_eq!(parsed("http://[::1],[fe80::2]:9"), etcd(&["http://[::1]:2379", "http://[fe80::2]:9"]));
        for text in ["memory:", "embedded:/x", "http://a:1,http://b:2"] {
            assert_eq!(parsed(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("embedded:", "no file"),
            ("embedded:/dir/", "no file"),
            ("ftp://a", "ftp:// is not known"),
            ("http://a,https://b", "all https"),
            ("http://u:p@a", "--etcd-user"),
            ("http://a:0", "not a port"),
            ("http://a:99999", "not a port"),
            ("http://a:b:c", "not a port"),
            ("http://a,", "not a host"),
            ("http://a/path", "not a host"),
            ("http://[::g]", "not a host"),
            ("http://[::1]9", "not a host and a port"),
            ("a b", "not a host"),
            ("../../etc", "not a host"),
        ] {
            let error = text.parse::<MetaUrl>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let config = |url: &str| MetaConfig::new(parsed(url));
        let tls = Some(TlsFiles { ca: "ca".into(), identity: None });
        assert!(matches!(config("https://a").check(), Err(ConfigError::NoCa)));
        assert!(MetaConfig { tls: tls.clone(), ..config("https://a") }.check().is_ok());
        assert!(matches!(MetaConfig { tls, ..config("http://a") }.check(), Err(ConfigError::TlsUnused(_))));
        let user = Some(("u".to_string(), "p".to_string()));
        assert!(matches!(MetaConfig { user, ..config("memory:") }.check(), Err(ConfigError::UserUnused(_))));
        for prefix in ["", "/", "torus/", "/torus", "/a//b/", "/a\n/"] {
            let bad = MetaConfig { prefix: prefix.into(), ..config("http://a") }.check();
            assert!(matches!(bad, Err(ConfigError::Prefix(_))), "{prefix:?}");
        }
    }

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        meta: MetaArgs,
    }

    fn flags(flags: &[&str]) -> Result<MetaConfig, ConfigError> {
        <Program as clap::Parser>::parse_from([&["program"], flags].concat()).meta.config()
    }

    #[test]
    fn flags_make_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "pass word\n").unwrap();
        let file = file.to_str().unwrap();
        let url = ["--etcd", "https://a,b", "--etcd-ca", "ca.pem", "--etcd-cert", "c.pem", "--etcd-key", "k.pem"];
        let user = ["--etcd-user", "u", "--etcd-password-file", file, "--etcd-prefix", "/other/"];
        let config = flags(&[&url[..], &user[..]].concat()).unwrap();
        assert_eq!(config.url.to_string(), "https://a:2379,https://b:2379");
        assert_eq!(config.user, Some(("u".into(), "pass word".into())));
        let identity = Some(("c.pem".into(), "k.pem".into()));
        assert_eq!(config.tls, Some(TlsFiles { ca: "ca.pem".into(), identity }));
        assert_eq!((config.prefix.as_str(), config.timeout), ("/other/", TIMEOUT_DEFAULT));
    }

    #[test]
    fn half_a_configuration_is_refused() {
        assert!(matches!(flags(&["--etcd", "https://a", "--etcd-cert", "c"]), Err(ConfigError::HalfIdentity)));
        let identity = ["--etcd", "https://a", "--etcd-cert", "c", "--etcd-key", "k"];
        assert!(matches!(flags(&identity), Err(ConfigError::NoCa)));
        let missing = ["--etcd", "a", "--etcd-user", "u", "--etcd-password-file", "/no/such/file"];
        assert!(matches!(flags(&missing), Err(ConfigError::PasswordFile { .. })));
        assert!(matches!(flags(&["--etcd", "a b"]), Err(ConfigError::Url { .. })));
    }
}
