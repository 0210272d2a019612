//! What a kubelet is answered.

use serde::Serialize;
use std::process::ExitCode;

/// Characters of a message that are passed on.
const MESSAGE_MAX: usize = 4000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
enum Status {
    Success,
    Failure,
    #[serde(rename = "Not supported")]
    NotSupported,
}

/// What the driver can do, for `init`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    attach: bool,
    selinux_relabel: bool,
    supports_metrics: bool,
    fs_group: bool,
    #[serde(rename = "requiresFSResize")]
    requires_fs_resize: bool,
}

/// One answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The device, for calls that attach.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl Reply {
    fn of(status: Status) -> Self {
        Self {
            status,
            message: None,
            device: None,
            volume_name: None,
            attached: None,
            capabilities: None,
            version: None,
        }
    }

    /// Done.
    pub fn success() -> Self {
        Self::of(Status::Success)
    }

    /// Not done, and why.
    pub fn failure(message: impl Into<String>) -> Self {
        let message = message.into().chars().take(MESSAGE_MAX).collect();
        Self { message: Some(message), ..Self::of(Status::Failure) }
    }

    /// No call of this driver.
    pub fn not_supported(call: &str) -> Self {
        let message = format!("{:?} is no call of this driver", call.chars().take(40).collect::<String>());
        Self { message: Some(message), ..Self::of(Status::NotSupported) }
    }

    /// Ready. The kubelet mounts and unmounts by itself; nobody else has to attach first.
    pub fn ready() -> Self {
        let capabilities = Capabilities {
            attach: false,
            selinux_relabel: true,
            supports_metrics: false,
            fs_group: true,
            requires_fs_resize: false,
        };
        Self { capabilities: Some(capabilities), ..Self::success() }
    }

    /// Attached, as this device.
    pub fn device(device: String) -> Self {
        Self { device: Some(device), ..Self::success() }
    }

    /// What the volume is called.
    pub fn volume_name(name: String) -> Self {
        Self { volume_name: Some(name), ..Self::success() }
    }

    /// Whether it is attached.
    pub fn attached(attached: bool) -> Self {
        Self { attached: Some(attached), ..Self::success() }
    }

    /// The driver's own version.
    pub fn version() -> Self {
        Self { version: Some(env!("CARGO_PKG_VERSION").into()), ..Self::success() }
    }

    /// Prints it; the exit code that goes with it.
    pub fn print(&self) -> ExitCode {
        // Texts and truth values: JSON holds them all.
        println!("{}", serde_json::to_string(self).unwrap_or_else(|_| r#"{"status":"Failure"}"#.into()));
        if self.status == Status::Success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_spelled_as_kubelets_read_them() {
        let text = |reply: Reply| serde_json::to_string(&reply).unwrap();
        assert_eq!(text(Reply::device("/dev/loop0".into())), r#"{"status":"Success","device":"/dev/loop0"}"#);
        assert_eq!(text(Reply::volume_name("v".into())), r#"{"status":"Success","volumeName":"v"}"#);
        assert_eq!(text(Reply::attached(false)), r#"{"status":"Success","attached":false}"#);
        assert!(text(Reply::ready()).contains(r#""capabilities":{"attach":false,"#));
        assert!(text(Reply::not_supported("x")).starts_with(r#"{"status":"Not supported","#));
        assert!(text(Reply::failure("a\"\n".repeat(9000))).len() < 20_000);
    }
}
