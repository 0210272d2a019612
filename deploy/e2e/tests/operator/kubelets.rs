//! What stands in for kubelets where a test says so: pods that have a node are ready, pods that were deleted are gone. What pods really
//! do is the business of the scenarios on real nodes.

use crate::client::{Client, PAUSE, is_over};
use crate::world::NAMESPACE;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use std::pin::pin;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Watches the pods of Torus until it is dropped.
pub struct Kubelets(JoinHandle<()>);

impl Kubelets {
    pub fn start(client: &Client) -> Kubelets {
        Kubelets(client.begin(|client| async move {
            let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
            let mut seen = pin!(watcher(pods.clone(), watcher::Config::default()).default_backoff().applied_objects());
            while let Some(event) = seen.next().await {
                // A watch that broke is taken up again.
                let Ok(pod) = event else { continue };
                while let Err(error) = look_after(&pods, &pod).await {
                    if is_over(&error) {
                        break;
                    }
                    sleep(PAUSE).await;
                }
            }
        }))
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is done is done to the very pod that was seen: another may have its name by now.
async fn look_after(pods: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let name = pod.name_any();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if pod.metadata.deletion_timestamp.is_some() {
        let this = Preconditions { uid: pod.uid(), resource_version: None };
        pods.delete(&name, &DeleteParams::default().grace_period(0).preconditions(this)).await.map(drop)
    } else if has_node && !is_ready {
        let of = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status =
            json!({"phase": "Running", "conditions": [of("Ready"), of("ContainersReady"), of("PodScheduled")]});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    } else {
        Ok(())
    }
}
