//! Fixed newstyle negotiation, from the server's side.
//!
//! ```text
//! greeting out ─► Flags ─► Option ─┬─► Option     (an answer)
//!                            ▲     ├─► Skip ──┐   (too long: its data is thrown away, then an error answers it)
//!                            └─────┼──────────┘
//!                                  ├─► Ready      (GO, EXPORT_NAME)
//!                                  └─► Aborted    (ABORT)
//! ```
//!
//! One call of [`Handshake::step`] takes at most one message from the input, so the caller sends each answer before it
//! lets the next option in, and holds no more than one answer.

use super::TransmissionFlags;
use super::reply::BASE_ALLOCATION_ID;
use crate::limits::{
    NBD_CONTEXT_QUERIES_MAX, NBD_OPTION_BYTES_MAX, NBD_OPTIONS_MAX, NBD_REQUEST_BYTES_TOLD, NBD_STRING_BYTES_MAX,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flags of the server, and the same two bits of the client.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

const BASE_ALLOCATION: &[u8] = b"base:allocation";
const OPTION_HEADER_BYTES: usize = 16;

/// What is told of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Its own name, also where it was asked for by another.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Its size now.
    pub size_bytes: u64,
    /// It takes no writes.
    pub read_only: bool,
    /// The smallest unit of offsets and lengths: a power of two.
    pub block_min_bytes: u32,
    /// The unit that costs no read-modify-write.
    pub block_preferred_bytes: u32,
}

/// What the server has to offer.
pub trait Exports {
    /// The export that a client means by `name`; `""` is the default one.
    fn find(&self, name: &str) -> Option<ExportInfo>;
    /// Calls `each` with every export's name and description.
    fn list(&self, each: &mut dyn FnMut(&str, &str));
}

/// What was agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// The export, by its own name.
    pub export: String,
    /// READ is answered by structured replies.
    pub structured: bool,
    /// BLOCK_STATUS answers `base:allocation`.
    pub base_allocation: bool,
}

/// Where the negotiation stands after a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// More input is needed: send what there is to send, and read.
    Incomplete,
    /// A message was taken. Send its answer, and step again.
    Taken,
    /// The client gave up, in good order. Send its answer, and close.
    Aborted,
    /// Send the answer; then what follows are requests.
    Ready(Session),
}

/// Why the connection is to be closed without another word.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Flags we did not offer.
    #[error("the client answers with handshake flags {0:#010x} that were not offered: it is no client for this server")]
    Flags(u32),
    /// Not an option where one must begin.
    #[error("an option begins with {0:#018x} instead of IHAVEOPT: not an NBD client, or one out of step")]
    Magic(u64),
    /// EXPORT_NAME, which cannot be answered with an error.
    #[error("the client asks for export {0:?}, which is not here: see the server's list")]
    UnknownExport(String),
    /// EXPORT_NAME with a name over the limit.
    #[error("the client asks for an export with a name of {0} bytes: at most {NBD_STRING_BYTES_MAX} are taken")]
    NameTooLong(u32),
    /// A client that negotiates for ever.
    #[error("the client sent more than {NBD_OPTIONS_MAX} options without choosing an export")]
    TooManyOptions,
    /// An option other than EXPORT_NAME after declining the fixed newstyle.
    #[error("the client sends option {0} after it declined the fixed newstyle, in which alone that can be answered")]
    NotFixed(u32),
}

/// An error that an option is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Refused {
    Unsupported = 1 << 31 | 1,
    Invalid = 1 << 31 | 3,
    Unknown = 1 << 31 | 6,
    TooBig = 1 << 31 | 9,
}

#[derive(Debug)]
enum State {
    Flags,
    Option,
    Skip { option: u32, left: usize },
}

/// The server's half of a negotiation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected, by its own name.
    allocation_of: Option<String>,
    options: usize,
}

impl Handshake {
    /// Starts: the greeting goes out first.
    pub fn new(out: &mut BytesMut) -> Self {
        out.put_u64(MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(FIXED_NEWSTYLE | NO_ZEROES);
        Self { state: State::Flags, fixed: false, no_zeroes: false, structured: false, allocation_of: None, options: 0 }
    }

    /// Takes one message off `input`, if it is there, and appends the answer to `out`.
    ///
    /// # Errors
    /// When there is nothing to do but close.
    pub fn step(
        &mut self,
        input: &mut BytesMut,
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<Progress, HandshakeError> {
        match &mut self.state {
            State::Flags if input.len() < 4 => Ok(Progress::Incomplete),
            State::Flags => {
                let flags = input.get_u32();
                if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
                    return Err(HandshakeError::Flags(flags));
                }
                self.fixed = flags & u32::from(FIXED_NEWSTYLE) != 0;
                self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
                self.state = State::Option;
                Ok(Progress::Taken)
            }
            State::Skip { option, left } => {
                let n = input.len().min(*left);
                input.advance(n);
                *left -= n;
                if *left > 0 {
                    return Ok(Progress::Incomplete);
                }
                refuse(*option, Refused::TooBig, "too much data with this option", out);
                self.state = State::Option;
                Ok(Progress::Taken)
            }
            State::Option => self.option(input, exports, out),
        }
    }

    fn option(
        &mut self,
        input: &mut BytesMut,
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<Progress, HandshakeError> {
        let Some(header) = input.first_chunk::<OPTION_HEADER_BYTES>() else { return Ok(Progress::Incomplete) };
        let mut header = &header[..];
        let (magic, option, len) = (header.get_u64(), header.get_u32(), header.get_u32());
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::Magic(magic));
        }
        if !self.fixed && option != OPT_EXPORT_NAME {
            return Err(HandshakeError::NotFixed(option));
        }
        if option == OPT_EXPORT_NAME && len as usize > NBD_STRING_BYTES_MAX {
            return Err(HandshakeError::NameTooLong(len));
        }
        let fits = len as usize <= NBD_OPTION_BYTES_MAX;
        if fits && input.len() < OPTION_HEADER_BYTES + len as usize {
            return Ok(Progress::Incomplete);
        }
        self.options += 1;
        if self.options > NBD_OPTIONS_MAX {
            return Err(HandshakeError::TooManyOptions);
        }
        input.advance(OPTION_HEADER_BYTES);
        if !fits {
            self.state = State::Skip { option, left: len as usize };
            return Ok(Progress::Taken);
        }
        let data = input.split_to(len as usize).freeze();
        match option {
            OPT_EXPORT_NAME => return self.export_name(&data, exports, out),
            OPT_ABORT => {
                ack(option, out);
                return Ok(Progress::Aborted);
            }
            OPT_GO => match self.info(option, data, exports, out) {
                Ok(export) => return Ok(Progress::Ready(self.session(export))),
                Err((refused, why)) => refuse(option, refused, why, out),
            },
            _ => match self.answer(option, data, exports, out) {
                Ok(()) => ack(option, out),
                Err((refused, why)) => refuse(option, refused, why, out),
            },
        }
        Ok(Progress::Taken)
    }

    /// Everything before the final ACK of the options that leave the negotiation going.
    fn answer(
        &mut self,
        option: u32,
        data: Bytes,
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<(), (Refused, &'static str)> {
        match option {
            OPT_LIST | OPT_STRUCTURED_REPLY if !data.is_empty() => Err((Refused::Invalid, "this option takes no data")),
            OPT_LIST => {
                exports.list(&mut |name, description| {
                    reply_head(option, REP_SERVER, 4 + name.len() + description.len(), out);
                    out.put_u32(name.len() as u32);
                    out.put_slice(name.as_bytes());
                    out.put_slice(description.as_bytes());
                });
                Ok(())
            }
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                Ok(())
            }
            OPT_INFO => self.info(option, data, exports, out).map(drop),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, data, exports, out),
            OPT_STARTTLS => Err((Refused::Unsupported, "this server speaks no TLS")),
            _ => Err((Refused::Unsupported, "this option is not known here")),
        }
    }

    fn export_name(
        &mut self,
        name: &[u8],
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<Progress, HandshakeError> {
        let unknown = || HandshakeError::UnknownExport(String::from_utf8_lossy(name).into_owned());
        let export = std::str::from_utf8(name).ok().and_then(|name| exports.find(name)).ok_or_else(unknown)?;
        out.put_u64(export.size_bytes);
        out.put_u16(self.flags(&export).0);
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        Ok(Progress::Ready(self.session(export)))
    }

    /// INFO and GO up to the final answer, which for GO is written here: nothing may stand between it and the requests.
    fn info(
        &mut self,
        option: u32,
        mut data: Bytes,
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<ExportInfo, (Refused, &'static str)> {
        let malformed = (Refused::Invalid, "the option's data is malformed");
        let name = take_string(&mut data, 2)?;
        let count = data.try_get_u16().map_err(|_| malformed)?;
        if data.len() != usize::from(count) * 2 {
            return Err(malformed);
        }
        let export = find(&name, exports)?;
        reply_head(option, REP_INFO, 12, out);
        out.put_u16(INFO_EXPORT);
        out.put_u64(export.size_bytes);
        out.put_u16(self.flags(&export).0);
        let mut told = [false; INFO_BLOCK_SIZE as usize + 1];
        while let Ok(wanted) = data.try_get_u16() {
            // Each once, however often a client asks.
            match told.get_mut(usize::from(wanted)) {
                Some(told) if !*told => *told = true,
                _ => continue,
            }
            match wanted {
                INFO_NAME => put_info_text(option, INFO_NAME, &export.name, out),
                INFO_DESCRIPTION => put_info_text(option, INFO_DESCRIPTION, &export.description, out),
                INFO_BLOCK_SIZE => {
                    reply_head(option, REP_INFO, 14, out);
                    out.put_u16(INFO_BLOCK_SIZE);
                    out.put_u32(export.block_min_bytes);
                    out.put_u32(export.block_preferred_bytes);
                    out.put_u32(NBD_REQUEST_BYTES_TOLD);
                }
                _ => {}
            }
        }
        if option == OPT_GO {
            ack(option, out);
        }
        Ok(export)
    }

    fn meta_context(
        &mut self,
        option: u32,
        mut data: Bytes,
        exports: &impl Exports,
        out: &mut BytesMut,
    ) -> Result<(), (Refused, &'static str)> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // A new selection replaces the old one also when it fails.
            self.allocation_of = None;
        }
        if !self.structured {
            return Err((Refused::Invalid, "negotiate structured replies first"));
        }
        let name = take_string(&mut data, 4)?;
        let count = data.try_get_u32().map_err(|_| (Refused::Invalid, "the option's data is malformed"))?;
        if count as usize > NBD_CONTEXT_QUERIES_MAX {
            return Err((Refused::TooBig, "too many queries"));
        }
        let mut selected = count == 0 && !set;
        for _ in 0..count {
            let query = take_string(&mut data, 0)?;
            // `base:` stands for all of its namespace in a list alone.
            selected |= &query[..] == BASE_ALLOCATION || (!set && &query[..] == b"base:");
        }
        if !data.is_empty() {
            return Err((Refused::Invalid, "the option's data is malformed"));
        }
        let export = find(&name, exports)?;
        if selected {
            reply_head(option, REP_META_CONTEXT, 4 + BASE_ALLOCATION.len(), out);
            out.put_u32(if set { BASE_ALLOCATION_ID } else { 0 });
            out.put_slice(BASE_ALLOCATION);
            if set {
                self.allocation_of = Some(export.name);
            }
        }
        Ok(())
    }

    fn flags(&self, export: &ExportInfo) -> TransmissionFlags {
        let flags = TransmissionFlags::of_export(export.read_only);
        if self.structured { flags.with(TransmissionFlags::DF) } else { flags }
    }

    fn session(&self, export: ExportInfo) -> Session {
        let base_allocation = self.allocation_of.as_ref() == Some(&export.name);
        Session { export: export.name, structured: self.structured, base_allocation }
    }
}

fn find(name: &[u8], exports: &impl Exports) -> Result<ExportInfo, (Refused, &'static str)> {
    let name = std::str::from_utf8(name).map_err(|_| (Refused::Invalid, "an export's name is UTF-8"))?;
    exports.find(name).ok_or((Refused::Unknown, "no such export: ask for the list"))
}

/// A string after its 32-bit length, with at least `after` bytes left behind it.
fn take_string(data: &mut Bytes, after: usize) -> Result<Bytes, (Refused, &'static str)> {
    let malformed = (Refused::Invalid, "the option's data is malformed");
    let len = data.try_get_u32().map_err(|_| malformed)? as usize;
    if len > NBD_STRING_BYTES_MAX {
        return Err((Refused::TooBig, "a string in the option is too long"));
    }
    if data.len() < len + after {
        return Err(malformed);
    }
    Ok(data.split_to(len))
}

fn reply_head(option: u32, kind: u32, len: usize, out: &mut BytesMut) {
    out.put_u64(REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(len as u32);
}

fn put_info_text(option: u32, kind: u16, text: &str, out: &mut BytesMut) {
    reply_head(option, REP_INFO, 2 + text.len(), out);
    out.put_u16(kind);
    out.put_slice(text.as_bytes());
}

fn ack(option: u32, out: &mut BytesMut) {
    reply_head(option, REP_ACK, 0, out);
}

fn refuse(option: u32, refused: Refused, why: &str, out: &mut BytesMut) {
    reply_head(option, refused as u32, why.len(), out);
    out.put_slice(why.as_bytes());
}
