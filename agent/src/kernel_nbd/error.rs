//! Why a kernel NBD device is not what it should be.

use super::Device;
use crate::nbd::ExportError;
use nix::errno::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// What failed, on which device, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelNbdError {
    /// No module.
    #[error("this kernel ({0}) has no nbd driver loaded: load it with `modprobe nbd`, or use another kind of device")]
    NoModule(String),
    /// A module, but no family.
    #[error(
        "the kernel's nbd driver cannot be reached from here: it answers only in the host's own network namespace. \
         Run this process there (in Kubernetes: hostNetwork), or use another kind of device"
    )]
    NoFamily,
    /// An old kernel.
    #[error(
        "this kernel ({0}) does not keep whose an NBD device is, so that it could be given to the wrong volume after a \
         restart: that takes Linux 5.14. Use another kind of device"
    )]
    TooOld(String),
    /// No privilege.
    #[error("cannot set up NBD devices: this takes CAP_SYS_ADMIN. Run as root, or use another kind of device")]
    NotPermitted,
    /// No netlink.
    #[error("cannot speak netlink to the kernel: something such as a seccomp filter keeps this process from it")]
    Netlink(#[source] io::Error),
    /// A pair of sockets.
    #[error("cannot make a socket for a kernel NBD device: this process or this host has too many open files")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused to {doing} {device} ({errno}): its log (dmesg) has the reason")]
    Refused {
        /// What.
        doing: &'static str,
        /// On which device, or "a device".
        device: String,
        /// The answer.
        errno: Errno,
    },
    /// No answer.
    #[error("the kernel gave no answer that makes sense when asked to {doing} {device}")]
    Unanswered {
        /// What.
        doing: &'static str,
        /// On which device, or "a device".
        device: String,
        /// What came.
        #[source]
        source: io::Error,
    },
    /// No node.
    #[error("the kernel made {0}, but no such file appeared: this process needs the host's /dev")]
    NoNode(PathBuf),
    /// Not set up.
    #[error("{0} is not connected: there is nothing to take over. Attach the volume anew")]
    NotConnected(Device),
    /// Ended by somebody else.
    #[error("{0} was disconnected by somebody else: the volume is not served by it any more. Attach the volume anew")]
    Disconnected(Device),
    /// Somebody else's.
    #[error("{device} belongs to {found:?}, not to {wanted:?}: it was set up anew meanwhile. Attach the volume anew")]
    Another {
        /// The device.
        device: Device,
        /// Whose it should be.
        wanted: String,
        /// Whose it is; empty where it was set up by something that does not say.
        found: String,
    },
    /// Nothing to serve.
    #[error("{device} is connected to nothing")]
    Export {
        /// The device.
        device: Device,
        /// Why.
        #[source]
        source: ExportError,
    },
    /// The old connection stands.
    #[error(
        "{0} is still served by another process: wait until that has ended, or end it, then attach the volume again"
    )]
    StillServed(Device),
}

impl KernelNbdError {
    /// There is no `nbd` family: find out why.
    pub(super) fn no_family() -> Self {
        if Path::new("/sys/module/nbd").exists() {
            return Self::NoFamily;
        }
        Self::NoModule(release())
    }
}

/// Which kernel this is.
pub(super) fn release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}
