//! What `torus-operator guard` says before the chart is uninstalled: whether volumes hold data, and which.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use torus_api::{TorusCluster, TorusVolume};
use torus_plan::cluster::listed;
use torus_plan::contract::DRIVER;

/// Refuses while there are TorusVolumes, PersistentVolumes of the driver, or TorusClusters.
///
/// # Errors
/// When there are some, naming them; when the apiserver does not say.
pub async fn run(client: Client) -> Result<()> {
    let all = ListParams::default();
    let volumes = Api::<TorusVolume>::all(client.clone()).list(&all).await.context("cannot list TorusVolumes")?;
    let disks =
        Api::<PersistentVolume>::all(client.clone()).list(&all).await.context("cannot list PersistentVolumes")?;
    let clusters = Api::<TorusCluster>::all(client).list(&all).await.context("cannot list TorusClusters")?;
    let name = |namespace: Option<String>, name: String| format!("{}/{name}", namespace.unwrap_or_default());
    let volumes: Vec<_> = volumes.iter().map(|volume| name(volume.namespace(), volume.name_any())).collect();
    let is_ours = |disk: &&PersistentVolume| {
        disk.spec.as_ref().and_then(|spec| spec.csi.as_ref()).is_some_and(|csi| csi.driver == DRIVER)
    };
    let disks: Vec<_> = disks.iter().filter(is_ours).map(ResourceExt::name_any).collect();
    let clusters: Vec<_> = clusters.iter().map(|cluster| name(cluster.namespace(), cluster.name_any())).collect();
    let kinds = [("TorusVolumes", volumes), ("PersistentVolumes", disks), ("TorusClusters", clusters)];
    let found: Vec<_> = kinds
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| format!("{kind} {}", listed(names.iter().map(String::as_str))))
        .collect();
    if !found.is_empty() {
        bail!(
            "not uninstalled: there are {}. Nothing would look after them any more. Delete them first, or uninstall with --no-hooks to leave \
             disks and objects as they are",
            found.join("; ")
        );
    }
    println!("no volumes and no TorusClusters: nothing is lost");
    Ok(())
}
