//! What kubelets ask for, in the words of old ones and of current ones.
//!
//! | words | |
//! |---|---|
//! | `init` | |
//! | `version` | the driver's own, for `torusctl flex doctor` |
//! | `getvolumename JSON` | |
//! | `attach JSON [NODE]` | |
//! | `waitforattach DEVICE JSON` | |
//! | `isattached JSON NODE` | |
//! | `detach DEVICE-OR-VOLUME [NODE]` | |
//! | `mountdevice DIR DEVICE JSON` | mounts the filesystem |
//! | `unmountdevice DIR` | unmounts it, and detaches the volume |
//! | `mount DIR JSON`, `mount DIR DEVICE JSON` | attaches if nobody has, and mounts the filesystem |
//! | `unmount DIR` | as `unmountdevice` |

use crate::options::{self, Options};
use crate::reply::Reply;

/// One call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// What the driver can do.
    Init,
    /// Which version it is.
    Version,
    /// What a volume is called.
    Name(Options),
    /// Make it a device; the node that is meant, if that was said.
    Attach(Options, Option<String>),
    /// Whether it is one.
    IsAttached(Options),
    /// Make it one no more: its device, or its name.
    Detach(String),
    /// Mount it on a directory.
    Mount(String, Options),
    /// Unmount and detach what is mounted on a directory.
    Unmount(String),
}

/// Reads a call; the answer where it is none.
pub fn read(words: &[String]) -> Result<Call, Reply> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let options = |json: &str| options::read(json).map_err(Reply::failure);
    Ok(match words.as_slice() {
        ["init"] => Call::Init,
        ["version"] => Call::Version,
        ["getvolumename", json] => Call::Name(options(json)?),
        ["attach", json] => Call::Attach(options(json)?, None),
        ["attach", json, node] => Call::Attach(options(json)?, Some((*node).into())),
        ["waitforattach", _, json] => Call::Attach(options(json)?, None),
        ["isattached", json, _] => Call::IsAttached(options(json)?),
        ["detach", device] | ["detach", device, _] => Call::Detach(what(device)?),
        ["mountdevice", directory, _, json] | ["mount", directory, _, json] | ["mount", directory, json] => {
            Call::Mount(path(directory)?, options(json)?)
        }
        ["unmountdevice", directory] | ["unmount", directory] => Call::Unmount(path(directory)?),
        [] => {
            return Err(Reply::failure(
                "this is the FlexVolume driver coreos.com/torus, for kubelets to call: try `init`",
            ));
        }
        [call, ..] if is_known(call) => {
            return Err(Reply::failure(format!("{call} was called with {} arguments", words.len() - 1)));
        }
        [call, ..] => return Err(Reply::not_supported(call)),
    })
}

fn is_known(call: &str) -> bool {
    let known = [
        "init",
        "version",
        "getvolumename",
        "attach",
        "waitforattach",
        "isattached",
        "detach",
        "mountdevice",
        "mount",
        "unmountdevice",
        "unmount",
    ];
    known.contains(&call)
}

fn path(text: &str) -> Result<String, Reply> {
    if text.starts_with('/') && text.len() < 4096 {
        return Ok(text.into());
    }
    Err(Reply::failure(format!("{:?} is no absolute path", text.chars().take(100).collect::<String>())))
}

/// A device, or a volume's name.
fn what(text: &str) -> Result<String, Reply> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if (1..256).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('-') {
        return Ok(text.into());
    }
    Err(Reply::failure(format!("{:?} is no device, and no volume's name", text.chars().take(100).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"volume":"v"}"#;

    fn call(words: &[&str]) -> Result<Call, Reply> {
        read(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn both_forms_are_understood() {
        let options = || Options { volume: "v".into(), ..Options::default() };
        let mount = || Ok(Call::Mount("/d".into(), options()));
        assert_eq!(call(&["init"]), Ok(Call::Init));
        assert_eq!(call(&["attach", JSON]), Ok(Call::Attach(options(), None)));
        assert_eq!(call(&["attach", JSON, "n1"]), Ok(Call::Attach(options(), Some("n1".into()))));
        assert_eq!(call(&["mount", "/d", "/dev/loop0", JSON]), mount());
        assert_eq!(call(&["mount", "/d", JSON]), mount());
        assert_eq!(call(&["mountdevice", "/d", "/dev/loop0", JSON]), mount());
        assert_eq!(call(&["waitforattach", "/dev/loop0", JSON]), Ok(Call::Attach(options(), None)));
        assert_eq!(call(&["isattached", JSON, "n1"]), Ok(Call::IsAttached(options())));
        assert_eq!(call(&["detach", "/dev/loop0"]), Ok(Call::Detach("/dev/loop0".into())));
        assert_eq!(call(&["detach", "v", "n1"]), Ok(Call::Detach("v".into())));
        assert_eq!(call(&["unmount", "/d"]), Ok(Call::Unmount("/d".into())));
        assert_eq!(call(&["unmountdevice", "/d"]), Ok(Call::Unmount("/d".into())));
        assert_eq!(call(&["getvolumename", JSON]), Ok(Call::Name(options())));
    }

    #[test]
    fn other_words_get_an_answer_too() {
        for words in [&["mount", "d", JSON][..], &["mount", "-o", JSON], &["detach", "-a"], &["attach"], &[]] {
            assert!(call(words).is_err(), "{words:?}");
        }
        assert_eq!(call(&["expandfs", JSON]), Err(Reply::not_supported("expandfs")));
    }
}
