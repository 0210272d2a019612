//! The options of a FlexVolume, as a pod's manifest has them, and what Kubernetes adds.
//!
//! | option | meaning |
//! |---|---|
//! | `volume` | the volume's name or id |
//! | `trim` | `true`: what is deleted in the filesystem is given back at once |
//! | `kubernetes.io/fsType` | `ext4` or `xfs`: what it must hold, or is to be made on it |
//! | `kubernetes.io/readwrite` | `rw` or `ro` |
//! | `etcd`, `writeLevel`, `writeCacheSize` | of the first Torus: taken, and without effect. The agent knows its etcd, and when a write is acknowledged belongs to the volume (`--ack-mode`) |
//!
//! Other options of `kubernetes.io/` are Kubernetes's own, and passed over. Anything else is refused by name.

use serde_json::{Map, Value};

/// More than this is no volume's options.
const BYTES_MAX: usize = 64 * 1024;
/// Options without an effect, that manifests for the first Torus have.
const OLD: [&str; 3] = ["etcd", "writeLevel", "writeCacheSize"];
const KUBERNETES: &str = "kubernetes.io/";

/// What a volume is wanted for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Its name or id.
    pub volume: String,
    /// Give space back at once.
    pub trim: bool,
    /// Empty: what it holds.
    pub filesystem: String,
    /// It takes no writes.
    pub read_only: bool,
}

/// Reads the options in `json`; a sentence where they are none.
pub fn read(json: &str) -> Result<Options, String> {
    if json.len() > BYTES_MAX {
        return Err(format!("the options have {} bytes, which no volume's have", json.len()));
    }
    let parsed: Result<Map<String, Value>, _> = serde_json::from_str(json);
    let parsed = parsed.map_err(|error| format!("the options are no JSON object: {error}"))?;
    let mut options = Options::default();
    for (key, value) in &parsed {
        let shown: String = key.chars().take(64).collect();
        let text = match (value, key.starts_with(KUBERNETES)) {
            (Value::String(text), _) => text.as_str(),
            (Value::Bool(flag), _) => {
                if *flag {
                    "true"
                } else {
                    "false"
                }
            }
            (_, true) => continue,
            _ => return Err(format!("option {shown:?} is no text")),
        };
        let wrong = |expected: &str| {
            let text: String = text.chars().take(64).collect();
            Err(format!("option {shown:?} is {text:?}, and should be {expected}"))
        };
        match key.as_str() {
            "volume" if is_volume(text) => options.volume = text.into(),
            "volume" => return wrong("a volume's name: a-z, 0-9, dot, underscore and hyphen, or its id"),
            "trim" => match text {
                "true" | "yes" | "1" => options.trim = true,
                "" | "false" | "no" | "0" => {}
                _ => return wrong("true or false"),
            },
            "kubernetes.io/fsType" => match text {
                "" | "ext4" | "xfs" => options.filesystem = text.into(),
                _ => return wrong("ext4 or xfs"),
            },
            "kubernetes.io/readwrite" => match text {
                "ro" => options.read_only = true,
                "" | "rw" => {}
                _ => return wrong("rw or ro"),
            },
            key if OLD.contains(&key) || key.starts_with(KUBERNETES) => {}
            _ => return Err(format!("option {shown:?} is unknown. Known are volume, trim, and {}", OLD.join(", "))),
        }
    }
    if options.volume.is_empty() {
        return Err("option \"volume\" is missing: it names the volume".into());
    }
    Ok(options)
}

/// The rules of the agent, so that nothing else reaches it.
fn is_volume(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| plain(b) || b"._-".contains(&b))
        && text.bytes().next().is_some_and(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_the_first_torus_is_read() {
        let json = r#"{"kubernetes.io/fsType":"ext4","kubernetes.io/readwrite":"rw","volume":"pgvol","etcd":"1.2.3.4:2379",
            "trim":"true","writeLevel":"all","writeCacheSize":"512MiB","kubernetes.io/pod.name":"p","kubernetes.io/x":7}"#;
        let expected = Options { volume: "pgvol".into(), trim: true, filesystem: "ext4".into(), read_only: false };
        assert_eq!(read(json), Ok(expected));
        assert!(read(r#"{"volume":"v","kubernetes.io/readwrite":"ro"}"#).unwrap().read_only);
    }

    #[test]
    fn hostile_options_are_refused_with_a_sentence() {
        for (json, words) in [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            ("{\"volume\":", "no JSON object"),
            ("{}", "\"volume\" is missing"),
            (r#"{"volume":""}"#, "a volume's name"),
            (r#"{"volume":"../../etc"}"#, "a volume's name"),
            (r#"{"volume":"-rf"}"#, "a volume's name"),
            (r#"{"volume":"a\u0000b"}"#, "a volume's name"),
            (r#"{"volume":{"a":1}}"#, "no text"),
            (r#"{"volume":"v","volum":"w"}"#, "\"volum\" is unknown"),
            (r#"{"volume":"v","kubernetes.io/fsType":"ntfs"}"#, "ext4 or xfs"),
            (r#"{"volume":"v","trim":"perhaps"}"#, "true or false"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
        assert!(read(&format!("{{\"volume\":\"{}\"}}", "a".repeat(1 << 20))).unwrap_err().contains("no volume's have"));
        assert!(read(&"[".repeat(60_000)).is_err());
    }
}
