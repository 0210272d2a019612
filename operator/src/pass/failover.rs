//! Nodes that died, in a pass.

use super::{Passes, Served, observe};
use crate::apply;
use crate::metadata::{self, sentence};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node as KubeNode, Taint};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use torus_agent::metadata::VolumeInfo;
use torus_api::TorusVolume;
use torus_plan::cluster::Agent;
use torus_plan::contract::{FENCED_FROM, FENCER, TAINT_OUT_OF_SERVICE, TAINT_VALUE};
use torus_plan::failover::{Policy, Sign, Step};
use torus_plan::story::Told;

impl Passes {
    pub(super) async fn failover(&mut self, served: &Served) {
        // Where the store does not answer, nobody can tell who is silent.
        if served.found().is_none() {
            return;
        }
        let spec = &served.cluster.spec.failover;
        let policy = Policy {
            fence: spec.fence,
            taint: spec.out_of_service_taint,
            grace: Duration::from_secs(u64::try_from(spec.grace_seconds).unwrap_or(0)),
        };
        let steps = self.failover.step(self.began.elapsed(), policy, &self.signs(served));
        // Fences wait for agents: all at the same time. In a step there is no taint beside a fence of the same node.
        let (fences, others): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| matches!(step, Step::Fence { .. }));
        let this = &*self;
        for step in &others {
            this.step(step, served).await;
        }
        join_all(fences.iter().map(|step| this.step(step, served))).await;
    }

    /// Remembers since when nodes are silent, and does nothing about it.
    pub(super) fn count_silence(&mut self, served: &Served) {
        if served.found().is_some() {
            let nothing = Policy { fence: false, taint: false, grace: Duration::MAX };
            drop(self.failover.step(self.began.elapsed(), nothing, &self.signs(served)));
        }
    }

    async fn step(&self, step: &Step, served: &Served) {
        let what = format!("{step:?}");
        if self.resting(&what).is_none() {
            let result = self.carry_out(step, served).await;
            self.account(&what, &result, served.cluster.as_ref(), "FailoverFailed").await;
        }
    }

    async fn carry_out(&self, step: &Step, served: &Served) -> Result<(), String> {
        let cluster = served.cluster.as_ref();
        let say = |error: apply::ApplyError| sentence(&error);
        let told = match step {
            Step::Dead { node, silent } => {
                let silent = silent.as_secs();
                let message = format!(
                    "node {node} is not ready and its agent has been silent for {silent} s: its volumes are fenced"
                );
                Told::warning("NodeDead", message)
            }
            Step::Back(node) => Told::normal("NodeBack", format!("node {node} is back")),
            Step::Fence { node, volume } => return self.fence(node, volume, served).await,
            Step::Taint(node) => {
                apply::taint_node(&self.client, node, true).await.map_err(say)?;
                let message = format!(
                    "node {node} is tainted {TAINT_OUT_OF_SERVICE}: all its volumes are fenced, and its pods are replaced elsewhere"
                );
                Told::warning("NodeOutOfService", message)
            }
            Step::Untaint(node) => {
                apply::taint_node(&self.client, node, false).await.map_err(say)?;
                let message = format!("node {node} is ready again: the taint {TAINT_OUT_OF_SERVICE} is taken away");
                Told::normal("NodeInService", message)
            }
        };
        self.teller.tell(cluster, told).await;
        Ok(())
    }

    async fn fence(&self, node: &str, volume: &str, served: &Served) -> Result<(), String> {
        let Some(info) = served.look.volumes.get(volume) else { return Ok(()) };
        let before = info.epoch.as_ref().map_or(0, |epoch| epoch.doc.epoch.0);
        let Some(fenced) = metadata::fence(self.store()?, info, node).await? else { return Ok(()) };
        let message = format!("{volume} was taken from {node}: epoch {before} → {}, {}", fenced.epoch, fenced.how);
        self.teller.tell(served.cluster.as_ref(), Told::warning("Fenced", message.clone())).await;
        if let Some(object) = self.object_of(volume) {
            self.teller.tell(object.as_ref(), Told::warning("Fenced", message)).await;
        }
        Ok(())
    }

    fn object_of(&self, volume: &str) -> Option<Arc<TorusVolume>> {
        self.watched.volumes.find(|object| {
            object.status.as_ref().and_then(|status| status.volume_name.as_deref()).is_some_and(|name| name == volume)
        })
    }

    fn signs(&self, served: &Served) -> BTreeMap<String, Sign> {
        let held = by_host(served, |info| Some(info.epoch.as_ref()?.doc.holder.host.as_str()));
        let owned = by_host(served, |info| Some(info.owner.as_ref()?.holder.host.as_str()));
        let fenced = by_host(served, fenced_from);
        let pods = self.watched.pods.state();
        // An agent whose disk is a claim goes by the name of its pod.
        let agents_at = |node: &str| -> Vec<&Agent> {
            let here =
                pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node));
            let names = here.map(|pod| pod.name_any()).chain([node.to_owned()]);
            let agents = served.found().map(|found| &found.agents);
            names.filter_map(|name| agents?.get(&name)).collect()
        };
        let sign = |node: &KubeNode| {
            let name = node.name_any();
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            let is_ours =
                |taint: &Taint| taint.key == TAINT_OUT_OF_SERVICE && taint.value.as_deref() == Some(TAINT_VALUE);
            let agents = agents_at(&name);
            let sign = Sign {
                kubelet: observe::kubelet(node),
                is_alive: owned.contains_key(name.as_str()) || agents.iter().any(|agent| agent.is_alive),
                is_tainted: taints.into_iter().flatten().any(is_ours),
                volumes: held.get(name.as_str()).filter(|_| name != FENCER).cloned().unwrap_or_default(),
            };
            // A node that has nothing of Torus is no business of ours.
            let is_known = !agents.is_empty()
                || sign.is_tainted
                || [&held, &owned, &fenced].iter().any(|hosts| hosts.contains_key(name.as_str()));
            is_known.then_some((name, sign))
        };
        self.watched.nodes.state().iter().filter_map(|node| sign(node)).collect()
    }
}

/// The dead node that a volume was taken from, until somebody opens it again.
pub(super) fn fenced_from(info: &VolumeInfo) -> Option<&str> {
    let holder = &info.epoch.as_ref()?.doc.holder;
    holder.serves.strip_prefix(FENCED_FROM).filter(|_| holder.host == FENCER)
}

/// The names of volumes, by the host that `host` finds in them.
fn by_host<'a>(
    served: &'a Served,
    host: impl Fn(&'a VolumeInfo) -> Option<&'a str>,
) -> BTreeMap<&'a str, BTreeSet<String>> {
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, info) in &served.look.volumes {
        if let Some(host) = host(info) {
            found.entry(host).or_default().insert(name.clone());
        }
    }
    found
}
