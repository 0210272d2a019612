//! All volumes that Kubernetes knows of: those of TorusVolumes, and those that the provisioner made for claims of the StorageClass.

use crate::access::Access;
use crate::output::{self, Format, Record};
use anyhow::Result;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use kube::api::Api;
use serde::Serialize;
use std::collections::BTreeMap;
use torus_api::TorusVolume;
use torus_plan::contract::DRIVER;

/// One volume.
#[derive(Serialize, PartialEq, Eq, Debug)]
pub struct Shown {
    /// What it is made from: `namespace/name` of a TorusVolume, or the name of a PersistentVolume.
    name: String,
    /// Its id in the pool.
    volume: Option<String>,
    size: Option<String>,
    used: Option<String>,
    state: String,
    redundancy: Option<String>,
    node: Option<String>,
    /// `namespace/name` of its claim.
    claim: Option<String>,
}

impl Record for Shown {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "SIZE", "USED", "STATE", "REDUNDANCY", "NODE", "CLAIM", "VOLUME"];

    fn cells(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![
            self.name.clone(),
            text(&self.size),
            text(&self.used),
            self.state.clone(),
            text(&self.redundancy),
            text(&self.node),
            text(&self.claim),
            text(&self.volume),
        ]
    }
}

/// Prints them.
pub async fn run(access: &Access, format: Format) -> Result<()> {
    let client = &access.client;
    let volumes = access.list(&Api::<TorusVolume>::all(client.clone()), "TorusVolumes").await?;
    let disks = access.list(&Api::<PersistentVolume>::all(client.clone()), "PersistentVolumes").await?;
    let attachments = access.list(&Api::<VolumeAttachment>::all(client.clone()), "VolumeAttachments").await?;
    output::list(&joined(&volumes, &disks, &attachments), format)
}

/// Everything once: a PersistentVolume whose volume a TorusVolume is about is told of there.
fn joined(volumes: &[TorusVolume], disks: &[PersistentVolume], attachments: &[VolumeAttachment]) -> Vec<Shown> {
    let ours = attachments.iter().filter(|attachment| attachment.spec.attacher == DRIVER);
    let nodes: BTreeMap<&str, &str> = ours
        .filter_map(|attachment| {
            let disk = attachment.spec.source.persistent_volume_name.as_deref()?;
            Some((disk, attachment.spec.node_name.as_str()))
        })
        .collect();
    let mut shown: Vec<_> = volumes.iter().map(of_object).collect();
    let known: Vec<_> = shown.iter().filter_map(|volume| volume.volume.clone()).collect();
    let provisioned = disks.iter().filter_map(|disk| of_disk(disk, &nodes));
    shown.extend(provisioned.filter(|disk| disk.volume.as_ref().is_none_or(|id| !known.contains(id))));
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    shown
}

fn of_object(volume: &TorusVolume) -> Shown {
    let namespace = volume.namespace().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    Shown {
        name: format!("{namespace}/{}", volume.name_any()),
        volume: status.volume_id,
        size: status.size.or_else(|| Some(volume.spec.size.0.clone())),
        used: status.used,
        state: format!("{:?}", status.state),
        redundancy: status.redundancy,
        node: status.node,
        claim: status.claim.map(|claim| format!("{namespace}/{claim}")),
    }
}

fn of_disk(disk: &PersistentVolume, nodes: &BTreeMap<&str, &str>) -> Option<Shown> {
    let spec = disk.spec.as_ref()?;
    let source = spec.csi.as_ref().filter(|source| source.driver == DRIVER)?;
    let name = disk.name_any();
    let node = nodes.get(name.as_str()).map(ToString::to_string);
    let phase = disk.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let claim = spec.claim_ref.as_ref().map(|claim| {
        format!("{}/{}", claim.namespace.as_deref().unwrap_or_default(), claim.name.as_deref().unwrap_or_default())
    });
    Some(Shown {
        volume: Some(source.volume_handle.clone()),
        size: spec.capacity.as_ref().and_then(|amounts| Some(amounts.get("storage")?.0.clone())),
        used: None,
        state: if node.is_some() { "Attached".into() } else { phase },
        redundancy: None,
        node,
        claim,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn disk(name: &str, handle: &str, driver: &str) -> PersistentVolume {
        let object = json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "20Gi"}, "csi": {"driver": driver, "volumeHandle": handle},
                "claimRef": {"namespace": "db", "name": name},
            },
            "status": {"phase": "Bound"},
        });
        serde_json::from_value(object).expect("a PersistentVolume")
    }

    fn attachment(disk: &str, node: &str) -> VolumeAttachment {
        let object = json!({
            "metadata": {"name": disk},
            "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": disk}},
        });
        serde_json::from_value(object).expect("a VolumeAttachment")
    }

    #[test]
    fn every_volume_is_listed_once_with_its_claim_and_node() {
        let status =
            json!({"state": "Attached", "volumeId": "aa", "size": "8Mi", "used": "1Mi", "node": "n2", "claim": "pg1"});
        let object: Value = json!({
            "apiVersion": "torus.storage/v1alpha1", "kind": "TorusVolume",
            "metadata": {"name": "pg1", "namespace": "db"}, "spec": {"size": "8Mi"}, "status": status,
        });
        let volume = serde_json::from_value(object).expect("a TorusVolume");
        let disks = [disk("torus-uid", "aa", DRIVER), disk("pvc-1", "bb", DRIVER), disk("other", "cc", "else")];
        let found = joined(&[volume], &disks, &[attachment("pvc-1", "n3")]);
        let rows: Vec<_> = found.iter().map(|volume| volume.cells().join(" ")).collect();
        assert_eq!(rows, ["db/pg1 8Mi 1Mi Attached  n2 db/pg1 aa", "pvc-1 20Gi  Attached  n3 db/pvc-1 bb"]);
    }
}
