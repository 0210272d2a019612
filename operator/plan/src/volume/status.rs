//! What the status of a TorusVolume says: computed, and equal for equal input.

use super::{Identity, Plan, Pool, Seen};
use crate::story::FENCED;
use torus_api::{Condition, Quantity, TorusVolumeSpec, TorusVolumeStatus, set_condition};

/// The status. `before`: as it is; `now`: in RFC 3339, for conditions whose status changes.
#[must_use]
pub fn volume_status(
    who: &Identity,
    spec: &TorusVolumeSpec,
    generation: i64,
    seen: &Seen,
    plan: &Plan,
    before: &TorusVolumeStatus,
    now: &str,
) -> TorusVolumeStatus {
    let mut status = before.clone();
    status.observed_generation = generation;
    status.state = plan.state;
    // Whoever looks for a volume's object finds the one that has it.
    status.volume_name = seen.taken_by.is_none().then(|| who.volume_name(spec));
    let volume = if let Pool::Open(pool) = &seen.pool { pool.volume.as_ref() } else { None };
    let is_ours = match seen.is_deleting {
        // What goes adopts nothing any more.
        true => seen.own(spec, volume),
        false => volume.filter(|volume| seen.may_have(volume)),
    };
    if let Some(volume) = is_ours {
        status.volume_id = Some(volume.id.clone());
        status.size = Some(Quantity::of_bytes(volume.size_bytes).0);
        status.redundancy = volume.copies.map(|copies| copies.to_string());
        status.node.clone_from(&volume.owner);
        status.epoch = volume.epoch.and_then(|epoch| i64::try_from(epoch).ok());
        status.used = volume.used_bytes.map(Quantity::rounded);
    }
    status.claim = spec.claim.as_ref().filter(|_| seen.claim.is_some()).map(|claim| claim.name.clone());
    let name = seen.persistent_volume.as_ref().and_then(|found| found["metadata"]["name"].as_str());
    status.persistent_volume = name.map(str::to_owned);
    let was_fenced = before.conditions.iter().any(|condition| condition.kind == FENCED);
    let mut tell = |kind: &str, holds: bool, reason: &str, message: &str| {
        set_condition(&mut status.conditions, Condition::found(generation, now, kind, holds, reason, message));
    };
    match &plan.waits {
        Some(obstacle) => tell("Ready", false, obstacle.reason, &obstacle.message),
        None if seen.is_deleting => tell("Ready", false, "Deleting", "it is being deleted"),
        None => tell("Ready", true, "Ready", "it can be used"),
    }
    if let Some(copies) = is_ours.and_then(|volume| volume.copies) {
        let message = format!("{copies} copies of the worst-off extent can be reached");
        tell("Healthy", copies.is_full(), if copies.is_full() { "AllCopies" } else { "CopiesMissing" }, &message);
    }
    match is_ours.map(|volume| (&volume.fenced_from, &volume.owner)) {
        Some((Some(node), _)) => {
            let message = format!(
                "it was taken from {node}, which is dead, and whatever that node still writes is refused. It is open again as soon as a pod that uses it starts elsewhere"
            );
            tell(FENCED, true, "NodeDead", &message);
        }
        Some((None, Some(_))) if was_fenced => tell(FENCED, false, "Reopened", "it is open again"),
        _ => {}
    }
    if seen.is_deleting {
        match &plan.held {
            Some(obstacle) => tell("Deleting", false, obstacle.reason, &obstacle.message),
            None => tell("Deleting", true, "Deleting", "what belongs to it is gone or is going"),
        }
    }
    status
}
