//! Messages of the kernel's generic netlink family `nbd`, after `include/uapi/linux/nbd-netlink.h`.
//!
//! Numbers are in the byte order of this machine, as everywhere in netlink. Attributes that this module does not know are
//! kept out of sight, so that a newer kernel may say more.

use netlink_packet_core::{DecodeError, Emitable, Nla, NlaBuffer, NlasIterator, Parseable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use std::os::fd::RawFd;

/// The family's name.
pub(super) const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

/// What the kernel is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Command {
    Connect = 1,
    Disconnect = 2,
    Reconfigure = 3,
    Status = 5,
}

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
const BACKEND_IDENTIFIER: u16 = 10;

/// Inside `SOCKETS` and `DEVICE_LIST`: one of the list.
const LIST_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// One attribute of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Attribute {
    /// The N of `/dev/nbdN`.
    Index(u32),
    SizeBytes(u64),
    BlockSizeBytes(u64),
    /// After how many seconds a request without an answer is taken for a broken connection; 0 for never.
    TimeoutSecs(u64),
    /// The transmission flags of the NBD protocol.
    ServerFlags(u64),
    /// The kernel's end of the connection, open in the calling process.
    Socket(RawFd),
    /// For how many seconds requests wait when there is no connection.
    DeadConnectionSecs(u64),
    /// Whom the device belongs to.
    Backend(String),
    /// In answers: the devices that were asked for.
    Devices(Vec<DeviceItem>),
    /// Something else.
    Unknown(u16),
}

/// What the kernel says of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct DeviceItem {
    pub(super) index: u32,
    /// It is set up, or still in use since it was.
    pub(super) connected: bool,
}

/// A command and its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) command: u8,
    pub(super) attributes: Vec<Attribute>,
}

impl Message {
    pub(super) fn new(command: Command, attributes: Vec<Attribute>) -> Self {
        Self { command: command as u8, attributes }
    }
}

/// An attribute inside another: bytes that are made on the spot.
fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = netlink_packet_core::DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

impl Attribute {
    fn value(&self) -> Vec<u8> {
        match self {
            Self::Index(n) => n.to_ne_bytes().to_vec(),
            Self::SizeBytes(n)
            | Self::BlockSizeBytes(n)
            | Self::TimeoutSecs(n)
            | Self::ServerFlags(n)
            | Self::DeadConnectionSecs(n) => n.to_ne_bytes().to_vec(),
            Self::Socket(fd) => nested(LIST_ITEM, &nested(SOCKET_FD, &fd.to_ne_bytes())),
            Self::Backend(text) => [text.as_bytes(), &[0]].concat(),
            Self::Devices(devices) => {
                let item = |device: &DeviceItem| {
                    let index = nested(DEVICE_INDEX, &device.index.to_ne_bytes());
                    nested(LIST_ITEM, &[index, nested(DEVICE_CONNECTED, &[device.connected.into()])].concat())
                };
                devices.iter().flat_map(item).collect()
            }
            Self::Unknown(_) => Vec::new(),
        }
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        self.value().len()
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Index(_) => INDEX,
            Self::SizeBytes(_) => SIZE_BYTES,
            Self::BlockSizeBytes(_) => BLOCK_SIZE_BYTES,
            Self::TimeoutSecs(_) => TIMEOUT,
            Self::ServerFlags(_) => SERVER_FLAGS,
            Self::Socket(_) => SOCKETS,
            Self::DeadConnectionSecs(_) => DEAD_CONN_TIMEOUT,
            Self::Devices(_) => DEVICE_LIST,
            Self::Backend(_) => BACKEND_IDENTIFIER,
            Self::Unknown(kind) => *kind,
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.value());
    }
}

fn number<const N: usize>(value: &[u8], what: &str) -> Result<[u8; N], DecodeError> {
    let text = || DecodeError::from(format!("{what} has {} bytes instead of {N}", value.len()));
    value.try_into().map_err(|_| text())
}

impl<'a> Parseable<NlaBuffer<&'a [u8]>> for Attribute {
    fn parse(buffer: &NlaBuffer<&'a [u8]>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        let u64_of = |what| number(value, what).map(u64::from_ne_bytes);
        Ok(match buffer.kind() {
            INDEX => Self::Index(u32::from_ne_bytes(number(value, "the index")?)),
            SIZE_BYTES => Self::SizeBytes(u64_of("the size")?),
            BLOCK_SIZE_BYTES => Self::BlockSizeBytes(u64_of("the block size")?),
            TIMEOUT => Self::TimeoutSecs(u64_of("the timeout")?),
            SERVER_FLAGS => Self::ServerFlags(u64_of("the server's flags")?),
            DEAD_CONN_TIMEOUT => Self::DeadConnectionSecs(u64_of("the dead connection timeout")?),
            BACKEND_IDENTIFIER => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                Self::Backend(String::from_utf8_lossy(text).into_owned())
            }
            DEVICE_LIST => {
                let items = NlasIterator::new(value).map(|item| device_item(item?.value()));
                Self::Devices(items.collect::<Result<_, _>>()?)
            }
            other => Self::Unknown(other),
        })
    }
}

fn device_item(value: &[u8]) -> Result<DeviceItem, DecodeError> {
    let mut device = DeviceItem::default();
    for attribute in NlasIterator::new(value) {
        let attribute = attribute?;
        match attribute.kind() {
            DEVICE_INDEX => device.index = u32::from_ne_bytes(number(attribute.value(), "a device's index")?),
            DEVICE_CONNECTED => device.connected = number::<1>(attribute.value(), "a device's state")? != [0],
            _ => {}
        }
    }
    Ok(device)
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|attribute| Attribute::parse(&attribute?));
        Ok(Self { command: header.cmd, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_generic::GenlMessage;
    use proptest::prelude::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn parse(command: u8, bytes: &[u8]) -> Result<Message, DecodeError> {
        Message::parse_with_param(bytes, GenlHeader { cmd: command, version: VERSION })
    }

    /// Byte by byte what the kernel's policy asks for, on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_connect_is_what_the_kernel_expects() {
        let attributes = vec![
            Attribute::SizeBytes(0x1122_3344_5566_7788),
            Attribute::Socket(9),
            Attribute::DeadConnectionSecs(300),
            Attribute::Backend("ab".into()),
        ];
        let want: &[u8] = &[
            12, 0, 2, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // size
            16, 0, 7, 0, 12, 0, 1, 0, 8, 0, 1, 0, 9, 0, 0, 0, // sockets: item: fd
            12, 0, 8, 0, 0x2c, 1, 0, 0, 0, 0, 0, 0, // dead connection timeout
            7, 0, 10, 0, b'a', b'b', 0, 0, // identifier, ended and padded
        ];
        assert_eq!(bytes(&Message::new(Command::Connect, attributes)), want);
    }

    #[test]
    fn an_answer_is_read_back() {
        let devices = vec![DeviceItem { index: 3, connected: true }, DeviceItem { index: 70_000, connected: false }];
        let attributes = vec![Attribute::Index(7), Attribute::Devices(devices), Attribute::Backend("torus/x".into())];
        let message = Message::new(Command::Status, attributes);
        assert_eq!(parse(Command::Status as u8, &bytes(&message)).unwrap(), message);
    }

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_wrong_is_refused() {
        let newer = Message { command: 77, attributes: vec![Attribute::Unknown(600), Attribute::Index(1)] };
        assert_eq!(parse(77, &bytes(&newer)).unwrap(), newer);
        let short = nested(INDEX, &[1, 2]);
        assert!(parse(1, &short).unwrap_err().to_string().contains("2 bytes instead of 4"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(1, &bytes);
            let _ = NetlinkMessage::<GenlMessage<Message>>::deserialize(&bytes);
        }
    }
}
