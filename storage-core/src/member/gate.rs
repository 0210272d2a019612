//! Who is let in: the fences of all of an agent's disks together, and the leases that were granted past them.
//!
//! A fence counts here from the moment its request is received; that it has reached the disks is for the answer to
//! wait for. So does every other request: an epoch that asks for something was raised in the metadata store, and what an
//! older owner sent before may still lie in a buffer. Let in after it, a late deletion would take the copy that the newer
//! owner has made meanwhile. A restart forgets such epochs, and ends the connections that could bring anything late.
//! A lease is granted when a request is received that will, or may, be answered with one: the owner counts
//! from when it sent it, which was before.

use crate::ids::{Epoch, VolumeId};
use crate::limits::{FENCED_VOLUMES_MAX, GATE_VOLUMES_MAX, READ_LEASE};
use crate::mutation::{Mutation, active};
use crate::peer::Rejection;
use crate::time::{Duration, Instant};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    /// The newest epoch of each volume that is fenced for, or has asked.
    newest: BTreeMap<VolumeId, Epoch>,
    leases: BTreeMap<VolumeId, SmallVec<[(Epoch, Instant); 2]>>,
    started: Instant,
}

impl Gate {
    /// The gate of an agent that started at `started` with these fences on its disks.
    pub fn new(started: Instant, fences: impl Iterator<Item = (VolumeId, Epoch)>) -> Gate {
        let mut gate = Gate { newest: BTreeMap::new(), leases: BTreeMap::new(), started };
        fences.for_each(|(volume, epoch)| gate.raise(volume, epoch));
        gate
    }

    /// The newest epoch of each volume.
    pub fn newest(&self) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.newest.iter().map(|(volume, epoch)| (*volume, *epoch))
    }

    /// Lets `epoch` of `volume` in and shuts out those below it, or names the epoch that has shut it out.
    pub fn admit(&mut self, volume: VolumeId, epoch: Epoch) -> Result<(), Rejection> {
        match self.newest.get(&volume) {
            Some(newest) if epoch < *newest && !active(Mutation::EpochIgnored) => {
                return Err(Rejection::Fenced { epoch: *newest });
            }
            None if self.newest.len() >= GATE_VOLUMES_MAX => return Err(Rejection::TooManyVolumes(GATE_VOLUMES_MAX)),
            _ => self.raise(volume, epoch),
        }
        Ok(())
    }

    /// Shuts out epochs of `volume` below `epoch`.
    pub fn raise(&mut self, volume: VolumeId, epoch: Epoch) {
        let newest = self.newest.entry(volume).or_default();
        *newest = epoch.max(*newest);
    }

    /// Grants `epoch`, which was let in, a lease from `now` on.
    pub fn grant(&mut self, volume: VolumeId, epoch: Epoch, now: Instant) {
        if active(Mutation::LeaseForgotten) {
            return;
        }
        let until = now + READ_LEASE;
        if self.leases.len() >= FENCED_VOLUMES_MAX {
            self.leases.retain(|_, leases| leases.iter().any(|(_, until)| *until > now));
        }
        let leases = self.leases.entry(volume).or_default();
        match leases.iter_mut().find(|(holder, _)| *holder == epoch) {
            Some(lease) => lease.1 = until,
            None => {
                leases.retain(|(_, until)| *until > now);
                leases.push((epoch, until));
            }
        }
    }

    /// How long a lease of an epoch of `volume` below `epoch` may still run. The run before this one may have granted
    /// one until it ended.
    pub fn lease_left(&self, volume: VolumeId, epoch: Epoch, now: Instant) -> Duration {
        let older = self.leases.get(&volume).into_iter().flatten().filter(|(holder, _)| *holder < epoch);
        older.map(|(_, until)| *until).fold(self.started + READ_LEASE, Instant::max).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(7);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    #[test]
    fn a_new_owner_waits_for_leases_of_older_ones_only() {
        let mut gate = Gate::new(at(0), [].into_iter());
        gate.grant(V, Epoch(4), at(10_000));
        gate.grant(V, Epoch(5), at(10_500));
        assert_eq!(gate.lease_left(V, Epoch(5), at(10_600)), Duration::from_millis(1_400));
        assert_eq!(gate.lease_left(V, Epoch(6), at(10_600)), Duration::from_millis(1_900));
        assert_eq!(gate.lease_left(V, Epoch(4), at(10_600)), Duration::ZERO);
        assert_eq!(gate.lease_left(V, Epoch(6), at(20_000)), Duration::ZERO);
    }

    #[test]
    fn after_a_start_any_volume_may_have_a_lease_from_the_run_before() {
        let mut gate = Gate::new(at(5_000), [(V, Epoch(3))].into_iter());
        assert_eq!(gate.lease_left(VolumeId(99), Epoch(1), at(5_500)), Duration::from_millis(1_500));
        assert_eq!(gate.admit(V, Epoch(2)), Err(Rejection::Fenced { epoch: Epoch(3) }));
        assert_eq!(gate.admit(V, Epoch(3)), Ok(()));
    }

    #[test]
    fn who_asks_shuts_out_older_epochs() {
        let mut gate = Gate::new(at(0), [].into_iter());
        assert_eq!(gate.admit(V, Epoch(4)), Ok(()));
        assert_eq!(gate.admit(V, Epoch(5)), Ok(()));
        assert_eq!(gate.admit(V, Epoch(4)), Err(Rejection::Fenced { epoch: Epoch(5) }));
        assert_eq!(gate.admit(VolumeId(8), Epoch(1)), Ok(()));
    }
}
