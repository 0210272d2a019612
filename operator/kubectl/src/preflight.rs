//! Whether Torus can run on a cluster: a line for each node and one for the cluster, each PASS or FAIL with what mends it. From what the
//! apiserver says alone: nothing is started anywhere.

use crate::access::Access;
use crate::output::{self, Format, Record};
use anyhow::Result;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::ResourceExt;
use kube::api::Api;
use serde::Serialize;
use std::collections::BTreeMap;

/// The oldest Kubernetes whose rules in schemas are what Torus' schemas use.
const KUBERNETES_MIN: (u64, u64) = (1, 30);
/// The oldest kernel that is tried: io_uring, where it is allowed, and FUSE.
const KERNEL_MIN: (u64, u64) = (5, 4);
/// What an agent is sure to get.
const MEMORY_MIN_BYTES: u64 = 512 << 20;
/// Nodes for two copies that survive the loss of one.
const NODES_MIN: usize = 3;
/// The label by which a namespace says what its pods may be.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce";

/// One line.
#[derive(Serialize, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// A node, or the cluster.
    subject: String,
    /// Whether Torus can run there.
    passes: bool,
    /// What is so.
    notes: Vec<String>,
    /// What mends what is not so.
    fixes: Vec<String>,
}

impl Record for Verdict {
    const COLUMNS: &'static [&'static str] = &["SUBJECT", "RESULT", "NOTES"];

    fn cells(&self) -> Vec<String> {
        let (word, text) = if self.passes { ("PASS", &self.notes) } else { ("FAIL", &self.fixes) };
        vec![self.subject.clone(), word.into(), text.join("; ")]
    }
}

/// Prints all lines; whether all pass.
pub async fn run(access: &Access, format: Format) -> Result<bool> {
    let Access { client, namespace, .. } = access;
    let nodes = access.list(&Api::<Node>::all(client.clone()), "nodes").await?;
    let found = Api::<Namespace>::all(client.clone()).get_opt(namespace).await;
    let found = found.map_err(|error| access.refusal("read the namespace", &error))?;
    let version = client.apiserver_version().await;
    let version = version.map_err(|error| access.refusal("ask for the version", &error))?;
    let mut verdicts: Vec<_> = nodes.iter().map(of_node).collect();
    let usable = verdicts.iter().filter(|verdict| verdict.passes).count();
    let labels = found.map(|found| found.labels().clone());
    let found = format!("{}.{}", version.major, version.minor);
    verdicts.push(of_cluster(&found, (usable, nodes.len()), namespace, labels.as_ref()));
    output::list(&verdicts, format)?;
    Ok(verdicts.iter().all(|verdict| verdict.passes))
}

fn verdict(subject: String, notes: Vec<String>, fixes: Vec<String>) -> Verdict {
    Verdict { subject, passes: fixes.is_empty(), notes, fixes }
}

/// What is to be said of a node.
fn of_node(node: &Node) -> Verdict {
    let name = node.name_any();
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.clone().unwrap_or_default();
    let is_ready =
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let memory = status.allocatable.and_then(|amounts| bytes(&amounts.get("memory")?.0)).unwrap_or(0);
    let mut fixes = Vec::new();
    if !is_ready {
        fixes.push(format!("it is not ready: look at its kubelet, kubectl describe node {name}"));
    }
    if info.operating_system != "linux" {
        fixes.push(format!("it runs {:?}: Torus runs on Linux", info.operating_system));
    }
    if !["amd64", "arm64"].contains(&info.architecture.as_str()) {
        fixes.push(format!("its processor is {:?}: images are there for amd64 and arm64", info.architecture));
    }
    if version(&info.kernel_version).is_none_or(|kernel| kernel < KERNEL_MIN) {
        let (major, minor) = KERNEL_MIN;
        fixes.push(format!("its kernel is {:?}: bring it to {major}.{minor} or newer", info.kernel_version));
    }
    if memory < MEMORY_MIN_BYTES {
        fixes.push(format!("it has {} MiB for pods: an agent needs {} MiB", memory >> 20, MEMORY_MIN_BYTES >> 20));
    }
    let is_open = !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    if !is_open {
        fixes.push(format!("no pods are placed there: kubectl uncordon {name}"));
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let keeps_away = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
    let mut notes = vec![format!("kernel {}", info.kernel_version), format!("kubelet {}", info.kubelet_version)];
    for taint in taints.iter().filter(|taint| is_open && is_ready && keeps_away(&taint.effect)) {
        notes.push(format!("an agent runs there only if spec.agent.tolerations names the taint {}", taint.key));
    }
    verdict(name, notes, fixes)
}

/// What is to be said of the whole. `nodes`: how many can have agents, and how many there are. `labels`: of the namespace, where there is
/// one.
fn of_cluster(
    found: &str,
    (nodes, all): (usize, usize),
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> Verdict {
    let mut notes = vec![format!("Kubernetes {found}"), format!("{nodes} nodes can have agents")];
    let mut fixes = Vec::new();
    if version(found).is_none_or(|found| found < KUBERNETES_MIN) {
        let (major, minor) = KUBERNETES_MIN;
        fixes.push(format!("it is Kubernetes {found}: bring it to {major}.{minor} or newer"));
    }
    if all == 0 {
        fixes.push("there are no nodes: add some to the cluster, and look at kubectl get nodes".into());
    } else if nodes == 0 {
        fixes.push("no node can have an agent: mend one of those above".into());
    } else if nodes < NODES_MIN {
        notes.push(format!("with fewer than {NODES_MIN}, a node that is down for long leaves data without its copies"));
    }
    let enforced = labels.and_then(|labels| labels.get(ENFORCED)).filter(|level| *level != "privileged");
    if let Some(level) = enforced {
        fixes.push(format!(
            "pods in {namespace} may not be more than {level}, and agents set up devices: kubectl label namespace {namespace} {ENFORCED}=privileged --overwrite"
        ));
    }
    verdict("cluster".into(), notes, fixes)
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-', '+']);
    let number = |part: Option<&str>| part?.parse().ok();
    Some((number(parts.next())?, number(parts.next())?))
}

/// An amount of memory as nodes have it: a number, or one with Ki, Mi or Gi.
fn bytes(text: &str) -> Option<u64> {
    torus_api::Quantity(text.into()).bytes().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(change: impl Fn(&mut Value)) -> Verdict {
        let mut node = json!({
            "metadata": {"name": "n1"},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"memory": "8146932Ki"},
                "nodeInfo": {
                    "operatingSystem": "linux", "architecture": "amd64", "kernelVersion": "6.1.0-18-amd64",
                    "kubeletVersion": "v1.34.4", "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "",
                    "machineID": "", "osImage": "", "systemUUID": "",
                },
            },
        });
        change(&mut node);
        of_node(&serde_json::from_value(node).expect("a node"))
    }

    #[test]
    fn a_sound_node_passes_and_says_what_it_is() {
        let verdict = node(|_| ());
        assert!(verdict.passes);
        assert_eq!(verdict.cells()[1..], ["PASS", "kernel 6.1.0-18-amd64; kubelet v1.34.4"]);
    }

    #[test]
    fn whatever_is_missing_is_named_with_what_mends_it() {
        for (path, value, words) in [
            ("/status/conditions/0/status", json!("Unknown"), "kubectl describe node n1"),
            ("/status/nodeInfo/operatingSystem", json!("windows"), "runs on Linux"),
            ("/status/nodeInfo/architecture", json!("riscv64"), "amd64 and arm64"),
            ("/status/nodeInfo/kernelVersion", json!("4.19.0"), "5.4 or newer"),
            ("/status/nodeInfo/kernelVersion", json!(""), "5.4 or newer"),
            ("/status/allocatable/memory", json!("200Mi"), "200 MiB for pods"),
            ("/spec", json!({"unschedulable": true}), "kubectl uncordon n1"),
        ] {
            let verdict = node(|node| *node.pointer_mut(path).expect("a field") = value.clone());
            assert!(!verdict.passes && verdict.fixes.len() == 1, "{path}: {verdict:?}");
            assert!(verdict.cells()[2].contains(words), "{path}: {verdict:?}");
        }
    }

    #[test]
    fn a_taint_is_a_note() {
        let taint = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
        let verdict = node(|node| node["spec"]["taints"] = taint.clone());
        assert!(verdict.passes && verdict.cells()[2].contains("node-role.kubernetes.io/control-plane"), "{verdict:?}");
    }

    #[test]
    fn the_cluster_is_looked_at_as_a_whole() {
        assert!(of_cluster("1.34", (3, 3), "torus-system", None).passes);
        assert!(of_cluster("1.31+", (1, 3), "torus-system", None).passes);
        assert!(!of_cluster("1.29", (3, 3), "torus-system", None).passes);
        assert!(!of_cluster("1.34", (0, 3), "torus-system", None).passes);
        assert!(of_cluster("1.34", (0, 0), "torus-system", None).fixes[0].contains("there are no nodes"));
        let labels = BTreeMap::from([(ENFORCED.to_owned(), "restricted".to_owned())]);
        let verdict = of_cluster("1.34", (3, 3), "torus-system", Some(&labels));
        assert!(verdict.fixes[0].contains("kubectl label namespace torus-system"), "{verdict:?}");
    }
}
