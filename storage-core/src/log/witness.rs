//! A read lease from the metadata store, for an owner without any extent.
//!
//! Where no agent has a slot left, or too few can be reached, there is no ensemble that could grant a lease (`lease`), and a
//! volume could not even be read. Its owner then writes a witness: a key that says that it may be serving reads.
//!
//! 1. The witness is written conditional on the epoch, and is good for as long as a member's lease would be, counted from when
//!    it was asked for. An owner that finds one in the listing it takes after raising the epoch waits that long before it
//!    serves (`recover`): any that was written before is in that listing, and none can be written after it.
//! 2. It counts only while nothing is registered: from the moment that a registration is sent, the extent's members vouch.
//!    The transaction that registers an extent takes the witness away, so that a later owner does not wait for nothing.

use super::{Effects, Log, LogTxn};
use crate::limits::{READ_LEASE, READ_LEASE_MARGIN};
use crate::meta::docs::{WitnessDoc, encode};
use crate::meta::{Write, keys};
use crate::time::Instant;

/// What this owner knows of its volume's witness.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// It may be in the store, whoever wrote it.
    written: bool,
    /// A transaction that writes it is under way.
    asked: bool,
    /// Until when it is good.
    until: Instant,
    /// Registrations that were sent: what was asked for before the last of them is worth nothing.
    registrations: u64,
}

impl Witness {
    /// One that may be in the store.
    pub fn found(written: bool) -> Witness {
        Witness { written, ..Witness::default() }
    }

    /// Extents are being registered. What takes the witness away, if there may be one.
    pub fn registering(&mut self, volume: crate::ids::VolumeId) -> Option<Write> {
        self.until = Instant::default();
        self.registrations += 1;
        self.written.then(|| Write::Delete(keys::volume_witness(volume)))
    }
}

/// When a witness was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    at: Instant,
    registrations: u64,
}

impl Log {
    /// Until when the witness vouches for this owner.
    pub(super) fn witnessed(&self) -> Instant {
        if self.writer.open.is_empty() { self.witness.until } else { Instant::default() }
    }

    /// Reads are wanted and there is no extent whose members could be asked: asks the store, if none is to be had.
    pub(super) fn want_witness(&mut self, now: Instant, out: &mut Effects) {
        let in_vain = self.refusal.is_some() && self.writer.open.is_empty() && !self.closing;
        if !in_vain || self.witness.asked || self.witness.until > now + READ_LEASE / 2 {
            return;
        }
        self.ask_witness(now, out);
    }

    /// Writes the witness.
    pub(super) fn ask_witness(&mut self, now: Instant, out: &mut Effects) {
        (self.witness.written, self.witness.asked) = (true, true);
        let asked = Asked { at: now, registrations: self.witness.registrations };
        let value = encode(&WitnessDoc { epoch: self.writer.epoch() });
        let put = Write::Put { key: keys::volume_witness(self.config.volume), value, lease: None };
        let txn = self.guarded(vec![put], &[]);
        self.transact(LogTxn::Witness(asked), txn, out);
    }

    /// It is written.
    pub(super) fn on_witnessed(&mut self, asked: Asked) {
        self.witness.asked = false;
        if asked.registrations == self.witness.registrations {
            self.witness.until = self.witness.until.max(asked.at + (READ_LEASE - READ_LEASE_MARGIN));
        }
    }
}
