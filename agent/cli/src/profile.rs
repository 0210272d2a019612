//! Where the cluster is: flags, then environment, then a profile of the configuration file, then this machine.
//!
//! The file is YAML, at `--config`, `$TORUS_CONFIG`, or `torus/config.yaml` under `$XDG_CONFIG_HOME` or `~/.config`:
//!
//! ```yaml
//! current: home
//! profiles:
//!   home: {etcd: "http://10.0.0.5:2379"}
//!   lab: {etcd: "https://lab-1,https://lab-2", etcd-ca: /etc/lab/ca.pem}
//! ```
//!
//! A profile's fields are the flags of the same names. `--etcd` (or `TORUS_ETCD`) leaves the current profile out
//! altogether: one cluster's address with another's certificates is never what was meant. The file holds no secrets: a
//! password is named by the file it is in.

use crate::args::Global;
use crate::failure::{self, Failure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use torus_agent::metadata::{MetaArgs, MetaConfig};

/// The profile that is used and written when none is named.
pub const DEFAULT: &str = "default";

/// The configuration file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The profile that is used when none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All profiles.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
}

/// How to reach one cluster. Every field has a flag of its name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Profile {
    /// The metadata store's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// Where in etcd Torus keeps its keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_prefix: Option<String>,
    /// etcd's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_user: Option<String>,
    /// The file that holds the user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_password_file: Option<PathBuf>,
    /// The authority that etcd's certificate is checked against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_ca: Option<PathBuf>,
    /// The certificate shown to etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd_key: Option<PathBuf>,
}

impl Profile {
    /// Sets the field called `key`; an empty `value` unsets it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        let given = (!value.is_empty()).then(|| value.to_owned());
        let path = given.clone().map(PathBuf::from);
        match key {
            "etcd" => self.etcd = given,
            "etcd-prefix" => self.etcd_prefix = given,
            "etcd-user" => self.etcd_user = given,
            "etcd-password-file" => self.etcd_password_file = path,
            "etcd-ca" => self.etcd_ca = path,
            "etcd-cert" => self.etcd_cert = path,
            "etcd-key" => self.etcd_key = path,
            _ => {
                let fields = "etcd, etcd-prefix, etcd-user, etcd-password-file, etcd-ca, etcd-cert, etcd-key";
                return Err(
                    Failure::usage(format!("a profile has no field {key:?}")).next(format!("It has: {fields}."))
                );
            }
        }
        Ok(())
    }

    /// Fills in what `args` leave open.
    fn complete(self, args: &mut MetaArgs, prefix_given: bool) {
        args.etcd = args.etcd.take().or(self.etcd);
        args.etcd_user = args.etcd_user.take().or(self.etcd_user);
        args.etcd_password_file = args.etcd_password_file.take().or(self.etcd_password_file);
        args.etcd_ca = args.etcd_ca.take().or(self.etcd_ca);
        args.etcd_cert = args.etcd_cert.take().or(self.etcd_cert);
        args.etcd_key = args.etcd_key.take().or(self.etcd_key);
        if let Some(prefix) = self.etcd_prefix.filter(|_| !prefix_given) {
            args.etcd_prefix = prefix;
        }
    }
}

impl File {
    /// The file at `path`; what is not there is empty.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unusable(path, &error)),
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_yaml::from_slice(&bytes).map_err(|error| unusable(path, &error))
    }

    /// Writes it to `path`: whole, or not at all.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let wrap = |error: &io::Error| Failure::because(format!("cannot write {}", path.display()), error);
        let text = serde_yaml::to_string(self).map_err(|e| Failure::because("cannot write YAML", &e))?;
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(|e| wrap(&e))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = directory.join(name);
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
        written.map_err(|error| {
            // The error tells what happened; a leftover of that name is overwritten next time.
            let _ = fs::remove_file(&temporary);
            wrap(&error)
        })
    }

    /// The profile called `name`, or the current one; with its name.
    pub fn chosen(&self, name: Option<&str>, path: &Path) -> Result<(String, Profile), Failure> {
        let wanted = name.or(self.current.as_deref());
        match wanted.map(|name| (name, self.profiles.get(name))) {
            Some((name, Some(profile))) => Ok((name.to_owned(), profile.clone())),
            Some((name, None)) => {
                let known: Vec<_> = self.profiles.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Failure::usage(format!("there is no profile {name:?} in {}", path.display()))
                    .next(format!("There is: {known}. `torusctl config --profile {name} set etcd=URL` makes it.")))
            }
            None => Ok((DEFAULT.to_owned(), self.profiles.get(DEFAULT).cloned().unwrap_or_default())),
        }
    }
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::because(format!("cannot use the configuration file {}", path.display()), error)
        .next("Mend it, or name another with --config.")
}

/// How to reach the cluster that the flags, the environment and the configuration file mean.
pub fn metadata(global: &Global) -> Result<MetaConfig, Failure> {
    let mut args = global.metadata.clone();
    if args.etcd.is_none() || global.profile.is_some() {
        let path = path(global)?;
        let (_, profile) = File::load(&path)?.chosen(global.profile.as_deref(), &path)?;
        profile.complete(&mut args, global.prefix_given);
    }
    args.config().map_err(|error| Failure::usage(failure::told(&error)))
}

/// Where the configuration file is.
pub fn path(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(path) = &global.config {
        return Ok(path.clone());
    }
    let directory = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = directory("XDG_CONFIG_HOME").or_else(|| directory("HOME").map(|home| home.join(".config")));
    base.map(|dir| dir.join("torus").join("config.yaml")).ok_or_else(|| {
        Failure::failed("cannot tell where the configuration file is: HOME is not set").next("Name it with --config.")
    })
}
