//! Conditions by Kubernetes' conventions, with bounds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest message of a condition: [`Condition::message`]'s bound.
const MESSAGE_CHARS_MAX: usize = 32_768;

/// Whether a condition holds.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One aspect of how an object is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect, such as Ready. Each is there once.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Whether it holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// One word that says why, for programs.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// What is so, on which object, and what to do about it, for people.
    #[schemars(length(max = MESSAGE_CHARS_MAX))]
    pub message: String,
    /// When `status` last changed.
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation of the object that this was found for.
    pub observed_generation: i64,
}

impl Condition {
    /// What was found at `now` (RFC 3339) for a generation of an object. Of a message that is longer than the API takes the
    /// beginning is kept.
    #[must_use]
    pub fn found(generation: i64, now: &str, kind: &str, holds: bool, reason: &str, message: &str) -> Self {
        Self {
            kind: kind.into(),
            status: holds.into(),
            reason: reason.into(),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
            last_transition_time: now.into(),
            observed_generation: generation,
        }
    }
}

/// Puts a condition into a list, which stays ordered by type. The time of the last transition is kept unless the status
/// changed.
pub fn set_condition(list: &mut Vec<Condition>, mut new: Condition) {
    match list.binary_search_by(|old| old.kind.cmp(&new.kind)) {
        Ok(at) => {
            if list[at].status == new.status {
                new.last_transition_time.clone_from(&list[at].last_transition_time);
            }
            list[at] = new;
        }
        Err(at) => list.insert(at, new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, holds: bool, time: &str) -> Condition {
        Condition {
            kind: kind.into(),
            status: holds.into(),
            reason: "Because".into(),
            message: String::new(),
            last_transition_time: time.into(),
            observed_generation: 1,
        }
    }

    #[test]
    fn a_transition_is_dated_when_it_happens_and_not_again() {
        let mut list = Vec::new();
        set_condition(&mut list, condition("Ready", false, "t1"));
        set_condition(&mut list, condition("Healthy", true, "t1"));
        set_condition(&mut list, condition("Ready", false, "t2"));
        assert_eq!(
            list.iter().map(|c| (&*c.kind, &*c.last_transition_time)).collect::<Vec<_>>(),
            [("Healthy", "t1"), ("Ready", "t1")]
        );
        set_condition(&mut list, condition("Ready", true, "t3"));
        assert_eq!(list[1].last_transition_time, "t3");
    }
}
