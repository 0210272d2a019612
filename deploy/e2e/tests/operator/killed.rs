//! An operator that is killed every few seconds: what comes of an install, a growth and a deletion is what comes of undisturbed ones.

use crate::objects::{made, objects};
use crate::world::{SOON, World, condition, volume, with};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use torus_e2e::pauses::Pauses;

/// Runs the operator, and kills it now and then if asked, until something is seen.
struct Run {
    world: World,
    pauses: Option<Pauses>,
    next: Instant,
    kills: usize,
}

impl Run {
    fn until<T>(&mut self, what: &str, look: impl Fn(&World) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(seen) = look(&self.world) {
                return seen;
            }
            if let Some(pauses) = &mut self.pauses
                && Instant::now() >= self.next
            {
                self.world.kill_operator();
                self.world.start_operator();
                self.kills += 1;
                self.next = Instant::now() + pauses.draw();
            }
            assert!(
                begun.elapsed() < SOON * 3,
                "not in time: {what}; {:#}\n{}",
                self.world.cluster(),
                self.world.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn whole_life(seed: Option<u64>) -> [Value; 3] {
    let mut world = World::installed();
    world.nodes(4);
    world.start_kubelets();
    world.start_etcd();
    world.start_operator();
    let spec = with(&world.spec(), "/deletionPolicy", json!("RefuseWhileVolumesExist"));
    world.apply_cluster(&spec).unwrap();
    for name in ["a", "b"] {
        let made = volume(name, &json!({"size": "8Mi", "claim": {"name": name}}));
        world.kubectl().apply(&made.to_string()).unwrap();
    }
    let mut run = Run {
        world,
        pauses: seed.map(|seed| Pauses::new(seed, 1000, 3000)),
        next: Instant::now() + Duration::from_secs(1),
        kills: 0,
    };
    run.until("the cluster is made in etcd", |world| {
        world.cluster()["status"]["clusterId"].as_str().map(str::to_owned)
    });
    run.world.start_agents(4);
    let is_ready = |world: &World, agents: &str| {
        let cluster = world.cluster();
        let volumes = world.volumes();
        cluster["status"]["agentsSummary"] == agents
            && cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"]
            && condition(&cluster, "Ready").0 == "True"
            && condition(&cluster, "Updating").0 == "False"
            && volumes.len() == 2
            && volumes.iter().all(|volume| condition(volume, "Ready").0 == "True")
    };
    // An agent may be missed for a moment between the two looks: the budget, and nothing else that is made, is another then.
    let when_ready = |world: &World, agents: &str| {
        let made = is_ready(world, agents).then(|| objects(world));
        made.filter(|made| made["PodDisruptionBudget torus-system/main-agent"]["spec"]["maxUnavailable"] == 1)
    };
    let installed = run.until("three agents and two volumes", |world| when_ready(world, "3/3"));
    run.world.apply_cluster(&with(&spec, "/storage/count", json!(4))).unwrap();
    let grown = run.until("a fourth agent", |world| when_ready(world, "4/4"));
    run.world.kubectl().run(["delete", "torusvolume", "-n", "default", "--all", "--wait=false"]).unwrap();
    run.world.kubectl().run(["delete", "toruscluster", "main", "-n", "torus-system", "--wait=false"]).unwrap();
    run.until("all is gone", |world| {
        (world.cluster().is_null() && world.volumes().is_empty() && made(world).is_empty()).then_some(())
    });
    println!("killed {} times", run.kills);
    assert_eq!(seed.is_some(), run.kills > 5, "killed {} times", run.kills);
    let deleted = objects(&run.world);
    [installed, grown, deleted]
}

#[test]
fn an_operator_that_is_killed_all_the_time_comes_to_the_same() {
    let undisturbed = whole_life(None);
    let killed = whole_life(Some(7));
    for (at, (undisturbed, killed)) in ["installed", "grown", "deleted"].iter().zip(undisturbed.iter().zip(&killed)) {
        assert_eq!(undisturbed, killed, "{at}");
    }
}
