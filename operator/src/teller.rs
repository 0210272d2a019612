//! Events: what a person reads under `kubectl describe`.
//!
//! What is told again in the same words is counted on the event that is there; other words are another event, of whatever reason: a second
//! volume that is taken from a node is news. A recorder tells events apart by everything but their words, hence one for each wording.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use torus_plan::story::{Told, Tone};

/// Longest note that the apiserver takes, less some.
const NOTE_CHARS_MAX: usize = 1000;
/// For how long a recorder counts on an event after it was told last. Then it is of no use any more.
const REMEMBERED: Duration = Duration::from_secs(360);

/// Writes events.
pub struct Teller {
    client: Client,
    reporter: Reporter,
    /// By their wording, with when they were used last.
    recorders: Mutex<BTreeMap<String, (Recorder, Instant)>>,
}

impl Teller {
    /// Speaks as the operator of this identity.
    pub fn new(client: Client, identity: &str) -> Teller {
        let reporter = Reporter { controller: "torus-operator".into(), instance: Some(identity.into()) };
        Teller { client, reporter, recorders: Mutex::default() }
    }

    fn recorder(&self, note: &str) -> Recorder {
        let now = Instant::now();
        // Recorders and times: whole whatever a panicking thread was doing.
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        recorders.retain(|_, (_, used)| now.duration_since(*used) < REMEMBERED);
        let fresh = || (Recorder::new(self.client.clone(), self.reporter.clone()), now);
        let (recorder, used) = recorders.entry(note.to_owned()).or_insert_with(fresh);
        *used = now;
        recorder.clone()
    }

    /// Writes one. One that cannot be written is in the log.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, told: Told) {
        let Told { tone, reason, message } = told;
        tracing::info!(object = object.meta().name, reason, "{message}");
        let type_ = match tone {
            Tone::Normal => EventType::Normal,
            Tone::Warning => EventType::Warning,
        };
        let note: String = message.chars().take(NOTE_CHARS_MAX).collect();
        let recorder = self.recorder(&note);
        let event = Event { type_, reason, note: Some(note), action: "Reconcile".into(), secondary: None };
        if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!("cannot write an event: {error}");
        }
    }

    /// Writes several, in order.
    pub async fn tell_all<K: Resource<DynamicType = ()>>(&self, object: &K, story: Vec<Told>) {
        for told in story {
            self.tell(object, told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stub::Stub;
    use k8s_openapi::api::core::v1::Node;
    use kube::api::ObjectMeta;

    #[tokio::test]
    async fn other_words_are_another_event_and_the_same_again_are_counted() {
        let stub = Stub::start(|calls| Ok(calls.last().unwrap().body.clone())).await;
        let teller = Teller::new(stub.client.clone(), "operator-0");
        let node =
            Node { metadata: ObjectMeta { name: Some("n1".into()), ..ObjectMeta::default() }, ..Node::default() };
        for volume in ["a", "b", "a"] {
            teller.tell(&node, Told::warning("Fenced", format!("{volume} was taken from n1"))).await;
        }
        let calls = stub.calls();
        let said = |at: usize| (calls[at].method.as_str(), calls[at].body["note"].as_str().unwrap());
        assert_eq!(said(0), ("POST", "a was taken from n1"));
        assert_eq!(said(1), ("POST", "b was taken from n1"));
        assert_eq!(said(2), ("PATCH", "a was taken from n1"));
        assert!(calls[2].path.ends_with(calls[0].body["metadata"]["name"].as_str().unwrap()), "{}", calls[2].path);
        assert_eq!(calls[2].body["series"]["count"], 2);
        assert_eq!(calls.len(), 3);
    }
}
