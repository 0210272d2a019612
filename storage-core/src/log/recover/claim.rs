//! The claim: who has the volume, raising the epoch, what is registered.

use super::extent::Extent;
use super::{OpenError, Phase, Recovery};
use crate::ids::{Epoch, Vseq};
use crate::limits::READ_LEASE;
use crate::meta::docs::{BadDoc, EpochDoc, ExtentDoc, OwnerDoc, VolumeDoc, decode, encode};
use crate::meta::{Compare, Entry, Txn, Write, keys};
use crate::mutation::{self, Mutation};
use crate::time::Instant;

impl Recovery {
    pub(super) fn on_first_list(&mut self, entries: &[Entry]) -> Result<(), OpenError> {
        let id = self.claim.volume;
        let find = |key: String| entries.iter().find(move |e| e.key == key);
        let meta: VolumeDoc = match find(keys::volume_meta(id)) {
            Some(entry) => decode(&entry.key, &entry.value)?,
            None => return Err(OpenError::NotFound(id)),
        };
        if meta.deleting {
            return Err(OpenError::Deleting(meta.name));
        }
        self.found = match find(keys::volume_epoch(id)) {
            Some(entry) => Some((decode::<EpochDoc>(&entry.key, &entry.value)?, entry.modified)),
            None => None,
        };
        if let Some((doc, _)) = &self.found
            && doc.nonce == self.claim.nonce
        {
            // Our own claim, whose answer was lost.
            self.epoch = doc.epoch;
            self.epoch_doc = encode(doc);
            self.meta = Some(meta);
            self.phase = Phase::Relist;
            return Ok(());
        }
        if let Some(entry) = find(keys::volume_owner(id))
            && !self.claim.force
        {
            let owner: OwnerDoc = decode(&entry.key, &entry.value)?;
            return Err(OpenError::Held { name: meta.name, holder: owner.holder, epoch: owner.epoch });
        }
        self.meta = Some(meta);
        self.phase = Phase::Claim;
        Ok(())
    }

    pub(super) fn claim_txn(&mut self) -> Txn {
        let id = self.claim.volume;
        let key = keys::volume_epoch(id);
        let (epoch, unchanged) = match &self.found {
            Some((doc, revision)) => (doc.epoch.next(), Compare::Unchanged(key.clone(), *revision)),
            None => (Epoch(1), Compare::Absent(key.clone())),
        };
        let doc = EpochDoc { epoch, holder: self.claim.holder.clone(), nonce: self.claim.nonce };
        self.epoch = epoch;
        self.epoch_doc = encode(&doc);
        let mut then = vec![Write::Put { key, value: self.epoch_doc.clone(), lease: None }];
        if self.claim.lease.is_some() {
            let owner = OwnerDoc { epoch, holder: self.claim.holder.clone() };
            then.push(Write::Put { key: keys::volume_owner(id), value: encode(&owner), lease: self.claim.lease });
        }
        Txn { when: vec![Compare::Present(keys::volume_meta(id)), unchanged], then }
    }

    pub(super) fn on_second_list(&mut self, now: Instant, entries: &[Entry]) -> Result<(), OpenError> {
        let id = self.claim.volume;
        let prefix = keys::extents(id);
        for entry in entries {
            if entry.key == keys::volume_epoch(id) && entry.value != self.epoch_doc {
                let doc: EpochDoc = decode(&entry.key, &entry.value)?;
                return Err(self.overtaken(doc.epoch));
            } else if entry.key == keys::volume_meta(id) {
                self.meta = Some(decode(&entry.key, &entry.value)?);
            } else if entry.key == keys::volume_witness(id) {
                self.witness = true;
                if !mutation::active(Mutation::WitnessNotWaitedOut) {
                    self.lease_until = now + READ_LEASE;
                }
            } else if entry.key == keys::volume_head(id) {
                self.head = Some((decode(&entry.key, &entry.value)?, entry.modified));
            } else if entry.key.starts_with(&prefix) {
                let doc: ExtentDoc = decode(&entry.key, &entry.value)?;
                let seq = keys::parse_extent(&entry.key)
                    .ok_or_else(|| BadDoc { key: entry.key.clone(), reason: "not an extent's key".into() })?;
                self.extents.insert(seq, Extent::new(seq, doc, entry.modified));
            }
        }
        // What the checkpoint contains needs no replay.
        let done = self.head.as_ref().map_or(Vseq(0), |(head, _)| head.vseq);
        for x in self.extents.values_mut() {
            x.contained = x.doc.sealed.is_some_and(|seal| seal.last <= done);
            x.indexed = x.contained || !x.is_log();
        }
        self.fencing_since = now;
        self.phase = Phase::Fence;
        Ok(())
    }
}
