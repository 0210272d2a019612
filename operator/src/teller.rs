//! Events: what a person reads under `kubectl describe`.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use torus_plan::story::{Told, Tone};

/// Longest note that the apiserver takes, less some.
const NOTE_CHARS_MAX: usize = 1000;

/// Writes events.
pub struct Teller {
    recorder: Recorder,
}

impl Teller {
    /// Speaks as the operator of this identity.
    pub fn new(client: Client, identity: &str) -> Teller {
        let reporter = Reporter { controller: "torus-operator".into(), instance: Some(identity.into()) };
        Teller { recorder: Recorder::new(client, reporter) }
    }

    /// Writes one. One that cannot be written is in the log.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, told: Told) {
        let Told { tone, reason, message } = told;
        tracing::info!(object = object.meta().name, reason, "{message}");
        let type_ = match tone {
            Tone::Normal => EventType::Normal,
            Tone::Warning => EventType::Warning,
        };
        let note = Some(message.chars().take(NOTE_CHARS_MAX).collect());
        let event = Event { type_, reason, note, action: "Reconcile".into(), secondary: None };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
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
