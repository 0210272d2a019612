//! The netlink socket: one request, its answers, its acknowledgement.
//!
//! The kernel carries a request out inside the system call that sends it, in the context of the calling process (that is
//! how a descriptor's number in a message means anything), and has queued all answers when that call returns. So this
//! is blocking code, and short; only a disconnect may take as long as requests need to be ended.

use super::error::KernelNbdError;
use super::message::{FAMILY, Message};
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fmt::Debug;
use std::io;

/// How long to wait for an answer that the kernel owes at once.
const ANSWER_SECS: i64 = 10;
/// Answers to one request, before the acknowledgement.
const ANSWERS_MAX: usize = 64;

/// The kernel's `nbd` family, spoken to over a socket of its own.
pub(super) struct Family {
    socket: Socket,
    id: u16,
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The kernel's answer.
    Errno(Errno),
    /// There was no answer, or none that makes sense.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn nonsense(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Refusal {
    Refusal::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl Family {
    /// Finds the family.
    ///
    /// # Errors
    /// When the kernel has none, or this process may not ask.
    pub(super) fn open() -> Result<Self, KernelNbdError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECS))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = open().map_err(KernelNbdError::Netlink)?;
        let name = GenlCtrlAttrs::FamilyName(FAMILY.to_owned());
        let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
        let answers = match exchange(&socket, GenlMessage::from_payload(question)) {
            Ok(answers) => answers,
            Err(Refusal::Errno(Errno::ENOENT)) => return Err(KernelNbdError::no_family()),
            Err(Refusal::Errno(errno)) => return Err(KernelNbdError::Netlink(errno.into())),
            Err(Refusal::Io(error)) => return Err(KernelNbdError::Netlink(error)),
        };
        let attributes = answers.iter().flat_map(|answer| &answer.nlas);
        let id = attributes.into_iter().find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        id.map(|id| Self { socket, id }).ok_or_else(KernelNbdError::no_family)
    }

    /// Has the kernel carry `message` out, and gives its answers.
    pub(super) fn ask(&self, message: Message) -> Result<Vec<Message>, Refusal> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(self.id);
        exchange(&self.socket, message)
    }
}

fn exchange<F>(socket: &Socket, message: GenlMessage<F>) -> Result<Vec<F>, Refusal>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Debug,
{
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if take_answers::<F>(&bytes, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Takes the messages of one datagram. Whether the acknowledgement was among them.
fn take_answers<F>(mut bytes: &[u8], answers: &mut Vec<F>) -> Result<bool, Refusal>
where
    F: GenlFamily + ParseableParametrized<[u8], GenlHeader> + Debug,
    GenlMessage<F>: NetlinkDeserializable,
{
    while !bytes.is_empty() {
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(bytes).map_err(nonsense)?;
        let length = message.header.length as usize;
        match message.payload {
            NetlinkPayload::Error(error) => {
                return match error.code {
                    None => Ok(true),
                    Some(code) => Err(Refusal::Errno(Errno::from_raw(-code.get()))),
                };
            }
            NetlinkPayload::InnerMessage(answer) if answers.len() < ANSWERS_MAX => answers.push(answer.into_parts().1),
            NetlinkPayload::InnerMessage(_) => return Err(nonsense("the kernel does not stop answering")),
            _ => {}
        }
        // Messages are aligned to four bytes.
        bytes = bytes.get(length.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel with generic netlink has its control family, so the exchange itself can be tried anywhere.
    #[test]
    fn the_kernel_answers() {
        let mut socket = Socket::new(NETLINK_GENERIC).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        let ask = |name: &str| {
            let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
            exchange(&socket, GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas }))
        };
        let answers = ask("nlctrl").unwrap();
        assert!(answers.iter().flat_map(|answer| &answer.nlas).any(|nla| *nla == GenlCtrlAttrs::FamilyId(16)));
        assert!(matches!(ask("no-such-family").unwrap_err(), Refusal::Errno(Errno::ENOENT)));
    }

    #[test]
    fn answers_that_are_cut_short_are_refused() {
        let mut answers = Vec::<Message>::new();
        assert!(take_answers(&[40, 0, 0, 0, 2, 0], &mut answers).is_err());
        assert!(!take_answers(&[], &mut answers).unwrap());
    }
}
