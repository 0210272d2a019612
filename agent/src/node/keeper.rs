//! A volume that this process owns and shows as a block device, on a thread of its own.
//!
//! 1. The record is on stable storage before anybody is told of the device, and goes after the device has gone.
//! 2. The volume is let go only after its device was taken away: nothing that was written can come too late.
//! 3. A record that is there already is one of a device that waits: that one is taken over, and stays if that fails.
//! 4. Somebody who still uses the device is never cut off by an orderly end: that fails, and the volume is served on.

use super::NodeError;
use super::filesystem;
use super::host::{self, HostDevice, Kind, Plan, Shown};
use super::record::{KeeperProcess, Locked, Record, RecordError, Records, Role};
use crate::device::{BlockDevice, ReadOnly, Unaligned};
use crate::metadata::VolumeInfo;
use crate::owner::{Control, OpenVolume, OwnerConfig, OwnerStats};
use crate::process::told;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_blocking};
use tokio::time::sleep;
use torus_core::block::VolumeState;
use torus_core::limits::KEEPER_QUESTIONS_MAX;

/// Somebody may look whether the volume is served, and hold its lock for that moment.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a volume is to be attached.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The kind of device; `None`: the best there is.
    pub kind: Option<Kind>,
    /// How long requests wait for the next process when this one is gone, where the kind of device lets them wait; `None`:
    /// as long as usual.
    pub dead_time: Option<Duration>,
    /// Take no writes.
    pub read_only: bool,
    /// How the volume is opened.
    pub owner: OwnerConfig,
    /// What this process is.
    pub role: Role,
    /// Where there may be a holder, which keeps devices that have no life of their own for the next process.
    pub holder: Option<PathBuf>,
}

/// A volume that is attached by this process. Dropped, it ends as a crash would: the device is dead until it is detached.
pub struct Keeper {
    record: Record,
    asks: mpsc::Sender<Ask>,
    lost: watch::Receiver<Option<String>>,
    thread: Option<JoinHandle<()>>,
}

enum Ask {
    Stats(oneshot::Sender<Option<OwnerStats>>),
    Hold(bool, oneshot::Sender<()>),
    Close(oneshot::Sender<Result<(), NodeError>>),
    Leave(oneshot::Sender<bool>),
}

/// A way to ask a [`Keeper`] for something, beside the keeper itself.
#[derive(Clone)]
pub struct Holding(mpsc::Sender<Ask>);

impl Holding {
    /// Has the device outlive this process, where that can be. From then on nothing may be begun that this process waits for
    /// and that does I/O on the device.
    pub async fn begin(&self) {
        self.ask(true).await;
    }

    /// Has the device end with this process again.
    pub async fn end(&self) {
        self.ask(false).await;
    }

    async fn ask(&self, hold: bool) {
        let (asker, answer) = oneshot::channel();
        // A keeper that has ended has nothing to be held.
        if self.0.send(Ask::Hold(hold, asker)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

impl Keeper {
    /// Opens `info` and shows it as a device. `control` must be driven by another thread than the caller's, and the
    /// caller must hold the volume's lock and have settled what was there ([`super::Attachments::settle`]): a device that
    /// waits is taken over.
    ///
    /// # Errors
    /// When the volume cannot be opened or there can be no device. Nothing is left of it then.
    pub async fn start(records: Records, control: Control, info: VolumeInfo, wish: Wish) -> Result<Self, NodeError> {
        let (ready, is_ready) = oneshot::channel();
        let (asks, asked) = mpsc::channel(KEEPER_QUESTIONS_MAX);
        let (losing, lost) = watch::channel(None);
        let thread = thread::Builder::new().name("torus-volume".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                // Nobody waits any more if the caller has ended.
                Err(error) => return drop(ready.send(Err(NodeError::Thread(error)))),
            };
            LocalSet::new().block_on(&runtime, async {
                match Kept::begin(records, control, &info, wish).await {
                    Ok(kept) => {
                        let _ = ready.send(Ok(kept.record.clone()));
                        kept.serve(asked, losing).await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
            // What runs on is a wait for somebody else's file descriptor at most.
            runtime.shutdown_background();
        });
        let thread = thread.map_err(NodeError::Thread)?;
        let record = is_ready.await.unwrap_or(Err(NodeError::Ended))?;
        Ok(Self { record, asks, lost, thread: Some(thread) })
    }

    /// What was attached, as it was then.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Figures, while it is served.
    pub async fn stats(&self) -> Option<OwnerStats> {
        let (asker, answer) = oneshot::channel();
        self.asks.send(Ask::Stats(asker)).await.ok()?;
        answer.await.ok()?
    }

    /// Waits until the volume is served no more without having been detached; why. Cancel safe.
    pub async fn lost(&mut self) -> String {
        match self.lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => NodeError::Ended.to_string(),
        }
    }

    /// The way to have its device outlive this process, and to end that.
    #[must_use]
    pub fn holding(&self) -> Holding {
        Holding(self.asks.clone())
    }

    /// Leaves the device as it is to the next process, if a holder has it: its requests wait for that one. Whether it is left. The
    /// volume is let go, so that the next process need not wait for anything.
    pub async fn leave(&mut self) -> bool {
        let (asker, answer) = oneshot::channel();
        if self.asks.send(Ask::Leave(asker)).await.is_err() || !answer.await.unwrap_or(false) {
            return false;
        }
        if let Some(thread) = self.thread.take() {
            let _ = spawn_blocking(move || thread.join()).await;
        }
        true
    }

    /// Takes the device away, writes a checkpoint, lets the volume go, forgets the record.
    ///
    /// # Errors
    /// When somebody uses the device: everything stays as it was. When the volume was taken over meanwhile.
    pub async fn close(&mut self) -> Result<(), NodeError> {
        let (asker, answer) = oneshot::channel();
        if self.asks.send(Ask::Close(asker)).await.is_err() {
            return Err(NodeError::Ended);
        }
        answer.await.unwrap_or(Err(NodeError::Ended))?;
        if let Some(thread) = self.thread.take() {
            // It has answered: it ends in this moment. What it panicked with was printed.
            let _ = spawn_blocking(move || thread.join()).await;
        }
        Ok(())
    }
}

struct Kept {
    records: Records,
    record: Record,
    volume: OpenVolume,
    host: HostDevice,
    _alive: Locked,
}

impl Kept {
    async fn begin(records: Records, control: Control, info: &VolumeInfo, wish: Wish) -> Result<Self, NodeError> {
        let name = info.meta.doc.name.clone();
        let wrap = |source| NodeError::Device { volume: name.clone(), source };
        let alive = alive(&records, info).await?;
        let orphan = records.load(info.id)?;
        let (kind, _) = host::choose(orphan.as_ref().map(|record| record.kind).or(wish.kind)).map_err(wrap)?;
        let mut owner = wish.owner;
        owner.holder.serves = format!("a block device ({kind})");
        let volume = match OpenVolume::open(control, info, owner).await {
            Ok(volume) => volume,
            Err(error) => {
                give_up(&records, info, orphan.as_ref()).await;
                return Err(error.into());
            }
        };
        let device = volume.device();
        let size_bytes = device.info().size_bytes;
        let mut record = Record {
            read_only: wish.read_only,
            epoch: epoch(&volume),
            // What grew while nobody served it has still to grow here.
            size_bytes: orphan.as_ref().filter(|_| kind == Kind::Fuse).map_or(size_bytes, |record| record.size_bytes),
            holder: orphan.as_ref().and_then(|record| record.holder.clone()).or(wish.holder.clone()),
            keeper: KeeperProcess::here(wish.role),
            mount: orphan.as_ref().and_then(|record| record.mount.clone()),
            targets: orphan.as_ref().map(|record| record.targets.clone()).unwrap_or_default(),
            ..Record::new(info.id, name.clone(), kind, wish.role)
        };
        let shown: Rc<Shown> = Rc::new(Unaligned::new(ReadOnly::when(wish.read_only, device)));
        let showing = async {
            // Known before it is there, so that a crash in between leaves nothing that nobody knows of.
            save(&records, orphan.as_ref().unwrap_or(&record)).await?;
            let place = records.place(info.id);
            let plan = Plan {
                kind,
                volume: info.id,
                place: &place,
                orphan: orphan.as_ref(),
                dead_time: wish.dead_time,
                holder: wish.holder.as_deref(),
            };
            HostDevice::show(shown, plan).await.map_err(wrap)
        };
        let mut host = match showing.await {
            Ok(host) => host,
            Err(error) => {
                // Why there is no device matters more than how the volume was let go.
                let _ = volume.close().await;
                give_up(&records, info, orphan.as_ref()).await;
                return Err(error);
            }
        };
        record.device = Some(host.path().to_owned());
        record.sequence = host.sequence();
        if let Err(error) = save(&records, &record).await {
            let _ = host.withdraw(&name).await;
            let _ = volume.close().await;
            give_up(&records, info, orphan.as_ref()).await;
            return Err(error.into());
        }
        tracing::info!(volume = name, device = %host.path().display(), "attached");
        Ok(Self { records, record, volume, host, _alive: alive })
    }

    async fn serve(mut self, mut asked: mpsc::Receiver<Ask>, losing: watch::Sender<Option<String>>) {
        let device = self.volume.device();
        let mut size = self.record.size_bytes;
        loop {
            tokio::select! {
                grown = device.resized(size) => {
                    size = grown;
                    self.grow(size).await;
                }
                ask = asked.recv() => match ask {
                    Some(Ask::Stats(asker)) => drop(asker.send(self.volume.stats().await)),
                    Some(Ask::Hold(hold, asker)) => {
                        match hold {
                            true => self.host.hold().await,
                            false => drop(self.host.release().await),
                        }
                        let _ = asker.send(());
                    }
                    Some(Ask::Leave(asker)) if self.host.leave() => {
                        let left = self.let_go().await;
                        let _ = asker.send(left);
                        return;
                    }
                    Some(Ask::Leave(asker)) => {
                        let _ = asker.send(false);
                    }
                    Some(Ask::Close(asker)) => match self.host.withdraw(&self.record.name).await {
                        // Who asked may have given up.
                        Err(error) => drop(asker.send(Err(error))),
                        Ok(()) => return drop(asker.send(self.end().await)),
                    },
                    None => return,
                },
                lost = self.volume.lost() => return self.lose(told(&lost), &losing).await,
                lost = self.host.lost() => return self.lose(told(&lost), &losing).await,
            }
        }
    }

    /// Serves it no more, because of `why`.
    async fn lose(&mut self, why: String, losing: &watch::Sender<Option<String>>) {
        self.host.fail().await;
        let told = why.clone();
        self.note(|record| record.lost = Some(told)).await;
        // Nobody listens any more if the keeper's handle is gone.
        let _ = losing.send(Some(why));
    }

    /// Lets the volume go whose device is left to the next process.
    async fn let_go(self) -> bool {
        let Self { volume, record, .. } = self;
        if let Err(error) = volume.close().await {
            tracing::warn!(volume = record.name, "not let go in order: {}", told(&error));
        }
        true
    }

    async fn end(self) -> Result<(), NodeError> {
        let Self { records, record, volume, .. } = self;
        let closed = volume.close().await;
        let (volume, removed) = (record.volume, spawn_blocking(move || records.remove(record.volume)).await);
        match removed {
            Ok(removed) => removed?,
            Err(error) => tracing::error!(%volume, "cannot forget what was attached: {error}"),
        }
        Ok(closed?)
    }

    /// Passes the volume's new size on, to the device and to a filesystem that was mounted when it was attached.
    async fn grow(&mut self, size_bytes: u64) {
        let was_held = self.host.release().await;
        self.grow_released(size_bytes).await;
        if was_held {
            self.host.hold().await;
        }
    }

    async fn grow_released(&mut self, size_bytes: u64) {
        let name = self.record.name.clone();
        if let Err(error) = self.host.grow(size_bytes).await {
            return tracing::error!(volume = name, "the device does not grow with its volume: {}", told(&error));
        }
        self.note(move |record| record.size_bytes = size_bytes).await;
        tracing::info!(volume = name, size_bytes, "the device has grown");
        if let Some(mount) = self.record.mount.clone()
            && let Err(error) = filesystem::grow(self.host.path(), mount.filesystem, &mount.directory).await
        {
            let error = told(&error);
            tracing::error!(
                volume = name,
                "the filesystem does not grow with its device until it is mounted next: {error}"
            );
        }
    }

    /// Changes the record.
    async fn note(&mut self, change: impl FnOnce(&mut Record) + Send + 'static) {
        let (records, volume) = (self.records.clone(), self.record.volume);
        match spawn_blocking(move || records.change(volume, change)).await.expect("it panics nowhere") {
            Ok(Some(now)) => self.record = now,
            Ok(None) => tracing::error!(volume = self.record.name, "the record of this volume is gone"),
            Err(error) => tracing::error!(volume = self.record.name, "{}", told(&error)),
        }
    }
}

async fn alive(records: &Records, info: &VolumeInfo) -> Result<Locked, NodeError> {
    for _ in 0..LOCK_TRIES {
        match records.take_over(info.id)? {
            Some(alive) => return Ok(alive),
            None => sleep(LOCK_PAUSE).await,
        }
    }
    Err(NodeError::Served(info.meta.doc.name.clone()))
}

async fn save(records: &Records, record: &Record) -> Result<(), RecordError> {
    let (records, record) = (records.clone(), record.clone());
    spawn_blocking(move || records.save(&record)).await.expect("saving a record panics nowhere")
}

/// After a failure that is told: nothing is left but a device that waits, as it did before.
async fn give_up(records: &Records, info: &VolumeInfo, orphan: Option<&Record>) {
    if orphan.is_some() {
        return;
    }
    let (records, volume) = (records.clone(), info.id);
    let _ = spawn_blocking(move || records.remove(volume)).await;
}

fn epoch(volume: &OpenVolume) -> u64 {
    match volume.state() {
        VolumeState::Serving(epoch) | VolumeState::Fenced(epoch) => epoch.0,
        _ => 0,
    }
}
