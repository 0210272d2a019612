//! Pods are replaced one at a time, and only while no data is at risk.

use super::*;

#[test]
fn pods_are_replaced_one_after_the_other_and_only_while_the_data_is_redundant() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    let mut replaced = Vec::new();
    for _ in 0..30 {
        let plan = world.plan();
        let pods: Vec<_> = plan
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::ReplacePod { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        assert!(pods.len() <= 1);
        for action in &plan.actions {
            world.apply(action);
        }
        if !pods.is_empty() {
            // Its agent is away: nothing else is touched.
            assert!(
                matches!(world.plan().update, UpdateState::Waiting { .. } | UpdateState::Current),
                "{:?}",
                world.plan().update
            );
            replaced.extend(pods);
            world.settle();
            world.health().volumes.insert("db".into(), Copies { have: 1, asked: 2 });
            if let UpdateState::Waiting { why, .. } = world.plan().update {
                assert!(why.contains("db (1/2)"), "{why}");
            }
            assert!(!world.plan().actions.iter().any(|action| matches!(action, Action::ReplacePod { .. })));
        }
        world.settle();
    }
    assert_eq!(replaced, ["main-agent-2", "main-agent-1", "main-agent-0"]);
    assert_eq!(world.plan().update, UpdateState::Current);
}

#[test]
fn a_pod_that_does_not_work_is_replaced_without_asking_the_data() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    let update = world.plan().actions;
    assert!(matches!(&update[..], [Action::Update(_), ..]), "{update:?}");
    for action in &update {
        world.apply(action);
    }
    world.settle();
    world.seen.pods.get_mut("main-agent-0").unwrap().is_ready = false;
    world.settle();
    world.health().missing.insert("n1".into());
    let plan = world.plan();
    assert!(
        plan.actions.iter().any(|action| matches!(action, Action::ReplacePod { name, .. } if name == "main-agent-0"))
    );
}

#[test]
fn nothing_is_replaced_by_hand_strategy_or_while_nobody_can_tell() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    for action in world.plan().actions {
        world.apply(&action);
    }
    world.settle();
    world.seen.store = Store::Failed("no answer".into());
    let plan = world.plan();
    assert!(matches!(&plan.update, UpdateState::Waiting { why, .. } if why.contains("etcd")), "{:?}", plan.update);
    let budget = |action: &Action| matches!(action, Action::Update(object) if object.key.kind == Kind::PodDisruptionBudget && object.body["spec"]["maxUnavailable"] == 0);
    assert!(plan.actions.iter().any(budget), "{:?}", plan.actions);
    world.spec.update.kind = torus_api::UpdateType::OnDelete;
    assert!(matches!(world.plan().update, UpdateState::ByHand(pods) if pods.len() == 3));
}
