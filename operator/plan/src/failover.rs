//! A node that died: a state machine over what Kubernetes and the metadata store say of it.
//!
//! Kubernetes gives a node up after minutes, and its pods hang until then on volumes that "might still be in use". Torus does
//! not have to guess: an owner that was fenced by epoch gets nothing acknowledged any more, so its volumes can be opened elsewhere at once, whether the
//! node is dead or only cut off.
//!
//! 1. A node is suspected when its agent gives no sign of life and Kubernetes does not call it ready: both, as either alone has
//!    harmless reasons. A kubelet that is silent as well has been so for as long as Kubernetes takes to notice (`--node-monitor-grace-period`
//!    of the controller manager): from there on the agent's silence alone is counted. One that speaks, and says that its node is
//!    not ready, is given the grace time from when it said so.
//! 2. After the grace time its volumes are fenced: their epoch is raised in the metadata store, their agents refuse older ones.
//! 3. When that is seen to be so, the node is tainted out of service if that was asked for. Kubernetes then detaches its volumes and
//!    replaces its pods.
//! 4. The taint is taken away when the node is ready again; one that a person set is left alone.
//!
//! Invariants:
//! 1. No taint before every volume of the node is fenced.
//! 2. Nothing is done to a node that is ready, or whose agent lives, except to take our taint away.
//! 3. What was begun is found again after a restart of the operator: it is read from nodes and epochs, and only the grace time
//!    starts over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What Kubernetes says of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kubelet {
    /// It is ready.
    Ready,
    /// Its kubelet says that it is not.
    NotReady,
    /// Its kubelet says nothing any more.
    #[default]
    Silent,
}

/// What is seen of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sign {
    /// What Kubernetes says of it.
    pub kubelet: Kubelet,
    /// Whether anything of Torus on it gives a sign of life in the metadata store.
    pub is_alive: bool,
    /// Whether it has our taint.
    pub is_tainted: bool,
    /// Volumes that it opened last and nobody took from it since.
    pub volumes: BTreeSet<String>,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Raise the epoch of a volume.
    Fence {
        /// The node that opened it last.
        node: String,
        /// The volume.
        volume: String,
    },
    /// Taint a node out of service.
    Taint(String),
    /// Take the taint away.
    Untaint(String),
    /// A node was found dead: to be told.
    Dead {
        /// The node.
        node: String,
        /// For how long it was silent.
        silent: Duration,
    },
    /// A node is back: to be told.
    Back(String),
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Fence at all.
    pub fence: bool,
    /// Taint then.
    pub taint: bool,
    /// How long a node must have been silent.
    pub grace: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Its agent is silent since, and its node not ready since.
    Suspect { silent: Duration, not_ready: Option<Duration> },
    /// Told so.
    Dead,
}

/// What is remembered of nodes that are silent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Failover {
    nodes: BTreeMap<String, State>,
}

impl Failover {
    /// Looks at all nodes. `now`: on any clock that only goes forward. A look at which the metadata store did not answer must
    /// not be given: silence of the store is no silence of agents.
    pub fn step(&mut self, now: Duration, policy: Policy, signs: &BTreeMap<String, Sign>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.nodes.retain(|node, _| signs.contains_key(node));
        for (node, sign) in signs {
            let is_ready = sign.kubelet == Kubelet::Ready;
            if is_ready && sign.is_tainted {
                steps.push(Step::Untaint(node.clone()));
            }
            if sign.is_alive || is_ready {
                if self.nodes.get(node) == Some(&State::Dead) {
                    self.nodes.remove(node);
                    steps.push(Step::Back(node.clone()));
                }
                if sign.is_alive {
                    self.nodes.remove(node);
                    continue;
                }
            }
            let state = self.nodes.entry(node.clone()).or_insert(State::Suspect { silent: now, not_ready: None });
            if let State::Suspect { silent, not_ready } = state {
                let since = match sign.kubelet {
                    Kubelet::Ready => {
                        *not_ready = None;
                        continue;
                    }
                    Kubelet::NotReady => *not_ready.get_or_insert(now),
                    Kubelet::Silent => *silent,
                };
                let silent = now.saturating_sub(*silent);
                if now.saturating_sub(since) < policy.grace || !policy.fence {
                    continue;
                }
                *state = State::Dead;
                steps.push(Step::Dead { node: node.clone(), silent });
            }
            if !policy.fence {
                continue;
            }
            steps.extend(sign.volumes.iter().map(|volume| Step::Fence { node: node.clone(), volume: volume.clone() }));
            if sign.volumes.is_empty() && policy.taint && !sign.is_tainted {
                steps.push(Step::Taint(node.clone()));
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy { fence: true, taint: true, grace: Duration::from_secs(15) };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn seen(kubelet: Kubelet, is_alive: bool, volumes: &[&str], is_tainted: bool) -> BTreeMap<String, Sign> {
        let volumes = volumes.iter().map(ToString::to_string).collect();
        BTreeMap::from([("n1".into(), Sign { kubelet, is_alive, is_tainted, volumes })])
    }

    fn sign(is_ready: bool, is_alive: bool, volumes: &[&str], is_tainted: bool) -> BTreeMap<String, Sign> {
        seen(if is_ready { Kubelet::Ready } else { Kubelet::NotReady }, is_alive, volumes, is_tainted)
    }

    #[test]
    fn a_dead_node_is_fenced_then_tainted_then_taken_back() {
        let mut failover = Failover::default();
        assert_eq!(failover.step(at(0), POLICY, &sign(true, true, &["a"], false)), []);
        assert_eq!(failover.step(at(10), POLICY, &sign(false, false, &["a", "b"], false)), []);
        assert_eq!(failover.step(at(24), POLICY, &sign(false, false, &["a", "b"], false)), []);
        let fence = |volume: &str| Step::Fence { node: "n1".into(), volume: volume.into() };
        let dead = Step::Dead { node: "n1".into(), silent: at(15) };
        assert_eq!(
            failover.step(at(25), POLICY, &sign(false, false, &["a", "b"], false)),
            [dead, fence("a"), fence("b")]
        );
        assert_eq!(failover.step(at(26), POLICY, &sign(false, false, &["b"], false)), [fence("b")]);
        assert_eq!(failover.step(at(27), POLICY, &sign(false, false, &[], false)), [Step::Taint("n1".into())]);
        assert_eq!(failover.step(at(28), POLICY, &sign(false, false, &[], true)), []);
        assert_eq!(failover.step(at(90), POLICY, &sign(false, true, &[], true)), [Step::Back("n1".into())]);
        assert_eq!(failover.step(at(91), POLICY, &sign(true, true, &[], true)), [Step::Untaint("n1".into())]);
    }

    #[test]
    fn one_sign_of_life_is_enough_and_starts_the_grace_over() {
        let mut failover = Failover::default();
        for second in 0..100 {
            let has_sign = second % 14 == 0;
            assert_eq!(failover.step(at(second), POLICY, &sign(has_sign, false, &["a"], false)), []);
        }
        let mut failover = Failover::default();
        for second in 0..100 {
            assert_eq!(failover.step(at(second), POLICY, &sign(false, true, &["a"], false)), []);
        }
    }

    #[test]
    fn a_silent_kubelet_is_dead_once_its_agent_was_silent_for_the_grace_time() {
        let mut failover = Failover::default();
        // Kubernetes takes its time to notice.
        for second in 0..40 {
            assert_eq!(failover.step(at(second), POLICY, &seen(Kubelet::Ready, false, &["a"], false)), []);
        }
        let steps = failover.step(at(40), POLICY, &seen(Kubelet::Silent, false, &["a"], false));
        assert_eq!(steps[0], Step::Dead { node: "n1".into(), silent: at(40) });
        let mut failover = Failover::default();
        for second in 0..100 {
            let is_alive = second % 14 == 0;
            assert_eq!(failover.step(at(second), POLICY, &seen(Kubelet::Silent, is_alive, &["a"], false)), []);
        }
    }

    #[test]
    fn what_was_not_asked_for_is_not_done() {
        let mut failover = Failover::default();
        let no_taint = Policy { taint: false, ..POLICY };
        let no_fence = Policy { fence: false, ..POLICY };
        for second in [0, 20, 40] {
            assert_eq!(failover.step(at(second), no_fence, &sign(false, false, &["a"], false)), []);
        }
        let steps = failover.step(at(60), no_taint, &sign(false, false, &[], false));
        assert_eq!(steps, [Step::Dead { node: "n1".into(), silent: at(60) }]);
        assert_eq!(failover.step(at(61), no_taint, &sign(false, false, &[], false)), []);
    }

    proptest! {
        /// Whatever is seen in whatever order: no taint while a volume is not fenced, and nothing to a node that lives.
        #[test]
        fn nothing_happens_to_what_lives_and_no_taint_comes_before_the_fences(
            looks in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..3_usize, any::<bool>(), 0..30_u64), 1..60)
        ) {
            let mut failover = Failover::default();
            let mut now = 0;
            let mut silent_since = None;
            for (is_ready, is_alive, volumes, is_tainted, passed) in looks {
                now += passed;
                let names = &["a", "b", "c"][..volumes];
                let lives = is_ready || is_alive;
                let since = if lives { None } else { Some(silent_since.unwrap_or(now)) };
                silent_since = since;
                for step in failover.step(at(now), POLICY, &sign(is_ready, is_alive, names, is_tainted)) {
                    match step {
                        Step::Fence { .. } | Step::Dead { .. } => prop_assert!(now - since.unwrap() >= 15),
                        Step::Taint(_) => prop_assert!(now - since.unwrap() >= 15 && volumes == 0 && !is_tainted),
                        Step::Untaint(_) => prop_assert!(is_ready && is_tainted),
                        Step::Back(_) => prop_assert!(lives),
                    }
                }
            }
        }
    }
}
