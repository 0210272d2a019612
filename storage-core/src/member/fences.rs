//! The fences one disk remembers, as its sectors hold them. Volumes are never forgotten: an owner of an old epoch may
//! come back after any time. See [`format::disk`](crate::format::disk) for why both places are written at once.

use crate::format::disk::{FENCE_BLOCKS, FENCES_PER_SECTOR, FenceSector, SECTOR_SIZE, SECTORS_PER_BLOCK};
use crate::ids::{BLOCK_SIZE, DiskId, Epoch, VolumeId};
use crate::limits::FENCED_VOLUMES_MAX;
use bytes::Bytes;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug)]
pub(super) struct FenceTable {
    disk: DiskId,
    sectors: Vec<FenceSector>,
    places: BTreeMap<VolumeId, (usize, usize)>,
}

impl FenceTable {
    /// A table without a fence.
    pub fn empty(disk: DiskId) -> FenceTable {
        let sectors = vec![FenceSector::default(); FENCE_BLOCKS * SECTORS_PER_BLOCK];
        FenceTable { disk, sectors, places: BTreeMap::new() }
    }

    /// The table in its two copies on disk, and which of its blocks differ and are to be written again; `None` when
    /// both places of a sector are lost. An unreadable block is passed as zeros.
    pub fn decode(disk: DiskId, copies: [&[u8]; 2]) -> Option<(FenceTable, Vec<usize>)> {
        let mut table = FenceTable::empty(disk);
        let mut mend = Vec::new();
        for number in 0..table.sectors.len() {
            let range = number * SECTOR_SIZE..(number + 1) * SECTOR_SIZE;
            let [a, b] = copies.map(|copy| FenceSector::decode(&copy[range.clone()], disk, number as u32));
            if a != b && mend.last() != Some(&(number / SECTORS_PER_BLOCK)) {
                mend.push(number / SECTORS_PER_BLOCK);
            }
            let newer = match (a, b) {
                (Some(a), Some(b)) => Some(if a.generation < b.generation { b } else { a }),
                (a, b) => a.or(b),
            }?;
            for (i, (volume, _)) in newer.entries.iter().enumerate() {
                table.places.insert(*volume, (number, i));
            }
            table.sectors[number] = newer;
        }
        Some((table, mend))
    }

    /// The fence of `volume`; 0 when it has none.
    #[cfg(test)]
    pub fn epoch(&self, volume: VolumeId) -> Epoch {
        self.places.get(&volume).map_or(Epoch(0), |(sector, i)| self.sectors[*sector].entries[*i].1)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (VolumeId, Epoch)> + '_ {
        self.sectors.iter().flat_map(|sector| sector.entries.iter().copied())
    }

    /// Whether `volume` can have a fence here.
    pub fn has_room(&self, volume: VolumeId) -> bool {
        self.places.len() < FENCED_VOLUMES_MAX || self.places.contains_key(&volume)
    }

    /// Raises the fence of `volume`: the block to write, if that changes anything.
    ///
    /// # Panics
    /// When there [is no room](Self::has_room).
    pub fn raise(&mut self, volume: VolumeId, epoch: Epoch) -> Option<usize> {
        let number = match self.places.get(&volume) {
            Some((number, i)) => {
                let entry = &mut self.sectors[*number].entries[*i];
                if entry.1 >= epoch {
                    return None;
                }
                entry.1 = epoch;
                *number
            }
            None => {
                assert!(self.has_room(volume), "a fence for {volume} in a full table");
                let number = self.sectors.iter().position(|s| s.entries.len() < FENCES_PER_SECTOR);
                let number = number.expect("the sectors have room for FENCED_VOLUMES_MAX");
                self.places.insert(volume, (number, self.sectors[number].entries.len()));
                self.sectors[number].entries.push((volume, epoch));
                number
            }
        };
        self.sectors[number].generation += 1;
        Some(number / SECTORS_PER_BLOCK)
    }

    /// Block `index` as it is now.
    pub fn block(&self, index: usize) -> Bytes {
        let mut out = vec![0; BLOCK_SIZE];
        for (i, sector) in out.chunks_exact_mut(SECTOR_SIZE).enumerate() {
            let number = index * SECTORS_PER_BLOCK + i;
            self.sectors[number].encode(self.disk, number as u32, sector);
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(table: &FenceTable) -> Vec<u8> {
        (0..FENCE_BLOCKS).flat_map(|i| table.block(i)).collect()
    }

    #[test]
    fn remembers_as_many_volumes_as_it_says_and_reads_back() {
        let mut table = FenceTable::empty(DiskId(9));
        for i in 1..=FENCED_VOLUMES_MAX as u64 {
            assert!(table.raise(VolumeId(i), Epoch(i + 1)).is_some());
        }
        assert!(!table.has_room(VolumeId(u64::MAX)) && table.has_room(VolumeId(5)));
        assert_eq!(table.raise(VolumeId(5), Epoch(6)), None);
        let image = image(&table);
        let (read, mend) = FenceTable::decode(DiskId(9), [&image, &image]).unwrap();
        assert!(mend.is_empty());
        assert_eq!(read.epoch(VolumeId(777)), Epoch(778));
        assert_eq!(read.iter().count(), FENCED_VOLUMES_MAX);
    }

    #[test]
    fn one_place_of_a_sector_is_enough_and_the_newer_one_counts() {
        let mut table = FenceTable::empty(DiskId(9));
        table.raise(VolumeId(1), Epoch(3));
        let old = image(&table);
        table.raise(VolumeId(1), Epoch(4));
        let mut new = image(&table);
        for copies in [[&old, &new], [&new, &old]] {
            let (read, mend) = FenceTable::decode(DiskId(9), copies.map(|c| &c[..])).unwrap();
            assert_eq!((read.epoch(VolumeId(1)), mend), (Epoch(4), vec![0]));
        }
        let sound = new.clone();
        new[40] ^= 1;
        let (read, mend) = FenceTable::decode(DiskId(9), [&new, &sound]).unwrap();
        assert_eq!((read.epoch(VolumeId(1)), mend), (Epoch(4), vec![0]));
        assert!(FenceTable::decode(DiskId(9), [&new, &new]).is_none());
    }
}
