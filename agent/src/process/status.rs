//! How an agent is: what `/healthz`, `/readyz`, `/metrics`, gRPC and the heartbeat all ask.

use super::http::Watched;
use super::metrics;
use crate::owner::Owned;
use crate::storage::{Command, Report};
use prometheus_client::metrics::histogram::Histogram;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use torus_core::ids::{AgentId, ClusterId, Epoch, Incarnation, VolumeId};
use torus_core::meta::docs::AliveDoc;

/// A data plane that has not answered by then is stuck.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Who an agent is, in this run.
#[derive(Clone, Debug)]
pub struct Who {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub agent: AgentId,
    /// Which run.
    pub incarnation: Incarnation,
    /// What people call it.
    pub name: String,
    /// Its failure domain.
    pub domain: String,
    /// Where others reach its data port.
    pub data: String,
    /// Where others reach its control port.
    pub control: String,
    /// Where others reach its HTTP port, if it has one.
    pub http: Option<String>,
}

/// Asked from anywhere on the control side.
#[derive(Debug)]
pub struct Status {
    /// Who this is.
    pub who: Who,
    /// When this run began.
    pub since: Instant,
    /// How long commits take.
    pub commit_seconds: Histogram,
    /// Volumes that this process owns.
    pub owned: Owned,
    commands: mpsc::Sender<Command>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when, and why, the metadata store cannot be used.
    metadata_lost: Option<(Instant, String)>,
    stopping: bool,
    /// What a person should know, although it stops nothing.
    note: Option<String>,
}

/// Whether work should come here.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Why not; empty when it should.
    pub reasons: Vec<String>,
    /// What a person should know all the same.
    pub notes: Vec<String>,
}

impl Status {
    /// Nothing known yet.
    #[must_use]
    pub fn new(who: Who, commands: mpsc::Sender<Command>, commit_seconds: Histogram) -> Status {
        let (owned, state) = Default::default();
        Status { who, since: Instant::now(), commit_seconds, owned, commands, state }
    }

    /// What the data plane says; `None` when it does not answer in time.
    pub async fn report(&self) -> Option<Report> {
        self.ask(Command::Report).await
    }

    /// The fences that the data plane keeps to; `None` when it does not answer in time.
    pub async fn fences(&self) -> Option<Vec<(VolumeId, Epoch)>> {
        self.ask(Command::Fences).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (asker, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(question(asker)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWER_TIME, asked).await.ok().flatten()
    }

    /// The metadata store answered, or why not.
    pub fn metadata(&self, result: Result<(), String>) {
        let mut state = self.state();
        match (result, &state.metadata_lost) {
            (Ok(()), Some((since, _))) => {
                tracing::info!("the metadata store answers again, after {} s", since.elapsed().as_secs());
                state.metadata_lost = None;
            }
            (Ok(()), None) => {}
            (Err(why), None) => {
                tracing::warn!(
                    "heartbeat failed: {why}. Data goes on; this agent counts as down when its lease runs out"
                );
                state.metadata_lost = Some((Instant::now(), why));
            }
            (Err(why), Some((since, _))) => state.metadata_lost = Some((*since, why)),
        }
    }

    /// For how long the metadata store has not answered.
    #[must_use]
    pub fn metadata_lost(&self) -> Option<Duration> {
        self.state().metadata_lost.as_ref().map(|(since, _)| since.elapsed())
    }

    /// Stopping has begun.
    pub fn stopping(&self) {
        self.state().stopping = true;
    }

    /// Sets or takes back what a person should know.
    pub fn note(&self, note: Option<String>) {
        self.state().note = note;
    }

    /// Whether work should come here.
    pub async fn readiness(&self) -> (Readiness, Option<Report>) {
        let report = self.report().await;
        let mut ready = Readiness::default();
        let state = self.state();
        if state.stopping {
            ready.reasons.push("the agent stops".into());
        }
        match &report {
            None => ready.reasons.push(format!("the data plane did not answer within {} s", ANSWER_TIME.as_secs())),
            Some(report) if !report.started => ready.reasons.push("the start is not yet recorded on the disks".into()),
            Some(report) => {
                let failed: Vec<_> = report.disks.iter().filter_map(|d| Some((d, d.failure.as_ref()?))).collect();
                let all = failed.len() == report.disks.len();
                let list = if all { &mut ready.reasons } else { &mut ready.notes };
                list.extend(failed.iter().map(|(disk, why)| format!("disk {} has failed: {why}", disk.path.display())));
            }
        }
        if let Some((since, why)) = &state.metadata_lost {
            ready.reasons.push(format!("the metadata store is lost since {} s: {why}", since.elapsed().as_secs()));
        }
        ready.notes.extend(state.note.clone());
        drop(state);
        (ready, report)
    }

    /// What the agent says of itself in the metadata store; `None` when the data plane does not answer.
    pub async fn alive(&self) -> Option<AliveDoc> {
        let report = self.report().await?;
        Some(AliveDoc {
            incarnation: self.who.incarnation,
            data: self.who.data.clone(),
            control: self.who.control.clone(),
            http: self.who.http.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            space: report.space,
            failed_disks: report.disks.iter().filter(|disk| disk.failure.is_some()).map(|disk| disk.id).collect(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A few plain values: whole whatever a panicking thread was doing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched for Status {
    fn about(&self) -> (String, String) {
        let Who { name, agent, cluster, incarnation, .. } = &self.who;
        let (version, up) = (env!("CARGO_PKG_VERSION"), self.since.elapsed().as_secs());
        let text = format!("agent {agent} of cluster {cluster}, run {incarnation}, version {version}, up {up} s");
        (format!("torus-agent {name}"), text)
    }

    async fn metrics(&self) -> Result<String, std::fmt::Error> {
        // Who does not answer is waited for once, and not one after the other.
        let (report, volumes) = tokio::join!(self.report(), self.owned.metrics());
        metrics::text(self, report.as_ref(), volumes)
    }

    async fn health(&self) -> Result<(), String> {
        self.report().await.map(drop).ok_or_else(|| "the data plane does not answer".into())
    }

    async fn readiness(&self) -> Readiness {
        Status::readiness(self).await.0
    }
}
