//! Installing, and what the chart brings to try itself.

use super::World;
use super::world::POD;
use crate::kube::kubectl::is_true;
use crate::kube::torus::NAMESPACE;
use anyhow::{Result, ensure};

/// The chart with its own values, then a TorusCluster.
pub fn install(world: &mut World) -> Result<()> {
    let cluster = world.cluster();
    cluster.install_chart(&[])?;
    cluster.make_pool(&cluster.usual_pool())?;
    cluster.kubectl().until(["pods", "-n", NAMESPACE], "all pods are ready", POD, |pods| {
        let pods = pods["items"].as_array();
        pods.is_some_and(|pods| !pods.is_empty() && pods.iter().all(|pod| is_true(pod, "Ready")))
    })?;
    Ok(())
}

/// What the chart offers to whoever has installed it.
pub fn helm_test(world: &mut World) -> Result<()> {
    let said = world.cluster().run_helm(["test", "torus", "-n", NAMESPACE, "--timeout=5m"])?;
    ensure!(said.contains("Succeeded"), "helm test said: {said}");
    Ok(())
}
