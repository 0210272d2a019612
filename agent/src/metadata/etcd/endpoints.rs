//! Which etcd member is asked, and for how long.
//!
//! One client per member, and one current member: the first that works stays in use until it fails. (The client's own
//! balancing spreads requests over all members, the dead ones included, and cannot say which of them failed.)
//!
//! Invariants:
//! 1. Every call ends within the timeout.
//! 2. A request that must not run twice ([`Repeat::Never`]) is sent again only after an attempt that positively began nothing.
//! 3. Leases have connections of their own: requests never queue before a keep-alive.
//! 4. All answers come from one etcd cluster, the one that answered first.

use super::failure::{Failure, classify};
use etcd_client::{Client, ConnectOptions, ResponseHeader};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use torus_core::meta::{BoxFuture, MetaError};

/// How long one attempt may take when another one may follow.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The pause after all members were asked in vain.
const PAUSE: Duration = Duration::from_millis(100);

/// What a connection is for.
#[derive(Clone, Copy)]
pub(super) enum Lane {
    Data,
    Lease,
}

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Freely,
    Never,
}

pub(super) type Call<T> = BoxFuture<'static, Result<T, etcd_client::Error>>;

pub(super) struct Endpoints {
    urls: Vec<String>,
    options: ConnectOptions,
    timeout: Duration,
    lanes: [Members; 2],
    /// The etcd cluster that answered first; 0 before that.
    cluster: AtomicU64,
}

struct Members {
    current: AtomicUsize,
    clients: Vec<Mutex<Slot>>,
}

/// A member's client. The generation tells a failed client from the one that has replaced it.
#[derive(Default)]
struct Slot {
    generation: u64,
    client: Option<Client>,
}

/// Why the last attempt failed, and at which endpoint.
pub(super) struct Unanswered {
    pub endpoint: String,
    pub failure: Failure,
}

impl Unanswered {
    pub fn into_error(self) -> MetaError {
        let at = |text| format!("etcd at {}: {text}", self.endpoint);
        match self.failure {
            Failure::Unreachable(text)
            | Failure::NotNow(text)
            | Failure::Unknown(text)
            | Failure::OtherCluster(text) => MetaError::Unknown(at(text)),
            Failure::Foreign(text) => MetaError::Unknown(at(format!("what answers is not an etcd ({text})"))),
            Failure::Rewound(now) => MetaError::Unknown(at(format!("it was put back to revision {now}"))),
            Failure::Refused(text) | Failure::NoSpace(text) => MetaError::Refused(at(text)),
            Failure::LeaseGone => MetaError::Refused(at("the lease has run out".into())),
        }
    }
}

impl Endpoints {
    pub fn new(urls: Vec<String>, options: ConnectOptions, timeout: Duration) -> Self {
        let members = || Members {
            current: AtomicUsize::new(0),
            clients: urls.iter().map(|_| Mutex::new(Slot::default())).collect(),
        };
        let lanes = [members(), members()];
        Self { urls, options, timeout, lanes, cluster: AtomicU64::new(0) }
    }

    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls a member, and others if it fails, within the timeout.
    pub async fn call<T>(
        &self,
        lane: Lane,
        repeat: Repeat,
        call: impl Fn(Client) -> Call<T> + Send + Sync,
    ) -> Result<T, Unanswered>
    where
        T: Answer,
    {
        let deadline = Instant::now() + self.timeout;
        let members = &self.lanes[lane as usize];
        let mut tries = 0;
        loop {
            let at = members.current.load(Ordering::Relaxed) % self.urls.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let bound = if repeat == Repeat::Freely { left.min(ATTEMPT) } else { left };
            let used = AtomicU64::new(0);
            let failure = match tokio::time::timeout(bound, self.attempt(members, at, &used, &call)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    // The connection may be dead with nobody there to say so: the next request makes a new one.
                    members.discard(at, used.into_inner());
                    Failure::Unknown(format!("no answer within {:?}", self.timeout))
                }
            };
            tries += 1;
            let unanswered = Unanswered { endpoint: self.urls[at].clone(), failure };
            let again = match &unanswered.failure {
                Failure::Refused(_) | Failure::NoSpace(_) | Failure::LeaseGone | Failure::Rewound(_) => {
                    return Err(unanswered);
                }
                Failure::OtherCluster(_) => false,
                Failure::Unreachable(_) | Failure::Foreign(_) => tries < self.urls.len(),
                Failure::NotNow(_) => true,
                Failure::Unknown(_) => repeat == Repeat::Freely,
            };
            // Whoever comes next begins elsewhere.
            let next = (at + 1) % self.urls.len();
            let _ = members.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
            let pause = if tries.is_multiple_of(self.urls.len()) { PAUSE } else { Duration::ZERO };
            if !again || Instant::now() + pause >= deadline {
                return Err(unanswered);
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn attempt<T: Answer>(
        &self,
        members: &Members,
        at: usize,
        used: &AtomicU64,
        call: &(impl Fn(Client) -> Call<T> + Sync),
    ) -> Result<T, Failure> {
        let (generation, client) = match members.client(at) {
            Some(kept) => kept,
            None => members.keep(at, self.connect(&self.urls[at]).await?),
        };
        used.store(generation, Ordering::Relaxed);
        let answer = call(client).await.map_err(|error| classify(&error))?;
        self.verify(answer.header())?;
        Ok(answer)
    }

    /// A client of its own for one member.
    pub async fn connect(&self, url: &str) -> Result<Client, Failure> {
        match Client::connect([url], Some(self.options.clone())).await {
            Ok(client) => Ok(client),
            Err(error) => Err(match classify(&error) {
                // Signing in failed: the request proper was not sent.
                Failure::Unknown(text) => Failure::Unreachable(text),
                other => other,
            }),
        }
    }

    /// Checks that it is still the same etcd cluster that answers.
    pub fn verify(&self, header: Option<&ResponseHeader>) -> Result<(), Failure> {
        let id = header.map_or(0, ResponseHeader::cluster_id);
        match self.cluster.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(first) if first == id || id == 0 => Ok(()),
            Err(first) => Err(Failure::OtherCluster(format!(
                "it belongs to the etcd cluster {id:x}, and this process began with {first:x}. Check the endpoints; if \
                 etcd was restored from a backup, start this process again"
            ))),
        }
    }
}

/// Every answer of etcd says which cluster it comes from.
pub(super) trait Answer {
    fn header(&self) -> Option<&ResponseHeader>;
}

/// A keep-alive's: the client keeps that answer to itself.
impl Answer for bool {
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }
}

macro_rules! answers {
    ($($name:ty),*) => { $(impl Answer for $name {
        fn header(&self) -> Option<&ResponseHeader> {
            <$name>::header(self)
        }
    })* };
}
answers!(
    etcd_client::GetResponse,
    etcd_client::TxnResponse,
    etcd_client::LeaseGrantResponse,
    etcd_client::LeaseRevokeResponse
);

impl Members {
    fn slot(&self, at: usize) -> std::sync::MutexGuard<'_, Slot> {
        self.clients[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, at: usize) -> Option<(u64, Client)> {
        let slot = self.slot(at);
        slot.client.clone().map(|client| (slot.generation, client))
    }

    /// Keeps a new client, unless another request was faster.
    fn keep(&self, at: usize, client: Client) -> (u64, Client) {
        let mut slot = self.slot(at);
        if slot.client.is_none() {
            slot.generation += 1;
        }
        let client = slot.client.get_or_insert(client).clone();
        (slot.generation, client)
    }

    fn discard(&self, at: usize, generation: u64) {
        let mut slot = self.slot(at);
        if slot.generation == generation {
            slot.client = None;
        }
    }
}
