//! The etcd store: for every real cluster.
//!
//! Requests go to one member at a time ([`endpoints`]); what an error means is decided in [`failure`]; a watch is a task of its own
//! on a connection of its own ([`watch`]).
//!
//! Invariants:
//! 1. A transaction is sent again only if it positively was not carried out; reads, keep-alives and revocations are
//!    repeated freely. A grant repeated after an unknown outcome may leave a lease that nobody uses; it runs out.
//! 2. Gets and lists are linearizable; a list of many pages is one revision.
//! 3. Every operation ends within the configured timeout; a list, and a transaction that met a full database, within twice that.

mod endpoints;
mod failure;
mod watch;

use super::config::{ConfigError, MetaConfig, TlsFiles};
use super::{OpenError, whole_seconds};
use endpoints::{Call, Endpoints, Lane, Repeat, Unanswered};
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, Error, GetOptions, GetResponse, Identity, KeyValue, PutOptions,
    ResponseHeader, TlsOptions, TxnOp,
};
use failure::{Failure, root_cause};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use torus_core::limits::{META_ANSWER_BYTES_MAX, META_LIST_PAGE_KEYS};
use torus_core::meta::{
    BoxFuture, Compare, Entry, LeaseId, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, Watch, Write, keys,
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an idle connection may be silent before the kernel asks after it.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// How often a connection with a watch is tried, and how long it may be silent then. etcd closes connections that ask
/// more often than every 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(4));

/// An etcd cluster under one key prefix. See the module.
pub struct Etcd {
    endpoints: Arc<Endpoints>,
    prefix: String,
}

impl Etcd {
    /// Takes up an etcd, after one linearizable read of it.
    ///
    /// # Errors
    /// [`OpenError::Config`] for TLS files that are no good; [`OpenError::Unanswered`] when no endpoint answers (it may
    /// later), [`OpenError::NotEtcd`] when something else does, [`OpenError::Refused`] when etcd will not serve us.
    pub async fn open(urls: Vec<String>, config: &MetaConfig) -> Result<Self, OpenError> {
        let options = options(&urls, config)?;
        let endpoints = Arc::new(Endpoints::new(urls, options, config.timeout));
        let etcd = Self { endpoints, prefix: config.prefix.clone() };
        let cluster = etcd.full(keys::CLUSTER);
        match etcd.get(cluster, GetOptions::new().with_keys_only()).await {
            Ok(_) => Ok(etcd),
            Err(Unanswered { endpoint, failure: Failure::Refused(reason) }) => {
                Err(OpenError::Refused { endpoint, reason })
            }
            Err(Unanswered { endpoint, failure: Failure::Foreign(reason) }) => {
                Err(OpenError::NotEtcd { endpoint, reason })
            }
            Err(unanswered) => {
                // Some TLS mismatches show as nothing but silence, or a hang-up.
                let hint = match &unanswered.failure {
                    Failure::Unknown(_) if unanswered.endpoint.starts_with("http://") => {
                        ". If it speaks TLS, write https://"
                    }
                    Failure::Unknown(_) => ". If it asks for a client certificate, check --etcd-cert and --etcd-key",
                    _ => "",
                };
                Err(OpenError::Unanswered { reason: format!("{}{hint}", unanswered.into_error()) })
            }
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn get(&self, key: String, options: GetOptions) -> Result<GetResponse, Unanswered> {
        let call = move |client: Client| -> Call<GetResponse> {
            let mut kv = client.kv_client().max_decoding_message_size(META_ANSWER_BYTES_MAX);
            let (key, options) = (key.clone(), options.clone());
            Box::pin(async move { kv.get(key, Some(options)).await })
        };
        self.endpoints.call(Lane::Data, Repeat::Freely, call).await
    }

    /// All keys with a prefix, page by page. The first page decides on the revision; should that be compacted away
    /// before the last page, it begins again.
    async fn list(&self, prefix: &str) -> Result<MetaReply, MetaError> {
        let listed = async {
            let mut page = META_LIST_PAGE_KEYS;
            loop {
                match self.list_in_pages(prefix, page).await {
                    Ok(Some(reply)) => return Ok(reply),
                    Ok(None) => {}
                    // Fewer of them fit one answer.
                    Err(Unanswered { failure: Failure::Unknown(text), .. }) if page > 1 && is_too_long(&text) => {
                        page /= 8
                    }
                    Err(unanswered) => return Err(unanswered.into_error()),
                }
                page = page.max(1);
            }
        };
        let bound = self.endpoints.timeout() * 2;
        let late =
            |_| MetaError::Unknown(format!("{}: the list of {prefix:?} took longer than {bound:?}", self.describe()));
        tokio::time::timeout(bound, listed).await.map_err(late)?
    }

    async fn list_in_pages(&self, prefix: &str, page: i64) -> Result<Option<MetaReply>, Unanswered> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut revision = 0;
        let mut from = self.full(prefix);
        let end = end_of(&from);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(page).with_revision(revision);
            let answer = match self.get(from, options).await {
                Err(Unanswered { failure: Failure::Refused(words), .. }) if words.contains("has been compacted") => {
                    return Ok(None);
                }
                answer => answer?,
            };
            if revision == 0 {
                revision = answer.header().map_or(0, ResponseHeader::revision);
            }
            entries.extend(answer.kvs().iter().map(|kv| entry(&self.prefix, kv)));
            let Some(last) = answer.kvs().last().filter(|_| answer.more()) else {
                return Ok(Some(MetaReply::Listed(entries, Revision(revision))));
            };
            from = String::from_utf8_lossy(last.key()).into_owned() + "\0";
        }
    }

    async fn transact(&self, txn: Txn) -> Result<MetaReply, MetaError> {
        txn.check()?;
        let asked = etcd_client::Txn::new()
            .when(txn.when.iter().map(|condition| self.condition(condition)).collect::<Vec<_>>())
            .and_then(txn.then.iter().map(|write| self.write(write.clone())).collect::<Vec<_>>());
        let call = move |mut client: Client| -> Call<etcd_client::TxnResponse> {
            let asked = asked.clone();
            Box::pin(async move { client.txn(asked).await })
        };
        match self.endpoints.call(Lane::Data, Repeat::Never, call).await {
            Ok(answer) if answer.succeeded() => {
                Ok(MetaReply::Committed(Revision(answer.header().map_or(0, ResponseHeader::revision))))
            }
            Ok(_) => Ok(MetaReply::Conflict),
            Err(Unanswered { failure: Failure::NoSpace(text), endpoint }) => {
                Err(self.settle(&txn.then, endpoint, text).await)
            }
            Err(unanswered) => Err(unanswered.into_error()),
        }
    }

    /// What can be said of a transaction where etcd has said that its database is full. It looks at its size twice: of one that has
    /// grown beyond its quota in between it tells after the transaction was applied (`quotaApplierV3.Txn` in etcd's `apply.go`). What was
    /// applied was applied whole, so where its first write does not stand, it was not. Where that stands, it may be this one's or another's:
    /// whoever asked knows what tells them apart.
    async fn settle(&self, writes: &[Write], endpoint: String, text: String) -> MetaError {
        let full = format!("etcd at {endpoint}: {text}");
        let Some(first) = writes.first() else { return MetaError::Refused(full) };
        let Ok(answer) = self.get(self.full(first.key()), GetOptions::new()).await else {
            return MetaError::Unknown(full);
        };
        let found = answer.kvs().first().map(KeyValue::value);
        let stands = match first {
            Write::Put { value, .. } => found == Some(value),
            Write::Delete(_) => found.is_none(),
        };
        if stands { MetaError::Unknown(full) } else { MetaError::Refused(full) }
    }

    fn condition(&self, condition: &Compare) -> etcd_client::Compare {
        use etcd_client::Compare as Etcd;
        let key = self.full(condition.key());
        match condition {
            Compare::Absent(_) => Etcd::create_revision(key, CompareOp::Equal, 0),
            Compare::Present(_) => Etcd::create_revision(key, CompareOp::Greater, 0),
            Compare::Unchanged(_, at) => Etcd::mod_revision(key, CompareOp::Equal, at.0),
            Compare::Holds(_, value) => Etcd::value(key, CompareOp::Equal, value.clone()),
        }
    }

    fn write(&self, write: Write) -> TxnOp {
        match write {
            Write::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.full(&key), value, options)
            }
            Write::Delete(key) => TxnOp::delete(self.full(&key), None),
        }
    }
}

impl MetadataStore for Etcd {
    fn execute(&self, op: MetaOp) -> BoxFuture<'_, Result<MetaReply, MetaError>> {
        Box::pin(async move {
            match op {
                MetaOp::Get(key) => {
                    let answer = self.get(self.full(&key), GetOptions::new()).await.map_err(Unanswered::into_error)?;
                    Ok(MetaReply::Got(answer.kvs().first().map(|kv| entry(&self.prefix, kv))))
                }
                MetaOp::List(prefix) => self.list(&prefix).await,
                MetaOp::Txn(txn) => self.transact(txn).await,
            }
        })
    }

    fn watch(&self, prefix: String, from: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, MetaError>> {
        Box::pin(async move {
            let watch = watch::start(self.endpoints.clone(), self.prefix.clone(), &prefix, from).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        Box::pin(async move {
            let ttl_s = i64::try_from(whole_seconds(ttl).as_secs()).unwrap_or(i64::MAX);
            let call = move |mut client: Client| -> Call<etcd_client::LeaseGrantResponse> {
                Box::pin(async move { client.lease_grant(ttl_s, None).await })
            };
            let answer = self.endpoints.call(Lane::Lease, Repeat::Freely, call).await;
            Ok(LeaseId(answer.map_err(Unanswered::into_error)?.id()))
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, MetaError>> {
        Box::pin(async move {
            let call = move |mut client: Client| -> Call<bool> {
                Box::pin(async move {
                    match client.lease_keep_alive(lease.0).await {
                        Ok(_) => Ok(true),
                        Err(Error::LeaseKeepAliveError(text)) if text == "lease not found" => Ok(false),
                        Err(error) => Err(error),
                    }
                })
            };
            self.endpoints.call(Lane::Lease, Repeat::Freely, call).await.map_err(Unanswered::into_error)
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            let call = move |mut client: Client| -> Call<etcd_client::LeaseRevokeResponse> {
                Box::pin(async move { client.lease_revoke(lease.0).await })
            };
            match self.endpoints.call(Lane::Lease, Repeat::Freely, call).await {
                Ok(_) => Ok(()),
                Err(Unanswered { failure: Failure::LeaseGone, .. }) => Ok(()),
                Err(unanswered) => Err(unanswered.into_error()),
            }
        })
    }

    fn describe(&self) -> String {
        format!("etcd at {}", self.endpoints.urls().join(", "))
    }
}

/// A key as it was read, its prefix taken off. A key that is not text is nobody's of ours: it is shown as well as it can be.
fn entry(prefix: &str, kv: &KeyValue) -> Entry {
    Entry { key: key(prefix, kv), value: kv.value().to_vec(), modified: Revision(kv.mod_revision()) }
}

fn key(prefix: &str, kv: &KeyValue) -> String {
    let key = String::from_utf8_lossy(kv.key());
    key.strip_prefix(prefix).unwrap_or(&key).to_string()
}

/// The first key after all that begin with `prefix`: what etcd calls the range's end.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Text has no byte 0xff: raising the last byte never overflows.
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// What the gRPC client says of an answer longer than [`META_ANSWER_BYTES_MAX`].
fn is_too_long(text: &str) -> bool {
    text.contains("message length too large")
}

fn options(urls: &[String], config: &MetaConfig) -> Result<ConnectOptions, ConfigError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_tcp_keepalive(TCP_KEEPALIVE)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some((user, password)) = &config.user {
        options = options.with_user(user, password);
    }
    match &config.tls {
        Some(files) => options = options.with_tls(tls(files)?),
        None if urls.iter().any(|url| url.starts_with("https://")) => return Err(ConfigError::NoCa),
        None => {}
    }
    Ok(options)
}

fn tls(files: &TlsFiles) -> Result<TlsOptions, ConfigError> {
    const CERTIFICATE: &str = "certificate";
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(pem(&files.ca, CERTIFICATE)?));
    if let Some((cert, key)) = &files.identity {
        tls = tls.identity(Identity::from_pem(pem(cert, CERTIFICATE)?, pem(key, "private key")?));
    }
    // Made once for its errors: the client's own come with the first connection.
    let made = Channel::from_static("https://localhost").tls_config(tls.clone());
    made.map_err(|error| ConfigError::Tls { reason: root_cause(&error) })?;
    Ok(tls)
}

fn pem(path: &Path, what: &'static str) -> Result<Vec<u8>, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::TlsFile { path: path.into(), source })?;
    // The library takes a file without any certificate for one with none, silently.
    let marked = String::from_utf8_lossy(&bytes)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.to_ascii_lowercase().contains(what));
    if marked { Ok(bytes) } else { Err(ConfigError::TlsContent { path: path.into(), what }) }
}
