//! The task that owns the core of an open volume.

use super::control::{Answer, Control, Sign};
use super::device::{Desk, VolumeDevice};
use super::opening::Opening;
use super::owned::Entry;
use super::status::{Latencies, OwnerStatus};
use super::used::Reporter;
use super::view::{News, View};
use super::waits::{Waits, Word, sentence};
use super::{OwnerConfig, OwnerError};
use crate::clock::Clock;
use crate::device::{IoError, IoErrorKind};
use crate::metadata::{VolumeInfo, load_cluster, load_ring};
use crate::tdp::{Aligned, LocalDoor, PeerEvent, Peers};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, spawn_local};
use tokio::time::{Instant as TokioInstant, sleep_until, timeout};
use torus_core::block::serving::Counters;
use torus_core::block::space::Usage;
use torus_core::block::{Effects, Event, IoId, IoOp, Volume, VolumeConfig, VolumeState};
use torus_core::ids::Epoch;
use torus_core::limits::OWNER_BUFFERS_IDLE_BYTES;
use torus_core::log::recover::Claim;
use torus_core::log::{Blocked, Note};
use torus_core::peer::FreeSpace;
use torus_core::ring::Ring;
use torus_core::tdp::Role;
use torus_core::time::Instant;
use torus_store::BufferPool;

/// How long taking back the sign of life may take.
const FAREWELL_TIME: std::time::Duration = std::time::Duration::from_secs(3);

/// A volume that is open on this thread.
pub struct OpenVolume {
    device: VolumeDevice,
    state: watch::Receiver<VolumeState>,
    questions: mpsc::UnboundedSender<Question>,
    task: AbortHandle,
    /// Its name.
    name: String,
    latencies: Latencies,
    /// Over when the sign of life is taken back.
    keeper: JoinHandle<()>,
    reporter: Reporter,
    /// It is among the volumes of this process; not yet while it is being opened.
    entry: Option<Entry>,
}

pub(super) enum Question {
    Stats(oneshot::Sender<OwnerStats>),
    Close,
}

/// An owner in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnerStats {
    /// Written, moved, checkpointed.
    pub counters: Counters,
    /// Blocks that hold data.
    pub mapped_blocks: u64,
    /// Memory of the address map.
    pub map_bytes: u64,
    /// Requests under way.
    pub underway: u64,
    /// Extents with fewer sound copies than asked for.
    pub under_replicated: u64,
    /// What of its extents is still needed, and what is not.
    pub usage: Usage,
    /// Garbage collection is at work.
    pub collecting: bool,
    /// Slots of the agents that it can reach.
    pub space: FreeSpace,
    /// Why I/O waits, if it does for another reason than load.
    pub blocked: Option<Blocked>,
    /// For how long the request that has waited longest is under way.
    pub oldest: Option<std::time::Duration>,
}

impl OpenVolume {
    /// Opens `volume`: claims it, fences who had it, and serves it on this thread. Call it inside a `LocalSet`, on another
    /// thread than `control`'s.
    ///
    /// # Errors
    /// Why it cannot be opened; after the configured patience, if nothing has got ahead for so long.
    pub async fn open(control: Control, volume: &VolumeInfo, config: OwnerConfig) -> Result<OpenVolume, OwnerError> {
        let name = volume.meta.doc.name.clone();
        let store = Arc::clone(&control.store);
        let cluster = control.ask(async move { load_cluster(&*store).await }).await??;
        let store = Arc::clone(&control.store);
        let ring = control.ask(async move { load_ring(&*store).await }).await??;
        let ring = ring.ok_or(crate::metadata::RingsError::None)?;
        let ring = Arc::new(Ring::new(&ring.doc.now).map_err(crate::metadata::RingsError::from)?);
        let nonce = rand::random();
        let lease = control.lease().await?;
        let claim = Claim {
            volume: volume.id,
            holder: config.holder.clone(),
            nonce,
            lease: Some(lease),
            force: config.force,
            patience: config.patience,
        };
        let core = VolumeConfig {
            claim,
            extent_blocks: cluster.extent_blocks,
            open_max: config.open_max,
            frames_max: config.frames_max,
            gather: true,
            grace: config.grace,
            near: control.door.as_ref().map(LocalDoor::agent),
        };
        let (life, living) = watch::channel(None);
        let keeper = control.keep(lease, Sign { volume: volume.id, holder: config.holder.clone(), nonce }, living);
        let reporter = Reporter { control: control.clone(), volume: volume.id, holder: config.holder.clone(), nonce };
        let view = View::begin(&control.runtime, &control.store, volume.id);
        let latencies = Latencies::new();
        let owned = control.owned.clone();
        let desk = Rc::new(Desk::new(name.clone(), volume.meta.doc.size.0, latencies.clone()));
        let memory = Aligned(BufferPool::new(OWNER_BUFFERS_IDLE_BYTES));
        let who = format!("{name} on {} (process {})", config.holder.host, config.holder.pid);
        let volume = Volume::new(core, ring);
        let (said, state) = watch::channel(volume.state());
        let (questions, asked) = mpsc::unbounded_channel();
        let (answers, answered) = mpsc::unbounded_channel();
        let driver = Driver {
            clock: Clock::start(),
            volume,
            peers: Peers::new(cluster.id, Role::Owner, who, memory, control.door.clone()),
            desk: Rc::clone(&desk),
            control,
            answers,
            answered,
            view,
            questions: asked,
            said,
            life,
            size: desk.blocks(),
            effects: Effects::default(),
            asked: Vec::new(),
            heard: Vec::new(),
            opening: Opening::default(),
            waits: Waits::default(),
        };
        let task = spawn_local(driver.run()).abort_handle();
        let mut open = OpenVolume {
            device: VolumeDevice { desk },
            state,
            questions,
            task,
            name,
            latencies,
            keeper,
            reporter,
            entry: None,
        };
        open.until(|state| !matches!(state, VolumeState::Opening(_))).await;
        match open.ended() {
            None => {
                open.reporter.clone().begin(open.questions.clone(), open.state.clone());
                open.entry = Some(owned.enter(open.status()));
                Ok(open)
            }
            Some(error) => Err(error),
        }
    }

    /// The volume as a block device.
    #[must_use]
    pub fn device(&self) -> VolumeDevice {
        self.device.clone()
    }

    /// In which epoch it serves, or served.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        self.state.borrow().clone()
    }

    /// What can be told of it from any thread, also when it has ended.
    #[must_use]
    pub fn status(&self) -> OwnerStatus {
        OwnerStatus::new(self.name.clone(), self.questions.clone(), self.state.clone(), self.latencies.clone())
    }

    /// Figures; `None` once it has ended.
    pub async fn stats(&self) -> Option<OwnerStats> {
        let (asker, answer) = oneshot::channel();
        self.questions.send(Question::Stats(asker)).ok()?;
        answer.await.ok()
    }

    /// Waits until it serves no more without having been closed. Cancel safe.
    pub async fn lost(&mut self) -> OwnerError {
        self.until(|state| !matches!(state, VolumeState::Opening(_) | VolumeState::Serving(_))).await;
        self.ended().unwrap_or_else(|| OwnerError::Closed(self.name.clone()))
    }

    /// Answers what is under way, writes a checkpoint, lets the volume go.
    ///
    /// # Errors
    /// When it was taken over meanwhile.
    pub async fn close(mut self) -> Result<(), OwnerError> {
        if let (Some(stats), VolumeState::Serving(epoch)) = (self.stats().await, self.state()) {
            self.reporter.say(epoch, stats.mapped_blocks).await;
        }
        // A driver that has ended has said why.
        let _ = self.questions.send(Question::Close);
        let ended = self.lost().await;
        // Until the sign of life is gone, everybody takes the volume for open. It runs out by itself if this fails.
        if timeout(FAREWELL_TIME, &mut self.keeper).await.is_err() {
            tracing::warn!(
                volume = self.name,
                "the owner's sign of life is not taken back in time; it runs out by itself"
            );
        }
        match ended {
            OwnerError::Closed(_) => Ok(()),
            error => Err(error),
        }
    }

    async fn until(&mut self, reached: impl FnMut(&VolumeState) -> bool) {
        // An error: the driver is gone, and what it said last stands.
        let _ = self.state.wait_for(reached).await;
    }

    fn ended(&self) -> Option<OwnerError> {
        match &*self.state.borrow() {
            VolumeState::Opening(_) => Some(OwnerError::Closed(self.name.clone())),
            VolumeState::Serving(_) => None,
            VolumeState::Failed(error) => Some(error.clone().into()),
            VolumeState::Fenced(epoch) => Some(OwnerError::Fenced { name: self.name.clone(), epoch: *epoch }),
            VolumeState::Closed => Some(OwnerError::Closed(self.name.clone())),
        }
    }
}

/// As a crash would: nothing is answered, nothing is taken back. Call [`OpenVolume::close`] for an orderly end.
impl Drop for OpenVolume {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    clock: Clock,
    volume: Volume,
    peers: Peers,
    desk: Rc<Desk>,
    control: Control,
    answers: mpsc::UnboundedSender<Answer>,
    answered: mpsc::UnboundedReceiver<Answer>,
    view: View,
    questions: mpsc::UnboundedReceiver<Question>,
    said: watch::Sender<VolumeState>,
    /// Tells the keeper of the lease which epoch it is for; the lease ends with it.
    life: watch::Sender<Option<Epoch>>,
    /// Blocks that the volume should have.
    size: u64,
    effects: Effects,
    asked: Vec<(IoId, IoOp)>,
    heard: Vec<PeerEvent>,
    opening: Opening,
    waits: Waits,
}

impl Driver {
    async fn run(mut self) {
        let alarm = sleep_until(TokioInstant::now());
        tokio::pin!(alarm);
        let mut armed: Option<Instant> = None;
        while !self.is_over() {
            tokio::select! {
                biased;
                () = self.desk.news.notified() => {}
                () = self.peers.arrival() => {}
                Some((id, result)) = self.answered.recv() => self.step(Event::Meta { id, result }),
                news = self.view.news() => self.on_news(news),
                Some(question) = self.questions.recv() => self.on_question(question),
                () = &mut alarm, if armed.is_some() => {
                    armed = None;
                    self.step(Event::Tick);
                }
            }
            self.turn();
            self.tell_opening();
            self.tell_waits();
            // An alarm that is too early costs one empty turn; setting it anew for every request would cost more.
            let now = self.clock.now();
            if let Some(deadline) = self.volume.deadline(now)
                && armed.is_none_or(|armed| deadline < armed)
            {
                alarm.as_mut().reset(TokioInstant::now() + deadline.since(now));
                armed = Some(deadline);
            }
        }
        self.desk.end(&self.last_word());
    }

    fn is_over(&self) -> bool {
        !matches!(self.volume.state(), VolumeState::Opening(_) | VolumeState::Serving(_))
    }

    fn last_word(&self) -> IoError {
        let name = &self.desk.name;
        match self.volume.state() {
            VolumeState::Fenced(epoch) => {
                let text = format!("volume {name:?} was taken over by another owner (epoch {epoch})");
                IoError::new(IoErrorKind::Fenced, text)
            }
            _ => IoError::new(IoErrorKind::ShuttingDown, format!("volume {name:?} is closed")),
        }
    }

    fn step(&mut self, event: Event) {
        self.volume.step(self.clock.now(), event, &mut self.effects);
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Agents(agents) => {
                for (view, address) in &agents {
                    self.peers.set_address(view.id, address.clone());
                }
                self.step(Event::Agents(agents.into_iter().map(|(view, _)| view).collect()));
            }
            News::Ring(ring) => self.step(Event::Ring(ring)),
            News::Size(blocks) => {
                self.size = self.size.max(blocks);
                self.grow();
            }
        }
    }

    /// Grows the volume, and then the device: nobody asks for blocks that the core does not know.
    fn grow(&mut self) {
        self.step(Event::Resized(self.size));
        if let Some(serving) = self.volume.serving() {
            self.desk.grow(serving.map.blocks());
        }
    }

    fn on_question(&mut self, question: Question) {
        match question {
            Question::Close => self.step(Event::Close),
            Question::Stats(asker) => {
                let stats = self.volume.serving().map(|serving| OwnerStats {
                    counters: serving.counters(),
                    mapped_blocks: serving.map.mapped_blocks(),
                    map_bytes: serving.map.memory_bytes() as u64,
                    underway: serving.underway() as u64,
                    under_replicated: serving.log.under_replicated() as u64,
                    usage: serving.usage(),
                    collecting: serving.is_collecting(),
                    space: serving.log.space(),
                    blocked: serving.log.blocked(),
                    oldest: self.desk.oldest().map(|since| since.elapsed()),
                });
                // Whoever asked may have given up.
                let _ = asker.send(stats.unwrap_or_default());
            }
        }
    }

    /// Takes everything that is there, and does everything that follows from it.
    fn turn(&mut self) {
        let now = self.clock.now();
        self.peers.take(&mut self.heard);
        for event in self.heard.drain(..) {
            let event = match event {
                PeerEvent::Answer { rpc, result, .. } => Event::Answer { rpc, result },
                PeerEvent::Up { agent, .. } => Event::PeerUp(agent),
                // What was outstanding has been told.
                PeerEvent::Down { agent, why } => {
                    tracing::info!(volume = self.desk.name, %agent, "no connection: {why}");
                    continue;
                }
            };
            self.volume.step(now, event, &mut self.effects);
        }
        while let Ok((id, result)) = self.answered.try_recv() {
            self.volume.step(now, Event::Meta { id, result }, &mut self.effects);
        }
        self.desk.take(&mut self.asked);
        for (id, op) in self.asked.drain(..) {
            self.volume.step(now, Event::Io { id, op }, &mut self.effects);
        }
        self.volume.turn(now, &mut self.effects);
        self.carry_out();
        if self.say() {
            // It may have grown while it was being opened.
            self.grow();
            self.volume.turn(now, &mut self.effects);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        for send in self.effects.sends.drain(..) {
            self.peers.send(send.to, send.rpc, send.request);
        }
        self.peers.flush();
        for (id, op) in self.effects.meta.drain(..) {
            self.control.carry_out(id, op, &self.answers);
        }
        for (id, result) in self.effects.done.drain(..) {
            self.desk.answer(id, result);
        }
        for note in self.effects.notes.drain(..) {
            tell(&self.desk.name, &note);
        }
    }

    /// Says how far the volume is, if opening it takes long.
    fn tell_opening(&mut self) {
        if let VolumeState::Opening(progress) = self.volume.state()
            && let Some(line) = self.opening.see(std::time::Instant::now(), &progress)
        {
            // As loud as other waits: what people serve by hand logs nothing less.
            tracing::warn!(volume = self.desk.name, "not open yet: {line}");
        }
    }

    /// Says why I/O waits, if it does for long.
    fn tell_waits(&mut self) {
        let blocked = self.volume.serving().and_then(|serving| serving.log.blocked());
        if blocked.is_none() && self.waits == Waits::default() {
            return;
        }
        let volume = &self.desk.name;
        match self.waits.see(std::time::Instant::now(), blocked) {
            Some(Word::Waits(reason)) => tracing::warn!(volume, "{}", sentence(reason)),
            Some(Word::GoesOn(after)) => tracing::info!(volume, "I/O goes on after {:.1} s", after.as_secs_f64()),
            None => {}
        }
    }

    /// Says where the volume stands, if that is news. True: it has just begun to serve.
    fn say(&mut self) -> bool {
        let state = self.volume.state();
        if *self.said.borrow() == state {
            return false;
        }
        let volume = &self.desk.name;
        match &state {
            // Told from time to time; see `tell_opening`.
            VolumeState::Opening(_) => {}
            VolumeState::Serving(epoch) => {
                tracing::info!(volume, %epoch, "volume is open");
                self.life.send_replace(Some(*epoch));
            }
            VolumeState::Failed(error) => tracing::error!(volume, "cannot open the volume: {error}"),
            VolumeState::Fenced(epoch) => tracing::error!(volume, %epoch, "taken over by another owner"),
            VolumeState::Closed => tracing::info!(volume, "volume is closed"),
        }
        let serves = matches!(state, VolumeState::Serving(_));
        self.said.send_replace(state);
        serves
    }
}

fn tell(volume: &str, note: &Note) {
    match note {
        Note::AgentLost { agent } => {
            tracing::warn!(volume, %agent, "an agent does not answer; writing goes on elsewhere")
        }
        Note::Degraded { extent } => {
            tracing::warn!(volume, %extent, "fewer copies, or less spread, than asked for; repaired when agents are there");
        }
        Note::Repaired { extent, agent } => tracing::info!(volume, %extent, %agent, "a copy is whole again"),
        Note::DamagedCopy { extent, agent } => {
            tracing::error!(volume, %extent, %agent, "a copy is damaged; another one served. Look at that agent's disk");
        }
        Note::Unreadable { extent, block } => {
            tracing::error!(volume, %extent, block, "no sound copy of a block is left: reads of it fail with EIO");
        }
        Note::MetadataRefused { reason } => tracing::error!(volume, "the metadata store refuses: {reason}"),
        Note::Fenced { epoch } => tracing::warn!(volume, %epoch, "a newer owner has the volume"),
    }
}
