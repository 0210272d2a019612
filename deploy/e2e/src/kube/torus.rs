//! Torus on a cluster: its chart by helm, and a TorusCluster.

use super::cluster::Cluster;
use super::kubectl::is_true;
use super::shell::output;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where it is installed.
pub const NAMESPACE: &str = "torus-system";
/// The name of the TorusCluster.
pub const NAME: &str = "main";
/// How long a TorusCluster may take to become ready.
pub const READY: Duration = Duration::from_secs(300);
/// The data of each agent. Its space is taken at once, and that of all nodes is on one disk here.
const SIZE: &str = "2Gi";

/// The repository, asked of cargo when this runs: with a shared target directory one build serves several checkouts.
///
/// # Errors
/// Outside of cargo and of a checkout.
pub fn repository() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(std::env::current_dir, |path| Ok(path.into()));
    let here = here.context("cannot tell where the repository is")?;
    let root = here.ancestors().find(|directory| directory.join("charts/torus").is_dir());
    root.map(Path::to_path_buf).with_context(|| format!("no charts/torus above {}", here.display()))
}

impl Cluster {
    /// What helm prints; it must succeed.
    ///
    /// # Errors
    /// When helm fails; what it said is in the text.
    pub fn run_helm<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        output(self.helm_command().args(args))
    }

    /// A call of helm, not yet made.
    #[must_use]
    pub fn helm_command(&self) -> Command {
        let mut command = Command::new(self.helm());
        // Neither a person's settings nor a cache of theirs.
        let home = self.run().directory().join("helm");
        command.env("HELM_CACHE_HOME", &home).env("HELM_CONFIG_HOME", &home).env("HELM_DATA_HOME", &home);
        command.env_remove("KUBECONFIG").arg("--kubeconfig").arg(self.kubectl().kubeconfig());
        command
    }

    /// Installs the chart, or brings it to what it is now. `values`: `key=value` each.
    ///
    /// # Errors
    /// When helm fails, or the operator does not come up.
    pub fn install_chart(&self, values: &[&str]) -> Result<()> {
        let chart = repository()?.join("charts/torus");
        let chart = chart.to_str().context("a path that is no UTF-8")?;
        let args =
            ["upgrade", "--install", "torus", chart, "-n", NAMESPACE, "--create-namespace", "--wait", "--timeout=3m"];
        let values = values.iter().flat_map(|value| ["--set", value]);
        self.run_helm(args.into_iter().chain(values))?;
        self.progress().say("the chart is installed");
        Ok(())
    }

    /// Applies a TorusCluster, and waits until it is ready.
    ///
    /// # Errors
    /// When that takes too long; its status is in the text.
    pub fn make_pool(&self, pool: &Value) -> Result<()> {
        self.kubectl().apply(&pool.to_string())?;
        self.until_pool_is_ready()?;
        self.progress().say("the TorusCluster is ready");
        Ok(())
    }

    /// Waits until the TorusCluster is ready.
    ///
    /// # Errors
    /// When that takes too long; its status is in the text.
    pub fn until_pool_is_ready(&self) -> Result<Value> {
        let of = ["toruscluster", NAME, "-n", NAMESPACE];
        self.kubectl().until(of, "it is ready", READY, |pool| {
            pool["status"]["observedGeneration"] == pool["metadata"]["generation"] && is_true(pool, "Ready")
        })
    }

    /// A TorusCluster with agents on the first three nodes that come, and an etcd of its own. A fourth node has no agent.
    #[must_use]
    pub fn usual_pool(&self) -> Value {
        let count = self.nodes().len().min(3);
        json!({
            "apiVersion": "torus.storage/v1alpha1",
            "kind": "TorusCluster",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "replicas": count.min(2),
                "minReplicas": 1,
                "storage": {"count": count, "hostPath": {"size": SIZE}},
                "etcd": {"managed": {"members": if count >= 3 { 3 } else { 1 }}},
                "failover": {"outOfServiceTaint": true},
                "nodePlugin": {"flexVolumeDir": super::node::FLEX_VOLUME_DIR},
            },
        })
    }
}
