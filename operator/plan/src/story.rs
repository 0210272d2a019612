//! What is told in events: the story of an object, from what its status said before and says now. Pure, and equal for equal input;
//! a status that says nothing new tells nothing.

use crate::time::seconds_between;
use torus_api::{Condition, ConditionStatus, TorusClusterStatus, TorusVolumeStatus};

/// How an event is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// How it is meant.
    pub tone: Tone,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Told {
    /// An event that is as it should be.
    #[must_use]
    pub fn normal(reason: &str, message: impl Into<String>) -> Told {
        Told { tone: Tone::Normal, reason: reason.into(), message: message.into() }
    }

    /// An event that somebody may want to look at.
    #[must_use]
    pub fn warning(reason: &str, message: impl Into<String>) -> Told {
        Told { tone: Tone::Warning, reason: reason.into(), message: message.into() }
    }
}

/// What became of a TorusCluster.
#[must_use]
pub fn of_cluster(before: &TorusClusterStatus, after: &TorusClusterStatus) -> Vec<Told> {
    told(&before.conditions, &after.conditions, after.redundancy.as_deref())
}

/// What became of a TorusVolume.
#[must_use]
pub fn of_volume(before: &TorusVolumeStatus, after: &TorusVolumeStatus) -> Vec<Told> {
    let mut story = told(&before.conditions, &after.conditions, after.redundancy.as_deref());
    if let Some(node) = after.node.as_ref().filter(|node| before.node.as_ref() != Some(node)) {
        let epoch = after.epoch.unwrap_or(0);
        let fenced = before.conditions.iter().find(|old| old.kind == FENCED && old.status == ConditionStatus::True);
        story.push(match fenced {
            Some(fenced) => {
                let now = after.conditions.iter().find(|new| new.kind == FENCED);
                let since =
                    now.and_then(|new| seconds_between(&fenced.last_transition_time, &new.last_transition_time));
                let since = since.map(|seconds| format!(", {seconds} s after it was taken from a dead node"));
                Told::normal("Recovered", format!("open on {node} (epoch {epoch}){}", since.unwrap_or_default()))
            }
            None => Told::normal("Attached", format!("open on {node} (epoch {epoch})")),
        });
    } else if let (Some(node), None) = (&before.node, &after.node) {
        story.push(Told::normal("Detached", format!("{node} has it open no more")));
    }
    story
}

/// The condition that says that a volume was taken from a dead node.
pub const FENCED: &str = "Fenced";

/// What changed conditions tell.
fn told(before: &[Condition], after: &[Condition], redundancy: Option<&str>) -> Vec<Told> {
    let mut story = Vec::new();
    for new in after {
        let old = before.iter().find(|old| old.kind == new.kind);
        if old.is_some_and(|old| old.status == new.status && old.reason == new.reason) {
            continue;
        }
        let is_true = new.status == ConditionStatus::True;
        let was_bad = old.is_some_and(|old| old.status == ConditionStatus::False);
        match (new.kind.as_str(), is_true) {
            ("Healthy", false) if new.reason == "Unknown" => {}
            ("Healthy", false) => {
                let copies = redundancy.map(|copies| format!("{copies} copies: ")).unwrap_or_default();
                story.push(Told::warning("Degraded", format!("{copies}{}", new.message)));
            }
            ("Healthy", true) if old.is_some_and(|old| old.reason == "Unknown") => {}
            ("Healthy", true) if was_bad => story.push(Told::normal("Healthy", new.message.clone())),
            // What is good from the start is no news; what the operator did to a dead node's volume, it tells when it does it.
            ("Healthy" | "Accepted" | "Etcd", true) if !was_bad => {}
            (FENCED, _) => {}
            ("Updating", false) if old.is_none() => {}
            ("Updating", _) => story.push(Told::normal(&new.reason, new.message.clone())),
            (_, true) => story.push(Told::normal(&new.reason, new.message.clone())),
            // On the way to being ready these follow each other within seconds.
            ("Ready" | "Etcd", false) if is_passing(&new.reason) => {
                story.push(Told::normal(&new.reason, new.message.clone()));
            }
            (_, false) => story.push(Told::warning(&new.reason, new.message.clone())),
        }
    }
    story
}

fn is_passing(reason: &str) -> bool {
    matches!(
        reason,
        "Starting"
            | "Initializing"
            | "AgentsNotReady"
            | "ControllerNotReady"
            | "Creating"
            | "Binding"
            | "PoolStarting"
            | "Deleting"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, holds: bool, reason: &str, at: &str) -> Condition {
        Condition {
            kind: kind.into(),
            status: holds.into(),
            reason: reason.into(),
            message: format!("{reason} is so"),
            last_transition_time: at.into(),
            observed_generation: 1,
        }
    }

    fn volume(node: Option<&str>, epoch: i64, conditions: Vec<Condition>) -> TorusVolumeStatus {
        TorusVolumeStatus {
            node: node.map(str::to_owned),
            epoch: Some(epoch),
            redundancy: Some("1/2".into()),
            conditions,
            ..TorusVolumeStatus::default()
        }
    }

    fn reasons(story: &[Told]) -> Vec<&str> {
        story.iter().map(|told| told.reason.as_str()).collect()
    }

    #[test]
    fn the_same_status_tells_nothing() {
        let status = volume(Some("n1"), 1, vec![condition("Ready", true, "Ready", "2026-01-01T00:00:00Z")]);
        assert_eq!(of_volume(&status, &status), []);
    }

    #[test]
    fn a_node_that_dies_is_told_from_degraded_to_recovered() {
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
        let well = volume(Some("n1"), 1, vec![condition("Healthy", true, "AllCopies", &at(0))]);
        let degraded = volume(Some("n1"), 1, vec![condition("Healthy", false, "CopiesMissing", &at(5))]);
        let story = of_volume(&well, &degraded);
        assert_eq!(reasons(&story), ["Degraded"]);
        assert_eq!((story[0].tone, story[0].message.as_str()), (Tone::Warning, "1/2 copies: CopiesMissing is so"));
        let unhealthy = degraded.conditions[0].clone();
        let fenced = volume(None, 2, vec![condition("Fenced", true, "NodeDead", &at(10)), unhealthy.clone()]);
        assert_eq!(reasons(&of_volume(&degraded, &fenced)), ["Detached"]);
        let open = volume(Some("n3"), 3, vec![condition("Fenced", false, "Reopened", &at(51)), unhealthy]);
        let story = of_volume(&fenced, &open);
        assert_eq!(reasons(&story), ["Recovered"]);
        assert_eq!(story[0].message, "open on n3 (epoch 3), 41 s after it was taken from a dead node");
        let healed = volume(Some("n3"), 3, vec![condition("Healthy", true, "AllCopies", &at(59))]);
        assert_eq!(reasons(&of_volume(&open, &healed)), ["Healthy"]);
    }

    #[test]
    fn what_is_good_from_the_start_is_no_news() {
        let at = "2026-01-01T00:00:00Z";
        let good = [("Accepted", true), ("Etcd", true), ("Healthy", true), ("Updating", false)];
        let after = good.map(|(kind, holds)| condition(kind, holds, "Good", at));
        assert_eq!(told(&[], &after, None), []);
        assert_eq!(reasons(&told(&[], &[condition("Etcd", false, "Unreachable", at)], None)), ["Unreachable"]);
    }
}
