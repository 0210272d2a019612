//! The PersistentVolume and the claim of a TorusVolume: bound to each other from the start, and to nothing else.

use super::Identity;
use crate::contract::{DRIVER, LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_VOLUME, MANAGED_BY};
use crate::objects::{Key, Kind, Object};
use serde_json::{Value, json};
use torus_api::{AccessMode, FsType, TorusVolumeSpec, VolumeMode};

/// The component of what belongs to a TorusVolume.
const COMPONENT: &str = "volume";

/// Which PersistentVolume.
pub fn persistent_volume_key(who: &Identity) -> Key {
    Key { kind: Kind::PersistentVolume, namespace: String::new(), name: format!("torus-{}", who.uid) }
}

/// Which claim, if there is to be one.
pub fn claim_key(who: &Identity, spec: &TorusVolumeSpec) -> Option<Key> {
    let name = spec.claim.as_ref()?.name.clone();
    Some(Key { kind: Kind::PersistentVolumeClaim, namespace: who.namespace.clone(), name })
}

fn labels(who: &Identity) -> Value {
    json!({
        "app.kubernetes.io/name": "torus",
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: COMPONENT,
        LABEL_VOLUME: who.uid,
    })
}

fn access_modes(spec: &TorusVolumeSpec) -> Value {
    json!([match spec.access_mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
    }])
}

fn volume_mode(spec: &TorusVolumeSpec) -> &'static str {
    match spec.volume_mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    }
}

/// The PersistentVolume. Made once: its capacity follows expansions by the resizer's hand. It is always retained: the data
/// belongs to the TorusVolume, whose policy says what becomes of it.
#[must_use]
pub fn persistent_volume(who: &Identity, spec: &TorusVolumeSpec, id: &str, class: &str) -> Object {
    let key = persistent_volume_key(who);
    let mut source = json!({"driver": DRIVER, "volumeHandle": id});
    if spec.volume_mode == VolumeMode::Filesystem {
        source["fsType"] = json!(match spec.fs_type {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
        });
    }
    let mut content = json!({
        "capacity": {"storage": spec.size},
        "accessModes": access_modes(spec),
        "volumeMode": volume_mode(spec),
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": class,
        "csi": source,
    });
    if let Some(claim) = &spec.claim {
        content["claimRef"] = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": who.namespace, "name": claim.name});
    }
    let metadata = json!({"name": key.name, "labels": labels(who)});
    Object::new(key, metadata, json!({"spec": content}))
}

/// The claim, if there is to be one.
#[must_use]
pub fn claim(who: &Identity, spec: &TorusVolumeSpec, class: &str) -> Option<Object> {
    let key = claim_key(who, spec)?;
    let metadata = json!({
        "name": key.name,
        "namespace": key.namespace,
        "labels": labels(who),
        "ownerReferences": [{
            "apiVersion": format!("{}/{}", torus_api::GROUP, torus_api::VERSION),
            "kind": "TorusVolume",
            "name": who.name,
            "uid": who.uid,
            "controller": true,
            "blockOwnerDeletion": false,
        }],
    });
    let content = json!({
        "accessModes": access_modes(spec),
        "volumeMode": volume_mode(spec),
        "resources": {"requests": {"storage": spec.size}},
        "storageClassName": class,
        "volumeName": persistent_volume_key(who).name,
    });
    Some(Object::new(key, metadata, json!({"spec": content})))
}
