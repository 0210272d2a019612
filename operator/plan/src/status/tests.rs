use super::*;
use crate::cluster::{Agent, Pod, Store, plan};
use crate::health::{Copies, Health};
use crate::objects::Owner;
use serde_json::json;
use torus_api::ConditionStatus;

fn spec() -> TorusClusterSpec {
    let etcd = json!({"external": {"endpoints": ["http://10.0.0.9:2379"]}});
    serde_json::from_value(json!({"storage": {"count": 3, "hostPath": {"size": "3Ti"}}, "etcd": etcd})).unwrap()
}

fn seen(store: Store, pods: usize) -> Observed {
    let pod = |at: usize| Pod {
        set: "main-agent".into(),
        uid: format!("{at}"),
        node: Some(format!("n{at}")),
        is_ready: true,
        is_terminating: false,
        revision: "r1".into(),
    };
    let pods = (0..pods).map(|at| (format!("main-agent-{at}"), pod(at))).collect();
    Observed { store, pods, has_finalizer: true, ..Observed::default() }
}

fn healthy() -> StoreCluster {
    let agent = |used: u64| Agent {
        id: "00000000000000aa".into(),
        is_alive: true,
        version: Some("0.1.0".into()),
        failed_disks: 0,
        space: Some((used << 30, 3 << 40)),
    };
    StoreCluster {
        id: "c1".into(),
        agents: (0..3).map(|at| (format!("n{at}"), agent(400))).collect(),
        ring: None,
        health: Health::default(),
        volumes: ["db".to_owned()].into(),
    }
}

fn status(seen: &Observed, before: &TorusClusterStatus, now: &str) -> TorusClusterStatus {
    let owner = Owner { name: "main".into(), namespace: "torus-system".into(), uid: "u".into() };
    let plan = plan(&owner, &spec(), "own", seen);
    cluster_status("main", &spec(), 4, seen, &plan, before, now)
}

fn told(status: &TorusClusterStatus, kind: &str) -> (ConditionStatus, String, String) {
    let condition = status.conditions.iter().find(|condition| condition.kind == kind).unwrap();
    (condition.status, condition.reason.clone(), condition.message.clone())
}

#[test]
fn a_healthy_cluster_reads_as_the_columns_show_it() {
    let status = status(&seen(Store::Cluster(healthy()), 3), &TorusClusterStatus::default(), "t1");
    assert_eq!(status.phase.as_deref(), Some("Ready"));
    assert_eq!(status.health.as_deref(), Some("Healthy"));
    assert_eq!(status.agents_summary.as_deref(), Some("3/3"));
    assert_eq!(status.redundancy.as_deref(), Some("2/2"));
    assert_eq!(status.used.as_deref(), Some("1.2Ti/9Ti"));
    assert_eq!(status.version.as_deref(), Some("0.1.0"));
    assert_eq!((status.observed_generation, status.volumes), (4, 1));
    assert_eq!(told(&status, "Ready").0, ConditionStatus::True);
}

#[test]
fn agents_run_when_etcd_has_them_and_their_pods_are_ready() {
    let pods = |store: StoreCluster, ready: usize| {
        let mut seen = seen(Store::Cluster(store), 3);
        seen.pods.values_mut().skip(ready).for_each(|pod| pod.is_ready = false);
        seen
    };
    let run = |seen: &Observed| {
        let status = status(seen, &TorusClusterStatus::default(), "t1");
        (status.agents_summary.clone().unwrap_or_default(), told(&status, "Ready").1)
    };
    let with_agents = |count: usize| {
        let mut store = healthy();
        store.agents.retain(|name, _| *name < format!("n{count}"));
        store
    };
    assert_eq!(run(&pods(with_agents(0), 3)), ("0/3".into(), "AgentsNotReady".into()), "their pods are ready before");
    assert_eq!(run(&pods(with_agents(2), 3)), ("2/3".into(), "AgentsNotReady".into()));
    assert_eq!(run(&pods(with_agents(3), 2)), ("2/3".into(), "AgentsNotReady".into()));
    let mut worn = healthy();
    worn.agents.values_mut().for_each(|agent| agent.failed_disks = 1);
    assert_eq!(run(&pods(worn, 3)), ("3/3".into(), "Ready".into()), "they serve what their other disks hold");
    // Nobody says that they do not live.
    assert_eq!(run(&seen(Store::Failed("x".into()), 3)).0, "3/3");
}

#[test]
fn a_status_that_says_nothing_new_is_equal() {
    for store in [Store::Cluster(healthy()), Store::Failed("x".into()), Store::Empty, Store::NotAsked] {
        let seen = seen(store, 2);
        let first = status(&seen, &TorusClusterStatus::default(), "t1");
        assert_eq!(status(&seen, &first, "t2"), first);
    }
}

#[test]
fn what_is_wrong_is_said_where_one_looks_for_it() {
    let ready = status(&seen(Store::Cluster(healthy()), 3), &TorusClusterStatus::default(), "t1");
    let mut ill = healthy();
    ill.health.volumes.insert("db".into(), Copies { have: 1, asked: 2 });
    let degraded = status(&seen(Store::Cluster(ill), 3), &ready, "t2");
    assert_eq!((degraded.phase.as_deref(), degraded.health.as_deref()), (Some("Degraded"), Some("AtRisk")));
    assert!(told(&degraded, "Healthy").2.contains("db (1/2)"));
    assert_eq!(degraded.redundancy.as_deref(), Some("1/2"));
    let mut dead = healthy();
    dead.agents.values_mut().next().unwrap().is_alive = false;
    let fewer = status(&seen(Store::Cluster(dead), 3), &ready, "t2");
    assert_eq!(fewer.agents_summary.as_deref(), Some("2/3"), "its pod is ready, and it does not live");
    assert!(told(&fewer, "Ready").2.contains("2 of 3"));
    let lost = status(&seen(Store::Failed("cannot reach 10.0.0.9".into()), 3), &ready, "t2");
    assert_eq!(told(&lost, "Etcd"), (ConditionStatus::False, "Unreachable".into(), told(&lost, "Etcd").2));
    assert!(told(&lost, "Ready").2.contains("10.0.0.9"));
    assert_eq!(lost.health.as_deref(), Some("Unknown"));
    // What was recorded is not forgotten because nobody answers.
    assert_eq!(lost.cluster_id.as_deref(), Some("c1"));
    let fewer = status(&seen(Store::Cluster(healthy()), 2), &ready, "t2");
    assert!(told(&fewer, "Ready").2.contains("2 of 3"));
}
