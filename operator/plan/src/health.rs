//! How the data is: copies that can be reached of copies asked for, from what the metadata store says.
//!
//! The store names the members of extents that were registered since the last checkpoint, and of the checkpoint itself. Extents
//! before it are placed by the ring: of those, each agent of the ring that is down is counted as one copy of each volume.
//! That errs on the side of caution: it may call data less redundant than it is, never more.

use std::collections::{BTreeMap, BTreeSet};

/// How the data is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Volumes, by name.
    pub volumes: BTreeMap<String, Copies>,
    /// Agents of the ring that are down or have a failed disk, by name.
    pub missing: BTreeSet<String>,
}

/// Copies of the worst-off extent of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copies {
    /// That can be reached.
    pub have: u8,
    /// Asked for.
    pub asked: u8,
}

impl Copies {
    /// Whether none is missing.
    #[must_use]
    pub fn is_full(self) -> bool {
        self.have >= self.asked
    }
}

impl std::fmt::Display for Copies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.have, self.asked)
    }
}

/// What the store says of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeExtents<A> {
    /// Its name.
    pub name: String,
    /// Copies asked for.
    pub replicas: u8,
    /// Members of each extent that is named.
    pub members: Vec<Vec<A>>,
    /// Whether there is a checkpoint, before which extents are placed by the ring.
    pub has_checkpoint: bool,
}

/// How the data is. `ring`: the agents of the ring and their names; `sound`: those that run, with all their disks.
#[must_use]
pub fn health<A: Ord + Clone>(ring: &BTreeMap<A, String>, sound: &BTreeSet<A>, volumes: &[VolumeExtents<A>]) -> Health {
    let missing: BTreeSet<_> =
        ring.iter().filter(|(id, _)| !sound.contains(id)).map(|(_, name)| name.clone()).collect();
    let of_volume = |volume: &VolumeExtents<A>| {
        let named = volume.members.iter().map(|members| {
            let here: BTreeSet<_> = members.iter().filter(|member| sound.contains(member)).collect();
            here.len()
        });
        let by_ring = volume.has_checkpoint.then(|| usize::from(volume.replicas).saturating_sub(missing.len()));
        let have = named.chain(by_ring).min().unwrap_or(usize::from(volume.replicas));
        Copies { have: u8::try_from(have).unwrap_or(u8::MAX).min(volume.replicas), asked: volume.replicas }
    };
    let volumes = volumes.iter().map(|volume| (volume.name.clone(), of_volume(volume))).collect();
    Health { volumes, missing }
}

impl Health {
    /// Whether an agent may be taken away: none is missing, and all data has all of its copies.
    #[must_use]
    pub fn is_redundant(&self) -> bool {
        self.missing.is_empty() && self.volumes.values().all(|copies| copies.is_full())
    }

    /// The copies of the worst-off extent of all volumes.
    #[must_use]
    pub fn worst(&self) -> Option<Copies> {
        self.volumes
            .values()
            .copied()
            .min_by_key(|copies| (i16::from(copies.have) - i16::from(copies.asked), copies.have))
    }

    /// Healthy, Degraded (copies are missing) or AtRisk (at most one is left somewhere, of more).
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.worst() {
            Some(worst) if worst.have <= 1 && worst.asked > worst.have => "AtRisk",
            _ if !self.is_redundant() => "Degraded",
            _ => "Healthy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(count: u32) -> BTreeMap<u32, String> {
        (0..count).map(|id| (id, format!("n{id}"))).collect()
    }

    fn volume(replicas: u8, members: &[&[u32]], has_checkpoint: bool) -> VolumeExtents<u32> {
        let members = members.iter().map(|members| members.to_vec()).collect();
        VolumeExtents { name: "v".into(), replicas, members, has_checkpoint }
    }

    fn of(ring_size: u32, sound: &[u32], volumes: &[VolumeExtents<u32>]) -> (String, &'static str, bool) {
        let health = health(&ring(ring_size), &sound.iter().copied().collect(), volumes);
        let worst = health.worst().map(|copies| copies.to_string()).unwrap_or_default();
        (worst, health.word(), health.is_redundant())
    }

    #[test]
    fn the_worst_off_extent_counts() {
        assert_eq!(of(3, &[0, 1, 2], &[]), (String::new(), "Healthy", true));
        assert_eq!(of(3, &[0, 1, 2], &[volume(2, &[&[0, 1], &[1, 2]], true)]), ("2/2".into(), "Healthy", true));
        assert_eq!(of(3, &[0, 1, 2], &[volume(2, &[&[0, 1], &[1]], true)]), ("1/2".into(), "AtRisk", false));
        assert_eq!(of(3, &[0, 1, 2], &[volume(3, &[&[0, 1]], false)]), ("2/3".into(), "Degraded", false));
        assert_eq!(of(3, &[0, 1], &[volume(2, &[&[0, 1]], false)]), ("2/2".into(), "Degraded", false));
        assert_eq!(of(3, &[0], &[volume(2, &[&[1, 2]], false)]), ("0/2".into(), "AtRisk", false));
        assert_eq!(of(1, &[0], &[volume(1, &[&[0]], true)]), ("1/1".into(), "Healthy", true));
    }

    #[test]
    fn what_lies_before_a_checkpoint_is_placed_by_the_ring() {
        assert_eq!(of(3, &[0, 1], &[volume(2, &[&[0, 1]], true)]), ("1/2".into(), "AtRisk", false));
        assert_eq!(of(3, &[0], &[volume(3, &[], true)]), ("1/3".into(), "AtRisk", false));
    }

    #[test]
    fn an_agent_named_twice_is_one_copy() {
        assert_eq!(of(2, &[0, 1], &[volume(2, &[&[0, 0]], false)]), ("1/2".into(), "AtRisk", false));
    }
}
