//! How the cluster is, and waiting until it is ready.

use crate::access::{Access, Refusal};
use crate::output::{self, Format};
use anyhow::{Result, bail};
use kube::ResourceExt;
use kube::api::Api;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use torus_api::{AgentStatus, ConditionStatus, TorusCluster};

/// How often it is looked at while waiting.
const PERIOD: Duration = Duration::from_secs(1);

/// What of it is asked for.
#[derive(clap::Args)]
pub struct Args {
    /// Wait until it is ready, and say what it waits for
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
    timeout: u64,
}

/// A cluster, for people and programs.
#[derive(Serialize, PartialEq, Eq, Debug)]
pub struct Shown {
    name: String,
    namespace: String,
    phase: String,
    health: String,
    agents_ready: String,
    redundancy: String,
    used: String,
    version: String,
    is_ready: bool,
    /// What is not as it should be, and what to do.
    open: Vec<String>,
    agents: Vec<AgentStatus>,
}

impl Shown {
    fn of(cluster: &TorusCluster) -> Shown {
        let status = cluster.status.clone().unwrap_or_default();
        let is_current = status.observed_generation == cluster.metadata.generation.unwrap_or(0);
        let holds = |kind: &str| {
            status
                .conditions
                .iter()
                .any(|condition| condition.kind == kind && condition.status == ConditionStatus::True)
        };
        let is_open = |condition: &&torus_api::Condition| match condition.kind.as_str() {
            "Updating" => condition.status == ConditionStatus::True,
            _ => condition.status != ConditionStatus::True,
        };
        let said = status.conditions.iter().filter(is_open);
        let mut open: Vec<_> = said.map(|condition| format!("{}: {}", condition.reason, condition.message)).collect();
        // One thing is often the reason of several conditions.
        open.dedup();
        let text = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        Shown {
            name: cluster.name_any(),
            namespace: cluster.namespace().unwrap_or_default(),
            phase: text(status.phase.clone()),
            health: text(status.health.clone()),
            agents_ready: text(status.agents_summary.clone()),
            redundancy: text(status.redundancy.clone()),
            used: text(status.used.clone()),
            version: text(status.version.clone()),
            is_ready: is_current && holds("Ready"),
            open,
            agents: status.agents.clone(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}/{}: {}, data {}, agents {}, copies {}, used {}, version {}\n",
            self.namespace,
            self.name,
            self.phase,
            self.health,
            self.agents_ready,
            self.redundancy,
            self.used,
            self.version
        );
        for agent in &self.agents {
            let node = agent.node.as_deref().unwrap_or("no node yet");
            let stale = if agent.updated { "" } else { ", out of date" };
            text += &format!("  {} on {node}: {}{stale}\n", agent.name, agent.state);
        }
        for line in &self.open {
            text += &format!("  {line}\n");
        }
        text
    }
}

/// Prints how it is; whether it is ready.
pub async fn run(access: &Access, args: &Args, format: Format) -> Result<bool> {
    let namespace = &access.namespace;
    let api = Api::<TorusCluster>::namespaced(access.client.clone(), namespace);
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let waits = match access.list(&api, "TorusClusters").await {
            Err(Refusal::Passing(why)) if args.wait => why,
            Err(refusal) => return Err(refusal.into()),
            Ok(clusters) => {
                let shown: Vec<_> = clusters.iter().map(Shown::of).collect();
                let is_ready = shown.iter().any(|cluster| cluster.is_ready);
                if is_ready || !args.wait {
                    if shown.is_empty() {
                        bail!(
                            "there is no TorusCluster in {namespace}: make one, as deploy/manifests/cluster.yaml shows"
                        );
                    }
                    return print(&shown, format).map(|()| is_ready);
                }
                match shown.first() {
                    None => format!("there is no TorusCluster in {namespace} yet"),
                    Some(cluster) => cluster.open.first().cloned().unwrap_or_else(|| "it is being looked at".into()),
                }
            }
        };
        if waits != told {
            eprintln!("{:>4} s  {waits}", begun.elapsed().as_secs());
            told = waits;
        }
        if begun.elapsed() >= Duration::from_secs(args.timeout) {
            bail!("it is not ready after {} s: {told}", args.timeout);
        }
        sleep(PERIOD).await;
    }
}

fn print(shown: &[Shown], format: Format) -> Result<()> {
    match format {
        Format::Table => shown.iter().try_for_each(|cluster| output::print(&cluster.text())),
        Format::Json | Format::Yaml => output::document(&shown, format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn shown(generation: i64, conditions: Value) -> Shown {
        let object = json!({
            "apiVersion": "torus.storage/v1alpha1", "kind": "TorusCluster",
            "metadata": {"name": "main", "namespace": "torus-system", "generation": generation},
            "spec": {"storage": {"count": 3, "hostPath": {"size": "10Gi"}}, "etcd": {"managed": {}}},
            "status": {"observedGeneration": 2, "phase": "Ready", "agentsSummary": "3/3", "conditions": conditions},
        });
        Shown::of(&serde_json::from_value(object).expect("a TorusCluster"))
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "so it is", "lastTransitionTime": "", "observedGeneration": 2})
    }

    #[test]
    fn it_is_ready_when_its_newest_spec_is() {
        let ready = json!([condition("Ready", "True", "Ready"), condition("Updating", "False", "Current")]);
        let found = shown(2, ready.clone());
        assert!(found.is_ready && found.open.is_empty(), "{found:?}");
        assert!(!shown(3, ready).is_ready);
    }

    #[test]
    fn what_is_open_is_said() {
        let found =
            shown(2, json!([condition("Etcd", "False", "Unreachable"), condition("Ready", "False", "Unreachable")]));
        assert!(!found.is_ready);
        assert_eq!(found.open, ["Unreachable: so it is"]);
        assert!(
            found.text().contains("agents 3/3") && found.text().contains("Unreachable: so it is"),
            "{}",
            found.text()
        );
    }
}
