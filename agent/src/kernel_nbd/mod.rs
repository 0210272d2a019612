//! Kernel NBD: a volume as `/dev/nbdN`, set up by generic netlink, that outlives the process which serves it.
//!
//! The kernel's nbd driver is the client. It is given one end of a `socketpair`; the other end is served by
//! [`nbd::Server`](crate::nbd::Server), from the transmission phase on, as there is nothing to negotiate. When the
//! process ends, however it ends, the device stays: requests wait in the kernel until another process gives the device
//! a new socket ([`reconfigure`]), and whatever the old process had not answered is then sent again. The application
//! sees a pause. (`ioctl` setup, which nbd-client used to do, cannot do that.)
//!
//! Two waits have to be told apart, and only one of them ends:
//! - *The process is there and does not answer*, because the volume cannot: agents are away, the pool is full. Then the
//!   request waits for as long as it takes. So no request timeout is set: with one, the kernel would drop the connection
//!   and send every waiting request again and again on new ones, piling up copies of the same writes here.
//! - *No process is there.* Requests wait for [`Shape::dead_time`], counted from the first that is made after the end; then
//!   they fail, and all later ones with them, until somebody serves the device again. Requests that the old process had
//!   taken and not answered are not failed by that; they wait for the next process, or for [`disconnect`].
//!
//! A request that was under way when the process ended is sent again when the kernel's timer next looks at it, so that
//! timer (`queue/io_timeout`) is set to a few seconds, [`RESEND_TIME`]. Its expiry does no more than that, and to write
//! "Possible stuck request" into the kernel's log.
//!
//! # Invariants
//! 1. A device belongs to one volume, by the identifier that the kernel keeps with it. Nothing here gives a socket to
//!    a device of another identifier: numbers are used again, after a detach or a restart of the machine.
//! 2. A device has one socket at a time, and a new one is given only when the old one is dead. So no request can wait in
//!    an old socket, be sent again by a new one, and be carried out twice with another write to the same blocks between.
//! 3. What [`reconfigure`] gives is the other end of a socket that the kernel has taken, not one that it has passed over.
//!
//! What is *not* here: several sockets for one device, because with those the kernel takes a request that waits longer
//! than its timer for a broken connection, which is the first wait above; loading the module; knowing which
//! device belongs to which volume after a restart (that is recorded by whoever attaches).
//!
//! Wants Linux 5.14 or newer, for the identifier. Held by tests in a guest with Debian's kernel: `deploy/e2e/tests/kernel_nbd.rs`.

mod error;
mod family;
mod message;
mod served;

pub use error::KernelNbdError;
pub use served::KernelDevice;

use family::{Family, Refusal};
use message::{Attribute, Command, Message};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use torus_core::ids::BLOCK_SIZE;
use torus_core::nbd::TransmissionFlags;

/// How often the kernel looks after a request that is not answered, and so, at most, how long after a takeover it is sent
/// again.
pub const RESEND_TIME: Duration = Duration::from_secs(3);
/// How long requests wait for a process to serve them, unless somebody wants otherwise.
pub const DEAD_TIME_DEFAULT: Duration = Duration::from_secs(300);
/// How long a process that was killed may take to be gone.
const OLD_SOCKET_TIME: Duration = Duration::from_secs(10);
/// How long a device's node may take to appear.
const NODE_TIME: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A device of the kernel's nbd driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Device(pub u32);

impl Device {
    /// Its node.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// The device whose node is `/dev/nbdN`.
    #[must_use]
    pub fn of_path(path: &std::path::Path) -> Option<Self> {
        let index = path.to_str()?.strip_prefix("/dev/nbd")?;
        // No second spelling of a number.
        index.parse().ok().map(Self).filter(|device: &Self| device.path() == path)
    }

    fn sysfs(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/nbd{}/{file}", self.0))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

/// What a device is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Its size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// It takes no writes.
    pub read_only: bool,
    /// Whom it belongs to: the same text, and no other, gets it again.
    pub identifier: String,
    /// How long requests wait when no process serves it; whole seconds, at least one. `None`: [`DEAD_TIME_DEFAULT`] for a
    /// new device, and for one that is taken over what it has.
    pub dead_time: Option<Duration>,
}

impl Shape {
    fn attributes(&self, socket: &OwnedFd) -> Vec<Attribute> {
        let mut attributes = vec![
            Attribute::SizeBytes(self.size_bytes),
            Attribute::BlockSizeBytes(BLOCK_SIZE as u64),
            Attribute::ServerFlags(TransmissionFlags::of_export(self.read_only).0.into()),
            Attribute::Backend(self.identifier.clone()),
            Attribute::Socket(socket.as_raw_fd()),
        ];
        attributes.extend(self.dead_time.map(|time| Attribute::DeadConnectionSecs(time.as_secs().max(1))));
        attributes
    }
}

/// What the kernel says of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// It is set up, or still in use since it was.
    pub connected: bool,
    /// Whom it belongs to, if it was said when it was set up.
    pub identifier: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// Whether devices can be set up here; else why not. Changes nothing.
///
/// # Errors
/// The reason.
pub fn check() -> Result<(), KernelNbdError> {
    Family::open()?;
    match may_administer() {
        true => Ok(()),
        false => Err(KernelNbdError::NotPermitted),
    }
}

/// Whether this process has CAP_SYS_ADMIN. (Whether it has it where the kernel looks, outside of any user namespace, shows
/// when it asks for something.)
fn may_administer() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & CAP_SYS_ADMIN != 0)
}

/// Sets up a device that is free, chosen by the kernel, and gives the socket by which its requests come. Blocks for a
/// moment; requests may come before it returns.
///
/// # Errors
/// When there is no driver, no permission, or the kernel refuses. Nothing is left set up then.
pub fn connect(shape: &Shape) -> Result<(Device, UnixStream), KernelNbdError> {
    let family = Family::open()?;
    let (ours, theirs) = pair()?;
    let shape = &Shape { dead_time: shape.dead_time.or(Some(DEAD_TIME_DEFAULT)), ..shape.clone() };
    let mut attributes = shape.attributes(&theirs);
    attributes.push(Attribute::TimeoutSecs(0));
    let asked = Asked { doing: "connect", device: None };
    let answers = asked.of(&family, Command::Connect, attributes)?;
    let device = answers.iter().flat_map(|answer| &answer.attributes).find_map(|attribute| match attribute {
        Attribute::Index(index) => Some(Device(*index)),
        _ => None,
    });
    let device = device.ok_or_else(|| asked.unanswered(io::Error::other("it does not say which device it took")))?;
    let node = device.path();
    if !within(NODE_TIME, || Ok(node.exists()))? {
        disconnect(device)?;
        return Err(KernelNbdError::NoNode(node));
    }
    if status_of(&family, device)?.and_then(|status| status.identifier).as_ref() != Some(&shape.identifier) {
        disconnect(device)?;
        return Err(KernelNbdError::TooOld(error::release()));
    }
    watch_requests(device);
    Ok((device, ours))
}

/// Gives a device whose process has ended a new socket, by which it sends again what was not answered. Blocks until the
/// kernel has noticed the end, at most some seconds.
///
/// # Errors
/// When the device is not connected, belongs to another, or its old process still serves it.
pub fn reconfigure(device: Device, shape: &Shape) -> Result<UnixStream, KernelNbdError> {
    let family = Family::open()?;
    let asked = Asked { doing: "reconnect", device: Some(device) };
    let mut taken = None;
    within(OLD_SOCKET_TIME, || {
        match status_of(&family, device)? {
            Some(Status { connected: true, identifier, .. }) => {
                let found = identifier.unwrap_or_default();
                if found != shape.identifier {
                    return Err(KernelNbdError::Another { device, wanted: shape.identifier.clone(), found });
                }
            }
            _ => return Err(KernelNbdError::NotConnected(device)),
        }
        let (ours, theirs) = pair()?;
        let mut attributes = shape.attributes(&theirs);
        attributes.push(Attribute::Index(device.0));
        asked.of(&family, Command::Reconfigure, attributes)?;
        drop(theirs);
        // The kernel says yes also when no socket of the device is dead yet, and then keeps none of the new one.
        if !is_hung_up(&ours) {
            taken = Some(ours);
        }
        Ok(taken.is_some())
    })?;
    let socket = taken.ok_or(KernelNbdError::StillServed(device))?;
    watch_requests(device);
    Ok(socket)
}

/// Tells the kernel a device's new size.
///
/// # Errors
/// When the device is not there, or belongs to another.
pub fn resize(device: Device, shape: &Shape) -> Result<(), KernelNbdError> {
    let attributes = vec![
        Attribute::Index(device.0),
        Attribute::SizeBytes(shape.size_bytes),
        Attribute::BlockSizeBytes(BLOCK_SIZE as u64),
        Attribute::Backend(shape.identifier.clone()),
    ];
    let asked = Asked { doing: "resize", device: Some(device) };
    asked.of(&Family::open()?, Command::Reconfigure, attributes).map(drop)
}

/// Ends a device: what waits in it fails, and so does every later request of who still has it open. Whether it is in use
/// has to be seen to before. A device that is not connected is left as it is.
///
/// # Errors
/// When the kernel refuses.
pub fn disconnect(device: Device) -> Result<(), KernelNbdError> {
    let family = Family::open()?;
    if !status_of(&family, device)?.is_some_and(|status| status.connected) {
        return Ok(());
    }
    let asked = Asked { doing: "disconnect", device: Some(device) };
    asked.of(&family, Command::Disconnect, vec![Attribute::Index(device.0)]).map(drop)
}

/// What the kernel says of `device`; `None` where it has no such device.
///
/// # Errors
/// When it cannot be asked.
pub fn status(device: Device) -> Result<Option<Status>, KernelNbdError> {
    status_of(&Family::open()?, device)
}

fn status_of(family: &Family, device: Device) -> Result<Option<Status>, KernelNbdError> {
    let asked = Asked { doing: "tell the state of", device: Some(device) };
    let answers = asked.of(family, Command::Status, vec![Attribute::Index(device.0)])?;
    let listed = answers.iter().flat_map(|answer| &answer.attributes).find_map(|attribute| match attribute {
        Attribute::Devices(devices) => devices.iter().find(|item| item.index == device.0),
        _ => None,
    });
    let Some(item) = listed else { return Ok(None) };
    let sectors = fs::read_to_string(device.sysfs("size")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    Ok(Some(Status {
        connected: item.connected,
        identifier: fs::read_to_string(device.sysfs("backend")).ok().map(|text| text.trim_end().to_owned()),
        // Sysfs counts in 512 bytes, whatever the device's blocks are.
        size_bytes: sectors.unwrap_or_default() * 512,
    }))
}

/// A request to the kernel, for messages.
struct Asked {
    doing: &'static str,
    device: Option<Device>,
}

impl Asked {
    fn of(
        &self,
        family: &Family,
        command: Command,
        attributes: Vec<Attribute>,
    ) -> Result<Vec<Message>, KernelNbdError> {
        family.ask(Message::new(command, attributes)).map_err(|refusal| match refusal {
            Refusal::Errno(Errno::EPERM) => KernelNbdError::NotPermitted,
            Refusal::Errno(errno) => KernelNbdError::Refused { doing: self.doing, device: self.device(), errno },
            Refusal::Io(source) => self.unanswered(source),
        })
    }

    fn unanswered(&self, source: io::Error) -> KernelNbdError {
        KernelNbdError::Unanswered { doing: self.doing, device: self.device(), source }
    }

    fn device(&self) -> String {
        self.device.map_or_else(|| "a device".to_owned(), |device| device.to_string())
    }
}

/// Our end of a connection and the kernel's.
fn pair() -> Result<(UnixStream, OwnedFd), KernelNbdError> {
    let (ours, theirs) = UnixStream::pair().map_err(KernelNbdError::Socket)?;
    Ok((ours, theirs.into()))
}

/// Whether nobody holds the other end any more.
fn is_hung_up(socket: &UnixStream) -> bool {
    let peeked = recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    !matches!(peeked, Ok(1..) | Err(Errno::EAGAIN))
}

/// Has the kernel look after requests every [`RESEND_TIME`].
fn watch_requests(device: Device) {
    let path = device.sysfs("queue/io_timeout");
    if let Err(error) = fs::write(&path, RESEND_TIME.as_millis().to_string()) {
        // The device works; after a takeover it only takes longer until requests under way go on.
        tracing::warn!(path = %path.display(), %error, "cannot shorten the pause of {device} after a takeover from 30 s");
    }
}

/// Looks at `condition` until it holds or `limit` has passed. Whether it held.
fn within(
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool, KernelNbdError>,
) -> Result<bool, KernelNbdError> {
    let deadline = Instant::now() + limit;
    loop {
        if condition()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_node_is_named_one_way() {
        assert_eq!(Device(12).path(), Path::new("/dev/nbd12"));
        assert_eq!(Device::of_path(Path::new("/dev/nbd12")), Some(Device(12)));
        for other in
            ["/dev/nbd", "/dev/nbd+1", "/dev/nbd01", "/dev/nbd1p1", "/dev/loop1", "nbd1", "/dev/nbd99999999999"]
        {
            assert_eq!(Device::of_path(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_socket_that_was_passed_over_is_noticed() {
        let (ours, theirs) = pair().unwrap();
        assert!(!is_hung_up(&ours));
        io::Write::write_all(&mut UnixStream::from(theirs.try_clone().unwrap()), b"x").unwrap();
        assert!(!is_hung_up(&ours), "a request has come already");
        io::Read::read_exact(&mut &ours, &mut [0]).unwrap();
        drop(theirs);
        assert!(is_hung_up(&ours));
    }

    /// On a machine without the driver the reason is told; on one with it, the check passes or says what is missing.
    #[test]
    fn what_is_missing_is_told() {
        match check() {
            Ok(()) => assert!(Path::new("/sys/module/nbd").exists()),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("modprobe nbd") || text.contains("root") || text.contains("namespace"), "{text}");
                assert!(connect(&shape()).is_err());
            }
        }
    }

    fn shape() -> Shape {
        Shape { size_bytes: 1 << 20, read_only: false, identifier: "t".into(), dead_time: None }
    }

    #[test]
    fn a_wait_of_less_than_a_second_is_one() {
        let (_ours, theirs) = pair().unwrap();
        let attributes = Shape { dead_time: Some(Duration::from_millis(10)), ..shape() }.attributes(&theirs);
        assert!(attributes.contains(&Attribute::DeadConnectionSecs(1)), "0 would mean that nothing waits");
    }
}
