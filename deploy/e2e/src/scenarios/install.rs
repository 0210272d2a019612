//! Installing, and what the chart brings to try itself.

use super::World;
use crate::kube::torus::NAMESPACE;
use anyhow::{Result, ensure};

/// The chart with its own values, then a TorusCluster.
pub fn install(world: &mut World) -> Result<()> {
    let cluster = world.cluster();
    cluster.install_chart(&[])?;
    cluster.make_pool(&cluster.usual_pool())?;
    let pods = cluster.kubectl().json(["get", "pods", "-n", NAMESPACE])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = &pod["metadata"]["name"];
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            ensure!(container["ready"] == true, "container {} of {name} is not ready", container["name"]);
        }
    }
    Ok(())
}

/// What the chart offers to whoever has installed it.
pub fn helm_test(world: &mut World) -> Result<()> {
    let said = world.cluster().run_helm(["test", "torus", "-n", NAMESPACE, "--timeout=5m"])?;
    ensure!(said.contains("Succeeded"), "helm test said: {said}");
    Ok(())
}
