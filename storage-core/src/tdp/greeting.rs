//! The handshake: who speaks to whom, and in which version. Both sides check, both say why they refuse.

use super::wire::{Reader, WireError, put_text};
use super::{VERSION_MAX, VERSION_MIN};
use crate::ids::{AgentId, Blocks, ClusterId, Incarnation};
use bytes::{BufMut, BytesMut};

pub(super) const HELLO: u8 = 1;
pub(super) const WELCOME: u8 = 2;
pub(super) const REFUSAL: u8 = 3;

/// What a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It has a volume open.
    Owner,
    /// It holds extents itself and copies them.
    Agent,
}

/// A client's first message.
///
/// ```text
/// 0 2 oldest version   4 1 role: 0 owner, 1 agent     13 8 agent that is meant
/// 2 2 newest version   5 8 cluster id                 21 … name: length 2, UTF-8
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest version it speaks.
    pub versions: (u16, u16),
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// What it is.
    pub role: Role,
    /// The agent it means to reach: addresses are reused, agents are not.
    pub agent: AgentId,
    /// What people call it; for logs.
    pub name: String,
}

/// What a server says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Which agent it is.
    pub agent: AgentId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Blocks of data in an extent of its slots.
    pub extent_blocks: Blocks,
}

/// A server's first message, when it takes the client.
///
/// ```text
/// 0 2 version spoken from here on   10 8 agent id      26 4 blocks in an extent
/// 2 8 cluster id                    18 8 incarnation
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version both speak from here on: the newest that both know.
    pub version: u16,
    /// Who answers.
    pub identity: Identity,
}

/// A side's last message: why it speaks no further.
///
/// ```text
/// 0 1 code   1 8 first number   9 8 second number   17 … text: length 2, UTF-8
/// ```
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No version in common.
    #[error("it speaks TDP versions {0} to {1}, and none of this side's")]
    Version(u16, u16),
    /// Another cluster.
    #[error("it belongs to cluster {0}")]
    Cluster(ClusterId),
    /// Another agent, at an address where this one was.
    #[error("it is agent {0}")]
    Agent(AgentId),
    /// What came was no TDP.
    #[error("it could not follow the conversation: {0}")]
    Protocol(String),
    /// Not now.
    #[error("it takes no connection now: {0}")]
    Unavailable(String),
}

impl Identity {
    /// Answers a client's greeting.
    ///
    /// # Errors
    /// The reason to send and to close with.
    pub fn admit(&self, hello: &Hello) -> Result<Welcome, Refusal> {
        let version = hello.versions.1.min(VERSION_MAX);
        if version < hello.versions.0.max(VERSION_MIN) {
            Err(Refusal::Version(VERSION_MIN, VERSION_MAX))
        } else if hello.cluster != self.cluster {
            Err(Refusal::Cluster(self.cluster))
        } else if hello.agent != self.agent {
            Err(Refusal::Agent(self.agent))
        } else {
            Ok(Welcome { version, identity: *self })
        }
    }
}

impl Hello {
    /// The greeting of a client of this program's versions.
    #[must_use]
    pub fn new(cluster: ClusterId, role: Role, agent: AgentId, name: String) -> Hello {
        Hello { versions: (VERSION_MIN, VERSION_MAX), cluster, role, agent, name }
    }

    /// Judges the server's answer to this greeting: a client does not take a server's word that it checked.
    ///
    /// # Errors
    /// The reason to send and to close with; it names what this side is.
    pub fn accept(&self, welcome: &Welcome) -> Result<(), Refusal> {
        if !(self.versions.0..=self.versions.1).contains(&welcome.version) {
            Err(Refusal::Version(self.versions.0, self.versions.1))
        } else if welcome.identity.cluster != self.cluster {
            Err(Refusal::Cluster(self.cluster))
        } else if welcome.identity.agent != self.agent {
            Err(Refusal::Protocol(format!("agent {} is meant", self.agent)))
        } else {
            Ok(())
        }
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16_le(self.versions.0);
        out.put_u16_le(self.versions.1);
        out.put_u8(match self.role {
            Role::Owner => 0,
            Role::Agent => 1,
        });
        out.put_u64_le(self.cluster.0);
        out.put_u64_le(self.agent.0);
        put_text(out, &self.name);
    }

    /// The greeting in a body. A later version may append to it: what follows is skipped.
    pub(super) fn take(body: &[u8]) -> Result<Hello, WireError> {
        let mut body = Reader(body);
        let versions = (body.u16()?, body.u16()?);
        let role = match body.u8()? {
            0 => Role::Owner,
            1 => Role::Agent,
            _ => return Err(WireError::Malformed("unknown role")),
        };
        let (cluster, agent) = (ClusterId(body.id()?), AgentId(body.id()?));
        Ok(Hello { versions, cluster, role, agent, name: body.text()? })
    }
}

impl Welcome {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16_le(self.version);
        out.put_u64_le(self.identity.cluster.0);
        out.put_u64_le(self.identity.agent.0);
        out.put_u64_le(self.identity.incarnation.0);
        out.put_u32_le(self.identity.extent_blocks);
    }

    pub(super) fn take(body: &[u8]) -> Result<Welcome, WireError> {
        let mut body = Reader(body);
        Ok(Welcome {
            version: body.u16()?,
            identity: Identity {
                cluster: ClusterId(body.id()?),
                agent: AgentId(body.id()?),
                incarnation: Incarnation(body.u64()?),
                extent_blocks: body.blocks()?,
            },
        })
    }
}

impl Refusal {
    pub(super) fn put(&self, out: &mut BytesMut) {
        let (code, first, second, text) = match self {
            Refusal::Version(min, max) => (0, u64::from(*min), u64::from(*max), ""),
            Refusal::Cluster(id) => (1, id.0, 0, ""),
            Refusal::Agent(id) => (2, id.0, 0, ""),
            Refusal::Protocol(text) => (3, 0, 0, text.as_str()),
            Refusal::Unavailable(text) => (4, 0, 0, text.as_str()),
        };
        out.put_u8(code);
        out.put_u64_le(first);
        out.put_u64_le(second);
        put_text(out, text);
    }

    pub(super) fn take(body: &[u8]) -> Result<Refusal, WireError> {
        let mut body = Reader(body);
        let (code, first, second, text) = (body.u8()?, body.u64()?, body.u64()?, body.text()?);
        Ok(match code {
            0 => Refusal::Version(first as u16, second as u16),
            1 => Refusal::Cluster(ClusterId(first)),
            2 => Refusal::Agent(AgentId(first)),
            3 => Refusal::Protocol(text),
            4 => Refusal::Unavailable(text),
            _ => return Err(WireError::Malformed("unknown refusal")),
        })
    }
}
