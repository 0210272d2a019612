//! The election over a Lease object: reads and writes what [`Election`] says.

use crate::apply::is_code;
use crate::http::Health;
use crate::pass::Settings;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use torus_plan::lease::{Election, PERIOD, Record, TERM, Write};

/// The Lease's name.
const NAME: &str = "torus-operator";
/// A call that takes longer has not renewed anything in time.
const CALL_TIME: Duration = Duration::from_secs(5);

/// This operator's part in the election.
pub struct Leader {
    election: Arc<Mutex<Election>>,
    began: Instant,
    task: JoinHandle<()>,
    api: Api<Lease>,
    identity: String,
}

impl Leader {
    /// Begins to take part.
    pub fn begin(client: Client, settings: &Settings, health: Arc<Health>) -> Leader {
        let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
        let election = Arc::new(Mutex::new(Election::new(settings.identity.clone())));
        let began = Instant::now();
        let task = tokio::spawn({
            let (api, election, identity) = (api.clone(), election.clone(), settings.identity.clone());
            async move {
                loop {
                    if let Err(error) =
                        timeout(CALL_TIME, round(&api, &election, &identity, began)).await.unwrap_or(Ok(()))
                    {
                        tracing::warn!("cannot hold the lease {NAME}: {error}");
                    }
                    health.leads(lock(&election).leads(began.elapsed()));
                    sleep(PERIOD).await;
                }
            }
        });
        Leader { election, began, task, api, identity: settings.identity.clone() }
    }

    /// Whether this one leads now.
    pub fn leads(&self) -> bool {
        lock(&self.election).leads(self.began.elapsed())
    }

    /// Stops taking part, and lets another lead at once.
    pub async fn give_back(self) {
        self.task.abort();
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            if let Err(error) = self.api.replace(NAME, &PostParams::default(), &lease).await {
                tracing::warn!("cannot give the lease back, so another leads only when it ran out: {error}");
            }
        }
    }
}

fn lock(election: &Mutex<Election>) -> std::sync::MutexGuard<'_, Election> {
    // A few plain values: whole whatever a panicking thread was doing.
    election.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn round(
    api: &Api<Lease>,
    election: &Mutex<Election>,
    identity: &str,
    began: Instant,
) -> Result<(), kube::Error> {
    let found = api.get_opt(NAME).await?;
    let begun = began.elapsed();
    let record = found.as_ref().map(record);
    let write = lock(election).step(begun, record.as_ref());
    let now = MicroTime(Timestamp::now());
    let spec = |transitions: i32, acquired: Option<MicroTime>| LeaseSpec {
        holder_identity: Some(identity.into()),
        lease_duration_seconds: i32::try_from(TERM.as_secs()).ok(),
        acquire_time: acquired,
        renew_time: Some(now.clone()),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let written = match write {
        Write::Nothing => return Ok(()),
        Write::Create => {
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec(0, Some(now.clone()))) };
            api.create(&PostParams::default(), &lease).await
        }
        Write::Hold { version, transitions, is_new } => {
            let mut lease = found.unwrap_or_default();
            lease.metadata.resource_version = Some(version);
            let before = lease.spec.as_ref().and_then(|spec| spec.acquire_time.clone());
            lease.spec = Some(spec(transitions, if is_new { Some(now.clone()) } else { before }));
            api.replace(NAME, &PostParams::default(), &lease).await
        }
    };
    match written {
        Ok(_) => {
            lock(election).written(begun);
            Ok(())
        }
        // Somebody else was faster.
        Err(error) if is_code(&error, 409) => Ok(()),
        Err(error) => Err(error),
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
