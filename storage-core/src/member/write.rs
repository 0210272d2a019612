//! What changes a copy: create, append, fill, seal, delete. Each either refuses, leaving everything as it was, or
//! leaves its effect in the pending batch and its asker among those who wait for it. The epoch has been let in by the
//! gate before.

use super::commit::FrameWrite;
use super::copy::{OpenCopy, Sealing};
use super::disk::{Content, DiskCore};
use super::port::{MemberEffects, ReqId};
use super::replies::Absent;
use crate::format::slot::{FOOTER_COVERS, FooterBlock, SealName, SlotCopy, SlotState, footer_blocks};
use crate::format::{Frame, FrameError, FrameHeader, Pieces, Stream, crc};
use crate::ids::{BLOCK_SIZE, Blocks, Epoch, ExtentId, Vseq};
use crate::limits::FILL_BLOCKS_MAX;
use crate::mutation::{Mutation, active};
use crate::peer::{Class, FreeSpace, Rejection};
use bytes::Bytes;
use smallvec::SmallVec;

/// What an owner wants to append.
pub(super) struct Append {
    pub extent: ExtentId,
    pub epoch: Epoch,
    pub offset: Blocks,
    pub frame: Frame,
    pub early: bool,
}

/// What an owner wants to add to a copy that takes no appends.
pub(super) struct Fill {
    pub extent: ExtentId,
    pub epoch: Epoch,
    pub stream: Stream,
    pub copy: u64,
    pub offset: Blocks,
    pub bytes: Pieces,
    /// The agent cannot say that it never held more of the extent.
    pub partial: bool,
}

fn bad(error: FrameError) -> Rejection {
    Rejection::BadBytes(error.to_string())
}

/// Checks the payload of `frame`, whose pieces are whole blocks, against its header.
fn check_payload(header: &FrameHeader, frame: &Frame) -> Result<(), Rejection> {
    if frame.header.len() != BLOCK_SIZE || frame.payload.iter().any(|piece| piece.len() % BLOCK_SIZE != 0) {
        return Err(Rejection::BadBytes("a frame that is not in whole blocks".into()));
    }
    if frame.blocks() != header.blocks() {
        return Err(bad(FrameError::Short));
    }
    let blocks = frame.payload.iter().flat_map(|piece| piece.chunks_exact(BLOCK_SIZE));
    match blocks.zip(&header.crcs).position(|(block, want)| crc(block) != *want) {
        Some(i) if !active(Mutation::CrcIgnored) => Err(bad(FrameError::Payload(i as Blocks))),
        _ => Ok(()),
    }
}

/// Records of one extent are in order, if not without a gap.
fn check_order(last: Vseq, next: &FrameHeader) -> Result<(), Rejection> {
    match next.base > last {
        true => Ok(()),
        false => Err(Rejection::BadBytes(format!("vseq {} after {last}", next.base))),
    }
}

impl DiskCore {
    fn open_copy(&mut self, extent: ExtentId) -> Result<(u32, &mut OpenCopy), Rejection> {
        let number = *self.extents.get(&extent).ok_or(Rejection::NoSuchExtent)?;
        match &mut self.slots[number as usize].content {
            Content::Open(copy) => Ok((number, copy)),
            Content::Sealed(_, seal) => Err(Rejection::Closed { length: seal.get().length }),
            Content::Free | Content::Found(..) | Content::Leaving(..) | Content::Damaged => {
                Err(Rejection::NoSuchExtent)
            }
        }
    }

    /// Takes a slot for a new copy.
    fn take_slot(&mut self, name: SlotCopy, writer: Option<Epoch>, class: Class) -> Result<u32, Rejection> {
        let kept = match class {
            Class::Data => self.reserve(),
            Class::Reserve => 0,
        };
        let no_space = Rejection::NoSpace { free: FreeSpace::default() };
        if self.free.len() <= kept {
            return Err(no_space);
        }
        let number = self.free.pop_front().ok_or(no_space)?;
        self.slots[number as usize].content = Content::Open(Box::new(OpenCopy::new(name, writer)));
        self.extents.insert(name.extent, number);
        Ok(number)
    }

    pub(super) fn create(
        &mut self,
        req: ReqId,
        (extent, epoch, stream): (ExtentId, Epoch, Stream),
        class: Class,
        out: &mut MemberEffects,
    ) {
        match self.try_create(extent, epoch, stream, class) {
            Ok(()) => out.replies.created(req),
            Err(why) => out.replies.refuse(req, why),
        }
    }

    fn try_create(&mut self, extent: ExtentId, epoch: Epoch, stream: Stream, class: Class) -> Result<(), Rejection> {
        self.check_works()?;
        if !self.extents.contains_key(&extent) {
            let name = SlotCopy { extent, stream, epoch, incarnation: self.incarnation, partial: false };
            return self.take_slot(name, Some(epoch), class).map(drop);
        }
        let (_, copy) = self.open_copy(extent)?;
        match copy.length() {
            length if copy.writer != Some(epoch) || copy.sealing.is_some() || copy.name.stream != stream => {
                Err(Rejection::Closed { length })
            }
            0 => Ok(()),
            length => Err(Rejection::WrongOffset { length }),
        }
    }

    pub(super) fn append(&mut self, req: ReqId, append: Append, out: &mut MemberEffects) {
        if let Err(why) = self.try_append(req, append, out) {
            out.replies.refuse(req, why);
        }
    }

    fn try_append(&mut self, req: ReqId, append: Append, out: &mut MemberEffects) -> Result<(), Rejection> {
        self.check_works()?;
        let Append { extent, epoch, offset, frame, early } = append;
        let capacity = self.geometry.extent_blocks();
        let (number, copy) = self.open_copy(extent)?;
        let length = copy.length();
        if copy.writer != Some(epoch) || copy.sealing.is_some() {
            return Err(Rejection::Closed { length });
        }
        let mut header = FrameHeader::decode(&frame.header, extent, offset).map_err(bad)?;
        if header.epoch != epoch || header.stream != copy.name.stream {
            return Err(Rejection::BadBytes("a frame of another epoch or stream than its request".into()));
        }
        let end = offset.saturating_add(header.blocks());
        if offset < length && copy.frames.holds(offset, &frame.header) {
            if active(Mutation::ResendAppendsAgain) {
                header.offset = length;
                self.accept(number, &header, Frame { header: header.encode(), ..frame });
                self.when_durable(number, req, length + header.blocks(), out);
                return Ok(());
            }
            self.stats.resends += 1;
            if early {
                out.replies.received(req, end);
            }
            self.when_durable(number, req, end, out);
            return Ok(());
        }
        if offset != length {
            return Err(Rejection::WrongOffset { length });
        }
        if end > capacity {
            return Err(Rejection::BadBytes(format!("a frame up to block {end} of an extent of {capacity} blocks")));
        }
        check_order(copy.frames.last(), &header)?;
        check_payload(&header, &frame)?;
        if early {
            out.replies.received(req, end);
        }
        self.stats.appends += 1;
        self.accept(number, &header, frame);
        self.when_durable(number, req, end, out);
        Ok(())
    }

    /// Adds a checked frame to the copy in slot `number` and to the pending batch.
    fn accept(&mut self, number: u32, header: &FrameHeader, frame: Frame) {
        let Content::Open(copy) = &mut self.slots[number as usize].content else {
            unreachable!("frames are accepted for open copies only")
        };
        copy.frames.push(header, &frame.header);
        if active(Mutation::AppendedBeforeCommit)
            && let Some(landed) = self.commits.landed()
        {
            copy.durable = landed.proves(copy.frames.reach());
        }
        self.stats.append_blocks += u64::from(header.blocks());
        let batch = self.commits.pending();
        if !copy.written {
            copy.written = true;
            batch.headers.insert(number, SlotState::Open(copy.name));
        }
        batch.reaches.insert(number, copy.frames.reach());
        batch.frames.push(FrameWrite {
            slot: number,
            offset: header.offset,
            header: frame.header,
            payload: frame.payload,
        });
    }

    /// Answers `req` when the copy in slot `number`, which has been accepted that far, is durable up to `end`.
    fn when_durable(&mut self, number: u32, req: ReqId, end: Blocks, out: &mut MemberEffects) {
        if let Content::Open(copy) = &mut self.slots[number as usize].content {
            match end <= copy.durable.get().length {
                true => out.replies.appended(req, copy.durable.prefix(end)),
                false => copy.appends.push((end, req)),
            }
        }
    }

    pub(super) fn fill(&mut self, req: ReqId, fill: Fill, out: &mut MemberEffects) {
        match self.try_fill(fill) {
            Ok((number, end)) => self.when_durable(number, req, end, out),
            Err(why) => out.replies.refuse(req, why),
        }
    }

    fn try_fill(&mut self, fill: Fill) -> Result<(u32, Blocks), Rejection> {
        self.check_works()?;
        let Fill { extent, epoch, stream, copy: number, offset, bytes, partial } = fill;
        let frames = parse_frames(bytes, extent, stream, offset)?;
        let end = offset + frames.iter().map(|(header, _)| header.blocks()).sum::<Blocks>();
        if end > self.geometry.extent_blocks() {
            return Err(Rejection::BadBytes(format!("frames up to block {end}, beyond the end of the extent")));
        }
        if !self.extents.contains_key(&extent) {
            if offset != 0 {
                return Err(Rejection::NoSuchExtent);
            }
            let name = SlotCopy { extent, stream, epoch, incarnation: self.incarnation, partial };
            self.take_slot(name, None, Class::Reserve)?;
            self.filled.insert(extent, (epoch, number));
        }
        let (number, copy) = self.open_copy(extent)?;
        let length = copy.length();
        if copy.sealing.is_some() || copy.name.stream != stream {
            return Err(Rejection::Closed { length });
        }
        if let Some(writer) = copy.writer.filter(|writer| epoch <= *writer) {
            return Err(Rejection::BadBytes(format!("the copy still takes appends of epoch {writer}")));
        }
        if offset > length {
            return Err(Rejection::WrongOffset { length });
        }
        let new = frames.partition_point(|(header, _)| header.offset < length);
        if frames[..new].iter().any(|(header, frame)| !copy.frames.holds(header.offset, &frame.header)) {
            return Err(Rejection::WrongOffset { length });
        }
        if let Some((header, _)) = frames.get(new) {
            check_order(copy.frames.last(), header)?;
        }
        copy.writer = None;
        for (header, frame) in frames.into_iter().skip(new) {
            self.accept(number, &header, frame);
        }
        self.stats.fills += 1;
        Ok((number, end))
    }

    pub(super) fn seal(&mut self, req: ReqId, extent: ExtentId, length: Blocks, out: &mut MemberEffects) {
        if let Err(why) = self.try_seal(req, extent, length, out) {
            out.replies.refuse(req, why);
        }
    }

    fn try_seal(
        &mut self,
        req: ReqId,
        extent: ExtentId,
        length: Blocks,
        out: &mut MemberEffects,
    ) -> Result<(), Rejection> {
        self.check_works()?;
        let number = *self.extents.get(&extent).ok_or(Rejection::NoSuchExtent)?;
        if let Content::Sealed(_, seal) = &self.slots[number as usize].content
            && seal.get().length == length
        {
            out.replies.sealed(req, seal);
            return Ok(());
        }
        let (_, copy) = self.open_copy(extent)?;
        if let Some(sealing) = &mut copy.sealing {
            if sealing.name.length != length {
                return Err(Rejection::Closed { length: sealing.name.length });
            }
            sealing.waiters.push(req);
            return Ok(());
        }
        let held = copy.length();
        let length = if active(Mutation::SealsAtOwnLength) { held } else { length };
        if length > held {
            return Err(Rejection::PastEnd { length: held });
        }
        let digest = copy.frames.digest_at(length).ok_or(Rejection::WrongOffset { length: held })?;
        let name = SealName { extent, length, digest };
        let (sums, copy_name) = (copy.frames.sums(), copy.name);
        let encode = |index| FooterBlock::encode(&name, index, sums, copy.frames.heads(index * FOOTER_COVERS));
        let footer: Vec<Bytes> = (0..footer_blocks(length)).map(encode).collect();
        copy.sealing = Some(Sealing { name, waiters: vec![req] });
        copy.written = true;
        // What lies beyond the seal never was: nobody hears an "appended" of it, not even when it is in flight.
        copy.appends.retain(|(end, waiter)| {
            let stays = *end <= length;
            if !stays {
                out.replies.refuse(*waiter, Rejection::Closed { length });
            }
            stays
        });
        copy.reads.retain(|(end, ask)| {
            let stays = *end <= length;
            if !stays {
                out.replies.refuse(ask.req, Rejection::PastEnd { length });
            }
            stays
        });
        let batch = self.commits.pending();
        match footer.is_empty() {
            true => {
                batch.headers.insert(number, SlotState::Sealed(copy_name, length, digest));
            }
            // The header that points to the footer follows when the footer has landed.
            false => batch.footers.push((number, footer)),
        }
        self.stats.seals += 1;
        Ok(())
    }

    /// Gives the copy up that `asker`, an owner's epoch and its newest copy at that time, knew of.
    pub(super) fn delete(&mut self, req: ReqId, extent: ExtentId, asker: (Epoch, u64), out: &mut MemberEffects) {
        if let Err(why) = self.check_works() {
            return out.replies.refuse(req, why);
        }
        if let Some((_, copy)) = self.filled.get(&extent).copied().filter(|begun| *begun > asker) {
            return out.replies.refuse(req, Rejection::NewerCopy { copy });
        }
        let landed = self.commits.landed().expect("a disk serves only after its first commit");
        let Some(number) = self.extents.get(&extent).copied() else {
            return out.replies.deleted(req, landed.proves(Absent));
        };
        let slot = &mut self.slots[number as usize];
        match std::mem::replace(&mut slot.content, Content::Free) {
            Content::Leaving(extent, mut waiters) => {
                waiters.push(req);
                slot.content = Content::Leaving(extent, waiters);
                return;
            }
            Content::Open(copy) if !copy.written => {
                self.forget(extent);
                self.give_back(number);
                return out.replies.deleted(req, landed.proves(Absent));
            }
            Content::Open(copy) => {
                let sealing = copy.sealing.into_iter().flat_map(|sealing| sealing.waiters);
                let reads = copy.reads.into_iter().map(|(_, ask)| ask.req);
                let waiters = copy.appends.into_iter().map(|(_, req)| req).chain(reads).chain(sealing);
                waiters.for_each(|waiter| out.replies.refuse(waiter, Rejection::NoSuchExtent));
            }
            Content::Free | Content::Found(..) | Content::Sealed(..) | Content::Damaged => {}
        }
        slot.content = Content::Leaving(extent, vec![req]);
        self.commits.pending().headers.insert(number, SlotState::Free);
        self.stats.deletes += 1;
    }
}

/// The frames in `bytes`, each checked, of which the first lies at `offset`.
fn parse_frames(
    bytes: Pieces,
    extent: ExtentId,
    stream: Stream,
    offset: Blocks,
) -> Result<SmallVec<[(FrameHeader, Frame); 1]>, Rejection> {
    let length: usize = bytes.iter().map(Bytes::len).sum();
    if length == 0 || length > FILL_BLOCKS_MAX as usize * BLOCK_SIZE {
        return Err(Rejection::BadBytes(format!("{length} bytes to fill: 1 to {FILL_BLOCKS_MAX} blocks are taken")));
    }
    let mut rest = match bytes.len() {
        1 => bytes.into_iter().next().unwrap_or_default(),
        _ => bytes.concat().into(),
    };
    let mut frames = SmallVec::new();
    let (mut at, mut last) = (offset, Vseq(0));
    while !rest.is_empty() {
        let (header, frame) = Frame::parse(&rest, extent, at).map_err(bad)?;
        if header.stream != stream {
            return Err(Rejection::BadBytes("a frame of another stream than the copy's".into()));
        }
        check_order(last, &header)?;
        last = header.last();
        rest = rest.slice(header.blocks() as usize * BLOCK_SIZE..);
        at = at.checked_add(header.blocks()).ok_or_else(|| bad(FrameError::Short))?;
        frames.push((header, frame));
    }
    Ok(frames)
}
