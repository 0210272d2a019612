//! One agent: what the program `torus-agent` runs, and what others run inside themselves.
//!
//! ```text
//!   control side (the caller's runtime)           data plane (a thread of its own)
//!   heartbeat ─┐                                   ┌─ TDP connections
//!   gRPC ──────┼── Status ──── Command ──▶ Plane ──┼─ Member
//!   HTTP ──────┘        (asked, with a limit)      └─ disks
//! ```
//!
//! [`Agent::start`] needs a runtime that goes on running: the control side lives on it. The data plane has its own thread,
//! so that heavy I/O delays no heartbeat, and no slow scrape delays I/O.
//!
//! 1. Nothing is served before the cluster, the disks and the registration are known to be right.
//! 2. Losing the metadata store afterwards stops no data; `/readyz` says so.
//! 3. An agent that finds another process in its place stops at once.

pub mod args;
mod backup;
pub mod config;
mod control;
mod disks;
pub mod exports;
mod failure;
pub mod file;
pub mod flexvolume;
mod heartbeat;
pub mod http;
mod join;
pub mod logging;
pub(crate) mod metrics;
pub mod node;
mod status;

pub use config::{Config, ConfigError, Logging, NodeConfig};
pub use disks::DisksError;
pub use failure::{RunError, StartError, exit_code, told};
pub use heartbeat::LEASE_TIME;
pub use status::{Readiness, Status, Who};

use crate::metadata::{AgentError, ClusterError, Heartbeat, init_cluster, load_cluster, register_agent};
use crate::owner::Owned;
use crate::storage::{Command, Plane, PlaneEnd};
use crate::tdp::{Aligned, LocalDoor, Server};
use disks::Disks;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use torus_core::ids::{AgentId, Incarnation};
use torus_core::limits::{AGENT_BUFFERS_IDLE_BYTES, AGENT_COMMANDS_MAX, EXTENT_BLOCKS_DEFAULT, REPLICAS_DEFAULT};
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::{AgentDoc, AliveDoc, ClusterDoc};
use torus_core::tdp::Identity;
use torus_store::BufferPool;

/// An agent that runs.
pub struct Agent {
    status: Arc<Status>,
    commands: mpsc::Sender<Command>,
    /// Ends the control side's servers.
    stop: CancellationToken,
    heart: JoinHandle<()>,
    servers: Vec<JoinHandle<()>>,
    plane: Option<oneshot::Receiver<PlaneEnd>>,
    door: LocalDoor,
    ended: watch::Receiver<Option<RunError>>,
}

/// The ports, taken before anything else is touched.
struct Ports {
    data: TcpListener,
    control: TcpListener,
    http: Option<TcpListener>,
}

impl Agent {
    /// Starts an agent. The runtime that this is called on must go on running until it has stopped.
    ///
    /// # Errors
    /// A sentence for a person; nothing is left running. See [`exit_code`].
    pub async fn start(config: Config, store: Arc<dyn MetadataStore>) -> Result<Agent, StartError> {
        config.check()?;
        let ports = Ports::bind(&config).await?;
        let cluster = cluster(&config, &*store).await?;
        let pool = BufferPool::new(AGENT_BUFFERS_IDLE_BYTES);
        let found = prepare_disks(&config, &cluster, &pool).await?;
        let run = found.disks.iter().map(|(_, core)| core.incarnation()).max().unwrap_or(Incarnation(1));
        let registered = register(&config, &*store, &found).await?;
        if config.auto_join {
            join::join(&cluster, &*store, found.agent, &registered).await?;
        }
        let missing = registered.disks.iter().filter(|id| found.disks.iter().all(|(_, core)| core.ids().disk != **id));
        let missing = missing.map(|id| id.to_string()).collect::<Vec<_>>();
        if !missing.is_empty() {
            tracing::error!(
                "disks of this agent are not there: {}. What they held is answered as unknown",
                missing.join(", ")
            );
        }
        let who = ports.who(&config, &cluster, found.agent, run, registered.name)?;
        let alive = AliveDoc {
            incarnation: run,
            data: who.data.clone(),
            control: who.control.clone(),
            http: who.http.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            space: found.disks.iter().map(|(_, core)| core.free_space()).sum(),
            failed_disks: Vec::new(),
        };
        let heartbeat = Heartbeat::begin(&*store, found.agent, alive, LEASE_TIME).await?;
        let identity = Identity {
            cluster: cluster.id,
            agent: found.agent,
            incarnation: run,
            extent_blocks: cluster.extent_blocks,
        };
        Agent::run(ports, who, identity, found, missing.len(), pool, heartbeat, store).await
    }

    #[expect(clippy::too_many_arguments, reason = "what start has gathered, once")]
    async fn run(
        ports: Ports,
        who: Who,
        identity: Identity,
        found: Disks,
        missing: usize,
        pool: BufferPool,
        heartbeat: Heartbeat,
        store: Arc<dyn MetadataStore>,
    ) -> Result<Agent, StartError> {
        let (commands, received) = mpsc::channel(AGENT_COMMANDS_MAX);
        let commit_seconds = metrics::commit_seconds();
        let status = Arc::new(Status::new(who, commands.clone(), commit_seconds.clone()));
        let (ready, is_ready) = oneshot::channel();
        let (ended, plane) = oneshot::channel();
        let (started, is_started) = oneshot::channel();
        let (door, doorway) = LocalDoor::new(identity.agent);
        let data = ports.data.into_std().map_err(|e| StartError::System("hand over the data port", e))?;
        let thread = std::thread::Builder::new().name("torus-data".into()).spawn(move || {
            let make = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let _inside = runtime.enter();
                let server = Server::new(identity, Aligned(pool.clone()));
                let plane = Plane::new(found.disks, missing, server.clone(), pool, received, commit_seconds)?;
                let listener = TcpListener::from_std(data)?;
                drop(_inside);
                Ok((runtime, server, plane, listener))
            };
            match make() {
                Err(error) => drop(ready.send(Err(error))),
                Ok((runtime, server, plane, listener)) => {
                    let _ = ready.send(Ok(is_started));
                    let end = LocalSet::new().block_on(&runtime, async move {
                        server.listen(listener);
                        server.open(doorway);
                        // A task like those of the connections that wake it: the runtime's root future would be polled
                        // only after another look at the sockets.
                        spawn_local(plane.run(started)).await.expect("the plane neither panics nor is cancelled")
                    });
                    let _ = ended.send(end);
                }
            }
        });
        thread.map_err(|e| StartError::System("start the data plane's thread", e))?;
        let made = is_ready.await.unwrap_or_else(|_| Err(std::io::Error::other("it ended")));
        let is_started = made.map_err(|e| StartError::System("start the data plane", e))?;
        // An error here shows in what has just been started: the plane has ended, and says so.
        let _ = is_started.await;
        if let Err(error) = backup::check(&*store, &status).await {
            let _ = commands.send(Command::Kill).await;
            let _ = plane.await;
            if let Err(error) = heartbeat.end(&*store).await {
                tracing::warn!("{}; it runs out within {} s", told(&error), LEASE_TIME.as_secs());
            }
            return Err(error.into());
        }

        let stop = CancellationToken::new();
        let mut servers = vec![tokio::spawn(control::serve(ports.control, Arc::clone(&status), stop.clone()))];
        if let Some(listener) = ports.http {
            servers.push(tokio::spawn(http::serve(listener, Arc::clone(&status), stop.clone())));
        }
        let (fail, failed) = watch::channel(None);
        let beat = heartbeat::keep(heartbeat, store, Arc::clone(&status), stop.clone());
        let (killer, kept) = (commands.clone(), Arc::clone(&status));
        let heart = tokio::spawn(async move {
            if let Err(error) = beat.await {
                tracing::error!("{error}");
                kept.stopping();
                // Said before the plane ends, so that nobody takes its end for a defect.
                let _ = fail.send(Some(error));
                let _ = killer.send(Command::Kill).await;
            }
        });
        let Who { agent, name, data, incarnation, .. } = &status.who;
        tracing::info!(%agent, name, %incarnation, data, "agent is up");
        Ok(Agent { status, commands, stop, heart, servers, plane: Some(plane), door, ended: failed })
    }

    /// Who it is, and where.
    #[must_use]
    pub fn who(&self) -> &Who {
        &self.status.who
    }

    /// The way in for owners in this process.
    #[must_use]
    pub fn door(&self) -> LocalDoor {
        self.door.clone()
    }

    /// Where volumes are shown that this process owns.
    #[must_use]
    pub fn owned(&self) -> Owned {
        self.status.owned.clone()
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// Waits until it has ended without having been asked to. Cancel safe.
    pub async fn failed(&mut self) -> RunError {
        loop {
            if let Some(error) = self.ended.borrow_and_update().clone() {
                return error;
            }
            let Some(plane) = &mut self.plane else { std::future::pending().await };
            tokio::select! {
                changed = self.ended.changed() => if changed.is_err() {
                    // The heart has stopped in order.
                    std::future::pending::<()>().await;
                },
                _ = plane => {
                    self.plane = None;
                    if self.ended.borrow().is_none() {
                        return RunError::DataPlane;
                    }
                }
            }
        }
    }

    /// Stops in order: takes no new work, answers what is under way, takes back its sign of life.
    pub async fn stop(mut self) -> PlaneEnd {
        self.status.stopping();
        let _ = self.commands.send(Command::Stop).await;
        let end = match self.plane.take() {
            Some(plane) => plane.await.unwrap_or(PlaneEnd::Killed),
            None => PlaneEnd::Killed,
        };
        self.stop.cancel();
        let _ = (&mut self.heart).await;
        for server in self.servers.drain(..) {
            let _ = server.await;
        }
        tracing::info!("agent stopped: {end:?}");
        end
    }

    /// Ends as a crash would: nothing is answered, nothing is taken back. For tests and demonstrations.
    pub async fn kill(mut self) {
        self.heart.abort();
        self.servers.iter().for_each(JoinHandle::abort);
        let _ = self.commands.send(Command::Kill).await;
        if let Some(plane) = self.plane.take() {
            let _ = plane.await;
        }
    }
}

impl Ports {
    async fn bind(config: &Config) -> Result<Ports, StartError> {
        let (host, port) = config.control_address()?;
        let http = match config.http_address()? {
            Some((host, port)) => Some(listen(&host, port, "HTTP", "--http-address").await?),
            None => None,
        };
        Ok(Ports {
            data: listen(&config.host, config.port, "data", "--port").await?,
            control: listen(&host, port, "control", "--control-address").await?,
            http,
        })
    }

    fn who(
        &self,
        config: &Config,
        cluster: &ClusterDoc,
        agent: AgentId,
        incarnation: Incarnation,
        name: String,
    ) -> Result<Who, StartError> {
        let reach = |listener: &TcpListener, host: &str, is_data| {
            let address = listener.local_addr().map_err(|e| StartError::System("ask which port it has", e))?;
            Ok::<_, StartError>(config.reachable(host, address.port(), is_data))
        };
        let http = match (&self.http, config.http_address()?) {
            (Some(listener), Some((host, _))) => Some(reach(listener, &host, false)?),
            _ => None,
        };
        Ok(Who {
            cluster: cluster.id,
            agent,
            incarnation,
            name,
            domain: config.domain.clone(),
            data: reach(&self.data, &config.host, true)?,
            control: reach(&self.control, &config.control_address()?.0, false)?,
            http,
        })
    }
}

async fn listen(host: &str, port: u16, what: &'static str, flag: &'static str) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { address: format!("{host}:{port}"), what, flag, source };
    TcpListener::bind((host.trim_matches(['[', ']']), port)).await.map_err(failed)
}

/// The cluster in the store, made if that was asked for.
async fn cluster(config: &Config, store: &dyn MetadataStore) -> Result<ClusterDoc, StartError> {
    match load_cluster(store).await {
        Err(ClusterError::None { .. }) if config.debug_init => {}
        other => return Ok(other?),
    }
    match init_cluster(store, EXTENT_BLOCKS_DEFAULT, REPLICAS_DEFAULT).await {
        Ok(cluster) => tracing::info!(cluster = %cluster.id, "made the cluster"),
        // Another agent was faster.
        Err(ClusterError::Exists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(load_cluster(store).await?)
}

async fn prepare_disks(config: &Config, cluster: &ClusterDoc, pool: &BufferPool) -> Result<Disks, StartError> {
    let (config, cluster, pool) = (config.clone(), cluster.clone(), pool.clone());
    let prepared = tokio::task::spawn_blocking(move || disks::prepare(&config, &cluster, &pool)).await;
    match prepared {
        Ok(found) => Ok(found?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Makes the agent known. Where nobody gave it a name, the host's may be that of an agent whose disks are gone: then it
/// gets one of its own.
async fn register(config: &Config, store: &dyn MetadataStore, found: &Disks) -> Result<AgentDoc, StartError> {
    let slots = found.disks.iter().map(|(_, core)| u64::from(core.geometry().slots())).sum();
    let mut doc = AgentDoc {
        name: config.name(),
        domain: config.domain.clone(),
        weight: slots,
        disks: found.disks.iter().map(|(_, core)| core.ids().disk).collect(),
    };
    match register_agent(store, found.agent, &doc).await {
        Err(AgentError::NameTaken { other, .. }) if config.name.is_none() => {
            doc.name = format!("{}-{:.8}", doc.name, found.agent.to_string());
            tracing::warn!("the host's name is that of agent {other} already: this agent is called {}", doc.name);
            Ok(register_agent(store, found.agent, &doc).await?.doc)
        }
        registered => Ok(registered?.doc),
    }
}
