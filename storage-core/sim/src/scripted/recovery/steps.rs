//! What an opening does once all are fenced: one request after the other, each by what the last one came to.

use super::ends::holders;
use super::{Awaited, Recovery};
use crate::owner::Output;
use crate::scripted::{Base, Extent, STREAM, Turn};
use crate::world::VOLUME;
use torus_core::format::{FrameHeader, crc};
use torus_core::ids::{AgentId, BLOCK_SIZE, Blocks, ExtentSeq};
use torus_core::meta::docs::{self, ExtentDoc, Seal};
use torus_core::meta::{Compare, MetaOp, Txn, Write, keys};
use torus_core::peer::{Class, Request, Response, Unanswered};
use torus_core::time::Instant;

#[derive(Debug)]
pub(super) enum Step {
    /// Headers of the frames of an extent from its copies, tried in turn.
    Frames {
        seq: ExtentSeq,
        from: Vec<AgentId>,
        length: Blocks,
    },
    /// A frame of one copy for another one.
    Fetch {
        seq: ExtentSeq,
        from: Vec<AgentId>,
        to: AgentId,
        header: FrameHeader,
    },
    Fill {
        seq: ExtentSeq,
        to: AgentId,
        offset: Blocks,
        bytes: bytes::Bytes,
    },
    /// The transaction that seals everything.
    Commit,
    /// A copy is closed at its extent's seal.
    Seal {
        seq: ExtentSeq,
        agent: AgentId,
        length: Blocks,
    },
    Replay,
    /// The dead front of the log goes.
    Forget,
    Delete {
        seq: ExtentSeq,
        agent: AgentId,
    },
    WaitLeases,
    Register,
    Create {
        agent: AgentId,
    },
}

impl Recovery {
    /// Asks for the step at the front; carries out those that need nobody.
    pub(super) fn next(&mut self, base: &mut Base, now: Instant, out: &mut Output) -> Turn {
        loop {
            if self.awaited != Awaited::Nobody {
                return Turn::Stay;
            }
            let epoch = base.epoch;
            let (to, request) = match self.steps.front() {
                None => return self.serve(base, now),
                Some(Step::Frames { seq, from, .. }) => {
                    let Some(agent) = from.first() else { return Turn::End(format!("extent {seq} cannot be read")) };
                    let have = self.headers.get(seq).and_then(|headers| headers.last());
                    let from = have.map_or(0, |header| header.offset + header.blocks());
                    (*agent, Request::Frames { extent: Base::id(*seq), epoch, from })
                }
                Some(Step::Fetch { seq, from, header, .. }) => {
                    let Some(agent) = from.first() else { return Turn::End(format!("extent {seq} cannot be read")) };
                    let (offset, blocks) = (header.offset, header.blocks());
                    (*agent, Request::Read { extent: Base::id(*seq), epoch, offset, blocks })
                }
                Some(Step::Fill { seq, to, offset, bytes }) if bytes.is_empty() => {
                    let (seq, to, offset) = (*seq, *to, *offset);
                    self.plan_fill(base, seq, to, offset);
                    continue;
                }
                Some(Step::Fill { seq, to, offset, bytes }) => {
                    let bytes = smallvec::smallvec![bytes.clone()];
                    (
                        *to,
                        Request::Fill {
                            extent: Base::id(*seq),
                            epoch,
                            stream: STREAM,
                            copy: 0,
                            offset: *offset,
                            bytes,
                        },
                    )
                }
                Some(Step::Seal { seq, agent, length }) => {
                    (*agent, Request::Seal { extent: Base::id(*seq), epoch, length: *length })
                }
                Some(Step::Delete { seq, agent }) => {
                    (*agent, Request::Delete { extent: Base::id(*seq), epoch, copy: 0 })
                }
                Some(Step::Create { agent }) => {
                    let Some((seq, _)) = &self.new else { return Turn::End("no new extent".into()) };
                    let extent = Base::id(*seq);
                    (*agent, Request::Create { extent, epoch, stream: STREAM, class: Class::Data })
                }
                Some(Step::WaitLeases) => {
                    if now < self.leases_until {
                        self.due = Some(self.leases_until);
                        return Turn::Stay;
                    }
                    self.steps.pop_front();
                    continue;
                }
                Some(Step::Replay) => {
                    self.replay(base);
                    self.steps.pop_front();
                    continue;
                }
                Some(Step::Commit | Step::Forget | Step::Register) => match self.transaction(base) {
                    Ok(Some(txn)) => {
                        self.awaited = Awaited::Store;
                        base.ask(MetaOp::Txn(txn), out);
                        return Turn::Stay;
                    }
                    Ok(None) => {
                        self.steps.pop_front();
                        continue;
                    }
                    Err(why) => return Turn::End(why),
                },
            };
            self.awaited = Awaited::Member(base.send(now, to, request, out));
        }
    }

    fn plan_fill(&mut self, base: &Base, seq: ExtentSeq, to: AgentId, offset: Blocks) {
        self.steps.pop_front();
        let length = base.extents[&seq].seal.map_or(0, |seal| seal.length);
        let from = holders(&self.ending[&seq], length);
        let headers = self.headers.get(&seq).cloned().unwrap_or_default();
        for header in headers.into_iter().rev().filter(|header| header.offset >= offset) {
            self.steps.push_front(Step::Fetch { seq, from: from.clone(), to, header });
        }
    }

    fn replay(&mut self, base: &mut Base) {
        let headers = std::mem::take(&mut self.headers);
        for header in headers.values().flatten() {
            base.apply(header);
            self.last = self.last.max(header.last());
        }
    }

    fn transaction(&mut self, base: &mut Base) -> Result<Option<Txn>, String> {
        let guard = Compare::Holds(keys::volume_epoch(VOLUME), base.epoch_doc.clone());
        let then: Vec<Write> = match self.steps.front() {
            Some(Step::Commit) => {
                self.keeps_what_was_acknowledged()?;
                let docs = self.ending.keys().map(|seq| {
                    let extent = &base.extents[seq];
                    put_extent(*seq, &extent.members, extent.seal)
                });
                docs.collect()
            }
            Some(Step::Forget) => {
                let front = base.extents.iter().take_while(|(_, e)| e.live == 0 && e.seal.is_some());
                let dead: Vec<(ExtentSeq, Extent)> = front.take(20).map(|(seq, e)| (*seq, e.clone())).collect();
                for (seq, extent) in &dead {
                    base.extents.remove(seq);
                    for agent in extent.members.iter().filter(|agent| base.is_up(**agent)) {
                        self.steps.insert(1, Step::Delete { seq: *seq, agent: *agent });
                    }
                }
                dead.iter().map(|(seq, _)| Write::Delete(keys::extent(VOLUME, *seq))).collect()
            }
            _ => {
                let mut up: Vec<AgentId> = base.seen.iter().filter(|seen| seen.up).map(|seen| seen.id).collect();
                base.rng.shuffle(&mut up);
                up.truncate(base.replicas);
                if up.len() < base.min_replicas {
                    return Err(format!("only {} agents are up", up.len()));
                }
                let seq = ExtentSeq::new(base.epoch, 1).ok_or("no extent number is left")?;
                self.new = Some((seq, up.clone()));
                vec![put_extent(seq, &up, None)]
            }
        };
        Ok((!then.is_empty()).then(|| Txn { when: vec![guard], then }))
    }

    /// Takes the answer to a step.
    pub(super) fn take(
        &mut self,
        base: &mut Base,
        step: Step,
        result: Result<Response, Unanswered>,
    ) -> Result<(), String> {
        match (step, result) {
            (Step::Frames { seq, from, length }, Ok(Response::Frames { headers, .. })) => {
                self.take_headers(base, (seq, from, length), &headers)?;
            }
            (Step::Fetch { seq, to, header, .. }, Ok(Response::Data { bytes, .. })) if is_frame(&header, &bytes) => {
                self.steps.push_front(Step::Fill { seq, to, offset: header.offset, bytes });
            }
            // That it cannot be reached any more says nothing about its copy.
            (Step::Frames { seq, .. } | Step::Fetch { seq, .. }, Err(_)) if self.ending.contains_key(&seq) => {
                return Err(format!("a member of extent {seq} went away"));
            }
            (Step::Frames { seq, mut from, length }, _) => {
                from.remove(0);
                self.headers.remove(&seq);
                self.read_from(base, seq, from, length)?;
            }
            (Step::Fetch { seq, mut from, to, header }, _) => {
                from.remove(0);
                match from.is_empty() {
                    true => self.shorten(base, seq, header.offset + header.blocks())?,
                    false => self.steps.push_front(Step::Fetch { seq, from, to, header }),
                }
            }
            (Step::Fill { .. }, Ok(Response::Appended { .. }))
            | (Step::Create { .. }, Ok(Response::Created { .. }))
            | (Step::Delete { .. }, _) => {}
            (Step::Seal { seq, agent, length: asked }, Ok(Response::Sealed { length, .. })) if length != asked => {
                return Err(format!("{agent} sealed extent {seq} at {length} instead of {asked}"));
            }
            (Step::Seal { .. }, _) => {}
            (Step::Fill { seq, to, .. }, _) => {
                // This copy is left as it is: nobody relies on it.
                let of_copy = |step: &Step| matches!(step, Step::Fill { seq: s, to: t, .. } | Step::Fetch { seq: s, to: t, .. } if *s == seq && *t == to);
                self.steps.retain(|step| !of_copy(step));
            }
            (step, result) => return Err(format!("{step:?} failed: {result:?}")),
        }
        Ok(())
    }

    /// Reads an extent's headers from the first of `from`; without one, the extent ends earlier or cannot be opened.
    fn read_from(&mut self, base: &mut Base, seq: ExtentSeq, from: Vec<AgentId>, length: Blocks) -> Result<(), String> {
        if from.is_empty() {
            return self.shorten(base, seq, length);
        }
        self.steps.push_front(Step::Frames { seq, from, length });
        Ok(())
    }

    fn take_headers(
        &mut self,
        base: &mut Base,
        (seq, mut from, length): (ExtentSeq, Vec<AgentId>, Blocks),
        blocks: &[bytes::Bytes],
    ) -> Result<(), String> {
        let known = self.headers.entry(seq).or_default();
        let mut at = known.last().map_or(0, |header| header.offset + header.blocks());
        let mut sound = !blocks.is_empty();
        for block in blocks {
            if at >= length {
                break;
            }
            match FrameHeader::decode(block, Base::id(seq), at) {
                Ok(header) => {
                    at += header.blocks();
                    known.push(header);
                }
                Err(_) => sound = false,
            }
        }
        if at == length {
            return Ok(());
        }
        if !sound {
            known.clear();
            from.remove(0);
        }
        self.read_from(base, seq, from, length)
    }
}

/// Whether `bytes` are the whole frame of `header`.
fn is_frame(header: &FrameHeader, bytes: &[u8]) -> bool {
    bytes.len() == header.blocks() as usize * BLOCK_SIZE
        && FrameHeader::decode(bytes, header.extent, header.offset).as_ref() == Ok(header)
        && bytes[BLOCK_SIZE..].chunks(BLOCK_SIZE).zip(&header.crcs).all(|(block, want)| crc(block) == *want)
}

fn put_extent(seq: ExtentSeq, members: &[AgentId], sealed: Option<Seal>) -> Write {
    let doc = ExtentDoc { stream: STREAM, members: members.to_vec(), former: Vec::new(), degraded: false, sealed };
    Write::Put { key: keys::extent(VOLUME, seq), value: docs::encode(&doc), lease: None }
}
