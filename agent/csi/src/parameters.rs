//! The parameters of a StorageClass.
//!
//! | parameter | meaning |
//! |---|---|
//! | `replicas` | copies of each extent; by default what the ring says |
//! | `minReplicas` | copies without which nothing is acknowledged; by default one less, at least 1 |
//! | `ackMode` | `durable` (default) or `received` |
//! | `csi.storage.k8s.io/fstype` | `ext4` (default) or `xfs`; Kubernetes passes it on with each call |

use std::collections::HashMap;
use std::str::FromStr;
use torus_agent::grpc::Failure;
use torus_agent::node::Filesystem;
use torus_core::meta::docs::AckMode;

const KNOWN: &str = "replicas, minReplicas, ackMode, csi.storage.k8s.io/fstype";
/// What Kubernetes says of the claim, for people.
const ABOUT: [&str; 3] =
    ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parameters {
    /// Copies.
    pub replicas: Option<u8>,
    /// The least.
    pub min_replicas: Option<u8>,
    /// When a write is acknowledged.
    pub ack_mode: AckMode,
    /// What is going to be made on it, if that was said.
    pub filesystem: Option<Filesystem>,
}

impl Parameters {
    /// Reads them.
    ///
    /// # Errors
    /// Names the first that is unknown, or has a value that is none.
    pub fn read(given: &HashMap<String, String>) -> Result<Self, Failure> {
        let mut read = Self::default();
        let mut keys: Vec<_> = given.iter().collect();
        keys.sort();
        for (key, value) in keys {
            match key.as_str() {
                "replicas" => read.replicas = Some(number(key, value)?),
                "minReplicas" => read.min_replicas = Some(number(key, value)?),
                "ackMode" => {
                    read.ack_mode = match value.as_str() {
                        "durable" => AckMode::Durable,
                        "received" => AckMode::Received,
                        _ => return Err(wrong(key, value, "durable or received")),
                    }
                }
                "csi.storage.k8s.io/fstype" => {
                    let filesystem = Filesystem::from_str(value).map_err(|_| wrong(key, value, "ext4 or xfs"))?;
                    read.filesystem = Some(filesystem);
                }
                key if ABOUT.contains(&key) => {}
                key => {
                    let key: String = key.chars().take(64).collect();
                    return Err(Failure::invalid(format!(
                        "StorageClass parameter {key:?} is unknown. Known are {KNOWN}"
                    )));
                }
            }
        }
        Ok(read)
    }
}

fn number(key: &str, value: &str) -> Result<u8, Failure> {
    value.parse().map_err(|_| wrong(key, value, "a number from 1 to 7"))
}

fn wrong(key: &str, value: &str, expected: &str) -> Failure {
    let value: String = value.chars().take(64).collect();
    Failure::invalid(format!("StorageClass parameter {key} is {value:?}, and should be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Parameters, Failure> {
        Parameters::read(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn known_parameters_are_read() {
        let given = [
            ("replicas", "3"),
            ("minReplicas", "2"),
            ("ackMode", "received"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ];
        let expected = Parameters {
            replicas: Some(3),
            min_replicas: Some(2),
            ack_mode: AckMode::Received,
            filesystem: Some(Filesystem::Xfs),
        };
        assert_eq!(read(&given).unwrap(), expected);
        assert_eq!(read(&[]).unwrap(), Parameters::default());
    }

    #[test]
    fn others_are_named() {
        for (pair, word) in [
            (("replica", "3"), "\"replica\""),
            (("replicas", "-1"), "replicas is \"-1\""),
            (("ackMode", "fast"), "durable or received"),
            (("csi.storage.k8s.io/fstype", "ntfs"), "ext4 or xfs"),
        ] {
            let error = read(&[pair]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
