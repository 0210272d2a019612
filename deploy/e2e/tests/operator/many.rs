//! Five hundred volumes, each with its claim and its PersistentVolume: what the operator costs when nothing is to be done, and how long it takes to see that.

use crate::world::{SOON, World, condition, now, volume};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

const VOLUMES: usize = 500;
/// How long it is watched idling.
const IDLE: Duration = Duration::from_secs(60);

#[test]
fn five_hundred_volumes_cost_next_to_nothing_and_are_looked_through_in_seconds() {
    let mut world = World::ready();
    let manifests: Vec<_> = (0..VOLUMES)
        .map(|number| volume(&format!("v{number}"), &json!({"size": "4Mi", "claim": {"name": format!("c{number}")}})))
        .collect();
    let begun = Instant::now();
    world
        .kubectl()
        .feed(["create", "-f", "-"], &json!({"apiVersion": "v1", "kind": "List", "items": manifests}).to_string())
        .unwrap();
    all_are_ready(&world);
    println!("{VOLUMES} volumes and their claims were made in {:.1} s", begun.elapsed().as_secs_f64());
    let claims = world.client.list("persistentvolumeclaims", "default", "");
    let is_bound = |claim: &&Value| claim["status"]["phase"] == "Bound";
    assert_eq!(claims.iter().filter(is_bound).count(), VOLUMES);
    // Until it has come to rest.
    let quiet = |world: &World, span: Duration| {
        let since = now();
        sleep(span);
        world.writes(&since)
    };
    let begun = Instant::now();
    while !quiet(&world, Duration::from_secs(4)).is_empty() {
        assert!(begun.elapsed() < SOON, "it does not come to rest: {:?}", quiet(&world, Duration::from_secs(4)));
    }
    let operator = world.operator.as_ref().unwrap();
    let before = operator.usage().unwrap();
    let writes = quiet(&world, IDLE);
    let after = world.operator.as_ref().unwrap().usage().unwrap();
    let share = (after - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let mib = after.rss_bytes_max >> 20;
    println!("idle: {share:.2} % of a core, at most {mib} MiB, writes: {writes:?}");
    assert!(writes.is_empty(), "nothing changed, and this was written: {writes:?}");
    assert!(share < 2.0, "{share:.2} % of a core");
    assert!(mib < 128, "{mib} MiB");
    // A full look at everything: one that was just started knows nothing.
    world.kill_operator();
    let since = now();
    let begun = Instant::now();
    world.start_operator();
    while metric(&world, "torus_operator_passes_total").is_none_or(|passes| passes < 2.0) {
        assert!(begun.elapsed() < SOON, "no pass: {}", world.log());
        sleep(Duration::from_millis(50));
    }
    // The lease of the one that was killed has to run out first; what comes after that counts.
    let whole = begun.elapsed();
    let took = metric(&world, "torus_operator_longest_pass_seconds").unwrap();
    println!("a full look took {took:.2} s, {:.1} s after the start", whole.as_secs_f64());
    assert!(took < 20.0, "{took} s");
    let writes = world.writes(&since);
    assert!(writes.is_empty(), "nothing changed, and this was written: {writes:?}");
}

fn all_are_ready(world: &World) {
    let begun = Instant::now();
    loop {
        let ready = world.volumes().iter().filter(|volume| condition(volume, "Ready").0 == "True").count();
        if ready == VOLUMES {
            return;
        }
        assert!(begun.elapsed() < SOON * 4, "{ready} of {VOLUMES}: {}", world.log());
        sleep(Duration::from_secs(1));
    }
}

fn metric(world: &World, name: &str) -> Option<f64> {
    torus_e2e::http::metric(world.http, name).ok()
}
