use super::*;
use crate::metadata::{Embedded, init_cluster};
use torus_core::meta::{MetaOp, MetaReply, Txn};
use torus_core::peer::FreeSpace;

const TTL: Duration = Duration::from_secs(60);

async fn store() -> Embedded {
    let store = Embedded::in_memory();
    init_cluster(&store, 16_384, 2).await.unwrap();
    store
}

fn agent(name: &str, disks: &[u64]) -> AgentDoc {
    let disks = disks.iter().map(|id| DiskId(*id)).collect();
    AgentDoc { name: name.into(), domain: format!("rack-1/{name}"), weight: 10, disks }
}

fn alive(incarnation: u64, data: &str) -> AliveDoc {
    AliveDoc {
        incarnation: Incarnation(incarnation),
        data: data.into(),
        control: data.into(),
        http: None,
        version: "0".into(),
        space: FreeSpace::default(),
        failed_disks: vec![],
    }
}

async fn shown(store: &Embedded, id: AgentId) -> Option<AliveDoc> {
    list_agents(store).await.unwrap().into_iter().find(|agent| agent.id == id).unwrap().alive
}

#[tokio::test]
async fn an_agent_is_admitted_once_and_kept_up_to_date() {
    let store = store().await;
    let first = register_agent(&store, AgentId(1), &agent("n1", &[11])).await.unwrap();
    let again = register_agent(&store, AgentId(1), &agent("n1", &[11])).await.unwrap();
    assert_eq!(again, first, "nothing is written when nothing changed");
    let grown = register_agent(&store, AgentId(1), &agent("n1", &[12, 11])).await.unwrap();
    assert_eq!(grown.doc.disks, [DiskId(11), DiskId(12)]);
    // A disk that is not there today stays known.
    let less = AgentDoc { weight: 5, ..agent("n1", &[12]) };
    let kept = register_agent(&store, AgentId(1), &less).await.unwrap();
    assert_eq!((kept.doc.disks.len(), kept.doc.weight), (2, 5));
    let agents = list_agents(&store).await.unwrap();
    assert_eq!(agents, [AgentInfo { id: AgentId(1), doc: kept, alive: None }]);
}

#[tokio::test]
async fn a_name_belongs_to_one_agent() {
    let store = store().await;
    register_agent(&store, AgentId(1), &agent("n1", &[11])).await.unwrap();
    let error = register_agent(&store, AgentId(2), &agent("n1", &[21])).await.unwrap_err();
    assert!(matches!(error, AgentError::NameTaken { other: AgentId(1), .. }), "{error}");
    // A new name sets the old one free.
    register_agent(&store, AgentId(1), &agent("n9", &[11])).await.unwrap();
    register_agent(&store, AgentId(2), &agent("n1", &[21])).await.unwrap();
    let names: Vec<_> = list_agents(&store).await.unwrap().into_iter().map(|a| (a.doc.doc.name, a.id)).collect();
    assert_eq!(names, [("n1".to_string(), AgentId(2)), ("n9".into(), AgentId(1))]);
    // Many at once: one gets it.
    let docs: Vec<_> = (100..110).map(|n| agent("new", &[n])).collect();
    let all = docs.iter().zip(100..).map(|(doc, id)| register_agent(&store, AgentId(id), doc));
    let admitted = futures::future::join_all(all).await;
    assert_eq!(admitted.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(admitted.iter().all(|result| matches!(result, Ok(_) | Err(AgentError::NameTaken { .. }))));
}

#[tokio::test]
async fn foreign_and_wrong_disks_are_refused_by_name() {
    let store = store().await;
    register_agent(&store, AgentId(1), &agent("n1", &[11, 12])).await.unwrap();
    let copied = register_agent(&store, AgentId(2), &agent("n2", &[21, 12])).await.unwrap_err();
    assert!(matches!(&copied, AgentError::DiskTaken { disk: DiskId(12), other: AgentId(1), .. }), "{copied}");
    assert!(copied.to_string().contains("\"n1\""), "{copied}");
    let other = register_agent(&store, AgentId(1), &agent("n1", &[13])).await.unwrap_err();
    assert!(other.to_string().contains(&DiskId(11).to_string()), "{other}");
}

#[tokio::test]
async fn malformed_documents_are_refused() {
    let store = store().await;
    let cases = [
        (AgentDoc { name: "a b".into(), ..agent("n", &[1]) }, "agent's name"),
        (AgentDoc { name: String::new(), ..agent("n", &[1]) }, "agent's name"),
        (AgentDoc { domain: "/n".into(), ..agent("n", &[1]) }, "failure domain"),
        (AgentDoc { domain: "a/../b".into(), ..agent("n", &[1]) }, "failure domain"),
        (agent("n", &[]), "no disk"),
    ];
    for (doc, reason) in cases {
        let error = register_agent(&store, AgentId(1), &doc).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(list_agents(&store).await.unwrap(), []);
}

#[tokio::test]
async fn a_heartbeat_shows_and_is_kept_and_ends() {
    let store = store().await;
    let id = AgentId(1);
    let early = Heartbeat::begin(&store, id, alive(1, "a:1"), TTL).await.unwrap_err();
    assert!(matches!(early, AgentError::NotRegistered(_)), "{early}");
    register_agent(&store, id, &agent("n1", &[11])).await.unwrap();
    let mut heartbeat = Heartbeat::begin(&store, id, alive(1, "a:1"), TTL).await.unwrap();
    assert_eq!(shown(&store, id).await, Some(alive(1, "a:1")));
    heartbeat.beat(&store).await.unwrap();
    let full = AliveDoc { space: FreeSpace { free: 0, total: 9 }, ..alive(1, "a:1") };
    heartbeat.update(&store, full.clone()).await.unwrap();
    heartbeat.beat(&store).await.unwrap();
    assert_eq!(shown(&store, id).await, Some(full));
    heartbeat.end(&store).await.unwrap();
    assert_eq!(shown(&store, id).await, None);
}

/// As after an etcd outage longer than the lease.
#[tokio::test]
async fn a_lost_heartbeat_is_laid_down_again() {
    let store = store().await;
    let id = AgentId(1);
    register_agent(&store, id, &agent("n1", &[11])).await.unwrap();
    let mut heartbeat = Heartbeat::begin(&store, id, alive(1, "a:1"), TTL).await.unwrap();
    for changed in [alive(1, "a:1"), AliveDoc { version: "1".into(), ..alive(1, "a:1") }] {
        store.revoke(heartbeat.lease).await.unwrap();
        assert_eq!(shown(&store, id).await, None);
        heartbeat.update(&store, changed.clone()).await.unwrap();
        assert_eq!(shown(&store, id).await, Some(changed));
    }
    // Somebody removed the key alone.
    let txn = Txn { when: vec![], then: vec![Write::Delete(keys::alive(id))] };
    assert!(matches!(store.execute(MetaOp::Txn(txn)).await.unwrap(), MetaReply::Committed(_)));
    heartbeat.beat(&store).await.unwrap();
    assert!(shown(&store, id).await.is_some());
}

#[tokio::test]
async fn a_later_run_takes_over_and_the_earlier_one_stops() {
    let store = store().await;
    let id = AgentId(1);
    register_agent(&store, id, &agent("n1", &[11])).await.unwrap();
    let mut first = Heartbeat::begin(&store, id, alive(1, "a:1"), TTL).await.unwrap();
    let mut second = Heartbeat::begin(&store, id, alive(2, "b:1"), TTL).await.unwrap();
    for result in [first.beat(&store).await, first.update(&store, alive(1, "a:2")).await] {
        let error = result.unwrap_err();
        assert!(matches!(&error, AgentError::Superseded { other, .. } if other.data == "b:1"), "{error}");
        assert!(!error.is_transient());
    }
    second.beat(&store).await.unwrap();
    assert_eq!(shown(&store, id).await, Some(alive(2, "b:1")));
    for incarnation in [1, 2] {
        let back = Heartbeat::begin(&store, id, alive(incarnation, "c:1"), TTL).await.unwrap_err();
        assert!(matches!(&back, AgentError::Earlier { .. }), "{back}");
    }
    second.beat(&store).await.unwrap();
}
