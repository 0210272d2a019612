//! The demo's cluster: agents with real files, all in this process, and owners on threads of their own.

use crate::failure::{Failure, Kind};
use crate::serving::control_runtime;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use torus_agent::metadata::{Embedded, NewVolume, VolumeInfo, create_volume, find_volume, init_cluster, load_ring};
use torus_agent::owner::{Control, OwnerConfig, OwnerStats};
use torus_agent::process::{Agent, Config};
use torus_agent::serving::{Door, Serving};
use torus_core::ids::{BLOCK_BYTES, Blocks, Epoch, Lba};
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::AckMode;
use torus_store::Fill;

/// Copies of the demo's volume.
pub const REPLICAS: u8 = 2;
/// Blocks of an extent: smaller than usual, so that a small volume has many.
const EXTENT_BLOCKS: Blocks = 4096;
/// Bytes of each agent's disk.
const DISK_BYTES: u64 = 2 << 30;
/// How long an agent may be away before its copies are made anew: short, as nobody wants to watch longer.
const GRACE: Duration = Duration::from_millis(500);

/// The cluster.
pub struct World {
    dir: PathBuf,
    store: Arc<dyn MetadataStore>,
    agents: Vec<Option<Agent>>,
    buffered: bool,
    // Last: what is above lives on it.
    control: Runtime,
}

impl World {
    /// Makes a cluster of so many agents, with everything it keeps below `dir`.
    pub fn start(dir: &Path, agents: usize) -> Result<Self, Failure> {
        let control = control_runtime()?;
        let store = Embedded::open(&dir.join("metadata.redb")).map_err(|e| Failure::of(Kind::Failed, &e))?;
        let store: Arc<dyn MetadataStore> = Arc::new(store);
        control.block_on(init_cluster(store.as_ref(), EXTENT_BLOCKS, REPLICAS))?;
        let buffered = !has_direct_io(dir);
        let mut world = Self { dir: dir.into(), store, agents: Vec::new(), buffered, control };
        for index in 0..agents {
            world.agents.push(None);
            world.start_agent(index)?;
        }
        Ok(world)
    }

    /// Starts an agent on its disk.
    pub fn start_agent(&mut self, index: usize) -> Result<(), Failure> {
        let name = format!("agent-{}", index + 1);
        let config = Config {
            data_dir: Some(self.dir.join(&name)),
            domain: name.clone(),
            size_bytes: DISK_BYTES,
            fill: Fill::Reserve,
            buffered: self.buffered,
            port: 0,
            control_address: Some("127.0.0.1:0".into()),
            http_address: None,
            auto_join: true,
            ..Config::new(Some(name))
        };
        let started = self.control.block_on(Agent::start(config, Arc::clone(&self.store)));
        self.agents[index] = Some(started.map_err(|error| Failure::of(Kind::Failed, &error))?);
        Ok(())
    }

    /// Ends an agent as a crash would.
    pub fn kill_agent(&mut self, index: usize) {
        if let Some(agent) = self.agents[index].take() {
            self.control.block_on(agent.kill());
        }
    }

    /// Makes a volume.
    pub fn volume(&self, name: &str, bytes: u64) -> Result<VolumeInfo, Failure> {
        let size = Lba(bytes / BLOCK_BYTES);
        let new =
            NewVolume { name: name.into(), size, replicas: REPLICAS, min_replicas: 1, ack_mode: AckMode::Durable };
        self.control.block_on(async {
            create_volume(self.store.as_ref(), new).await?;
            Ok(find_volume(self.store.as_ref(), name).await?)
        })
    }

    /// The ring's version and kind.
    pub fn ring(&self) -> Result<String, Failure> {
        let ring = self.control.block_on(load_ring(self.store.as_ref()))?;
        Ok(ring.map_or_else(String::new, |ring| format!("ring v{}, {}", ring.doc.version, ring.doc.now.kind)))
    }

    /// The metadata store, as owners use it.
    pub fn side(&self) -> Control {
        Control::new(self.control.handle().clone(), Arc::clone(&self.store))
    }

    /// Opens `volume` and serves it at `socket`, on a thread of its own.
    pub fn own(&self, volume: &VolumeInfo, socket: &Path, fence: bool) -> Result<Owner, Failure> {
        let config = OwnerConfig { force: fence, grace: GRACE, ..OwnerConfig::new() };
        Owner::start(self.side(), volume.clone(), config, Door::Socket(socket.into()))
    }
}

/// Whether files in `dir` can be opened for direct I/O.
fn has_direct_io(dir: &Path) -> bool {
    let path = dir.join("direct-io");
    let opened = File::options().write(true).create(true).custom_flags(nix::libc::O_DIRECT).open(&path);
    // It may not have been made.
    let _ = std::fs::remove_file(&path);
    opened.is_ok()
}

/// An owner on its thread. Dropped, it ends as a crash would.
pub struct Owner {
    /// In which epoch it serves.
    pub epoch: Epoch,
    questions: mpsc::Sender<oneshot::Sender<OwnerStats>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Owner {
    fn start(control: Control, info: VolumeInfo, config: OwnerConfig, door: Door) -> Result<Self, Failure> {
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (questions, asked) = mpsc::channel(1);
        let thread = thread::Builder::new().name("torus-owner".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::because("cannot start", &error))?;
            LocalSet::new().block_on(&runtime, async move {
                let serving = Serving::open(control, &info, config, &door).await?;
                // Nobody waits any more if the demo has ended.
                let _ = ready.send(serving.epoch());
                serve(serving, asked, stopped).await
            })
        });
        let thread = thread.map_err(|error| Failure::because("cannot start an owner", &error))?;
        match is_ready.blocking_recv() {
            Ok(epoch) => Ok(Self { epoch, questions, stop: Some(stop), thread: Some(thread) }),
            Err(_) => Err(joined(thread).err().unwrap_or_else(|| Failure::failed("the owner ended at once"))),
        }
    }

    /// Figures, while it serves.
    pub async fn stats(&self) -> Option<OwnerStats> {
        let (asker, answer) = oneshot::channel();
        self.questions.send(asker).await.ok()?;
        answer.await.ok()
    }

    /// Lets the volume go in order.
    pub fn close(mut self) -> Result<(), Failure> {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself; joining tells why.
            let _ = stop.send(());
        }
        self.thread.take().map_or(Ok(()), joined)
    }

    /// Waits for the end of an owner that has lost its volume; what it said.
    pub fn wait_lost(mut self) -> Option<Failure> {
        self.thread.take().and_then(|thread| joined(thread).err())
    }
}

fn joined(thread: JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    thread.join().unwrap_or_else(|_| Err(Failure::failed("an owner's thread panicked")))
}

async fn serve(
    mut serving: Serving,
    mut asked: mpsc::Receiver<oneshot::Sender<OwnerStats>>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            asker = asked.recv() => {
                let Some(asker) = asker else {
                    // The handle is gone: `stop` came with it.
                    return match stopped.await {
                        Ok(()) => Ok(serving.close().await?),
                        Err(_) => Ok(()),
                    };
                };
                if let Some(stats) = serving.stats().await {
                    // Whoever asked may have given up.
                    let _ = asker.send(stats);
                }
            }
            told = &mut stopped => return match told {
                Ok(()) => Ok(serving.close().await?),
                Err(_) => Ok(()),
            },
            lost = serving.lost() => {
                serving.leave().await;
                return Err(lost.into());
            }
        }
    }
}
