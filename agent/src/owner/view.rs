//! What an owner sees of its cluster: agents, the ring, its volume's size. Kept by watches, lost never: while the store
//! does not answer, what was seen last stays seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use torus_core::ids::{AgentId, Incarnation, VolumeId};
use torus_core::log::AgentView;
use torus_core::meta::docs::{AgentDoc, AliveDoc, RingDoc, VolumeDoc, decode};
use torus_core::meta::{Change, MetaOp, MetaReply, MetadataStore, Revision, WatchEvent, keys};
use torus_core::ring::Ring;

/// Pause before the store is asked again after it failed.
const RETRY_TIME: Duration = Duration::from_millis(500);

/// All keys with a prefix, as they were seen last.
pub type Keys = Arc<BTreeMap<String, Vec<u8>>>;

/// Keeps `seen` like the store's keys with `prefix`, until nobody looks any more.
pub async fn mirror(store: Arc<dyn MetadataStore>, prefix: String, seen: watch::Sender<Option<Keys>>) {
    while !seen.is_closed() {
        if let Some((mut keys, revision)) = list(&*store, &prefix).await {
            publish(&seen, &keys);
            follow(&*store, &prefix, &mut keys, revision, &seen).await;
        }
        tokio::select! {
            () = seen.closed() => {}
            () = sleep(RETRY_TIME) => {}
        }
    }
}

fn publish(seen: &watch::Sender<Option<Keys>>, keys: &BTreeMap<String, Vec<u8>>) {
    seen.send_if_modified(|last| {
        let news = last.as_deref() != Some(keys);
        if news {
            *last = Some(Arc::new(keys.clone()));
        }
        news
    });
}

async fn list(store: &dyn MetadataStore, prefix: &str) -> Option<(BTreeMap<String, Vec<u8>>, Revision)> {
    match store.execute(MetaOp::List(prefix.into())).await {
        Ok(MetaReply::Listed(entries, revision)) => {
            Some((entries.into_iter().map(|entry| (entry.key, entry.value)).collect(), revision))
        }
        Ok(other) => {
            tracing::error!("the metadata store answered {other:?} to a list of {prefix}");
            None
        }
        Err(error) => {
            tracing::debug!("cannot list {prefix}: {error}");
            None
        }
    }
}

async fn follow(
    store: &dyn MetadataStore,
    prefix: &str,
    keys: &mut BTreeMap<String, Vec<u8>>,
    listed: Revision,
    seen: &watch::Sender<Option<Keys>>,
) {
    let Ok(mut watch) = store.watch(prefix.into(), Revision(listed.0 + 1)).await else { return };
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            () = seen.closed() => return,
        };
        let Some(WatchEvent::Changes(changes, _)) = event else { return };
        for change in changes {
            match change {
                Change::Put(entry) => drop(keys.insert(entry.key, entry.value)),
                Change::Deleted(key) => drop(keys.remove(&key)),
            }
        }
        publish(seen, keys);
    }
}

/// The watches of one owner.
pub struct View {
    agents: watch::Receiver<Option<Keys>>,
    alive: watch::Receiver<Option<Keys>>,
    ring: watch::Receiver<Option<Keys>>,
    meta: watch::Receiver<Option<Keys>>,
    volume: VolumeId,
}

/// Something new in it.
#[derive(Debug)]
pub enum News {
    /// All agents, and where those that run take data.
    Agents(Vec<(AgentView, Option<String>)>),
    /// Another ring.
    Ring(Arc<Ring>),
    /// The volume's size, in blocks.
    Size(u64),
}

impl View {
    /// Begins to watch, on `runtime`.
    pub fn begin(runtime: &tokio::runtime::Handle, store: &Arc<dyn MetadataStore>, volume: VolumeId) -> View {
        let watch = |prefix: String| {
            let (sender, receiver) = watch::channel(None);
            runtime.spawn(mirror(Arc::clone(store), prefix, sender));
            receiver
        };
        View {
            agents: watch(keys::AGENTS.into()),
            alive: watch(keys::ALIVE.into()),
            ring: watch(keys::RING.into()),
            meta: watch(keys::volume_meta(volume)),
            volume,
        }
    }

    /// Waits for news. Cancel safe.
    pub async fn news(&mut self) -> News {
        loop {
            let news = tokio::select! {
                Ok(()) = self.agents.changed() => self.agents(),
                Ok(()) = self.alive.changed() => self.agents(),
                Ok(()) = self.ring.changed() => self.ring(),
                Ok(()) = self.meta.changed() => self.size(),
                // The control side is gone: there is no news any more.
                else => std::future::pending().await,
            };
            if let Some(news) = news {
                return news;
            }
        }
    }

    fn agents(&mut self) -> Option<News> {
        let agents = self.agents.borrow_and_update().clone()?;
        let alive = self.alive.borrow_and_update().clone()?;
        let views = agents.iter().filter_map(|(key, value)| {
            let id: AgentId = keys::last_part(key).parse().ok()?;
            let doc: AgentDoc = read(key, value)?;
            let key = keys::alive(id);
            let alive: Option<AliveDoc> = alive.get(&key).and_then(|value| read(&key, value));
            let view = AgentView {
                id,
                name: doc.name,
                up: alive.is_some(),
                incarnation: alive.as_ref().map_or(Incarnation(0), |alive| alive.incarnation),
                space: alive.as_ref().map_or_else(Default::default, |alive| alive.space),
            };
            Some((view, alive.map(|alive| alive.data)))
        });
        Some(News::Agents(views.collect()))
    }

    fn ring(&mut self) -> Option<News> {
        let keys = self.ring.borrow_and_update().clone()?;
        let doc: RingDoc = read(keys::RING, keys.get(keys::RING)?)?;
        match Ring::new(&doc.now) {
            Ok(ring) => Some(News::Ring(Arc::new(ring))),
            Err(error) => {
                tracing::error!("ring version {} cannot be used, the one before stays: {error}", doc.version.0);
                None
            }
        }
    }

    fn size(&mut self) -> Option<News> {
        let keys = self.meta.borrow_and_update().clone()?;
        let key = keys::volume_meta(self.volume);
        let doc: VolumeDoc = read(&key, keys.get(&key)?)?;
        Some(News::Size(doc.size.0))
    }
}

/// A document, or a message and nothing: what cannot be read changes nothing.
fn read<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    decode(key, value).map_err(|error| tracing::error!("{error}; it is left out")).ok()
}
