//! What the operator made, so that two Kubernetes can be compared.

use crate::world::World;
use serde_json::Value;
use torus_e2e::kube::objects::comparable;

/// What a TorusCluster owns in its namespace: gone with it.
pub const OWNED: [&str; 6] =
    ["configmaps", "services", "statefulsets", "daemonsets", "deployments", "poddisruptionbudgets"];
/// What else the operator makes.
const FURTHER: [&str; 4] = ["csidrivers", "storageclasses", "persistentvolumes", "persistentvolumeclaims"];

/// The objects of some kinds that the operator made.
pub fn of_kinds(world: &World, kinds: &[&str]) -> Vec<Value> {
    let ours = "app.kubernetes.io/managed-by=torus-operator";
    kinds.iter().flat_map(|kind| world.client.list(kind, "", ours)).collect()
}

/// All objects that the operator made.
pub fn made(world: &World) -> Vec<Value> {
    [&OWNED[..], &FURTHER].iter().flat_map(|kinds| of_kinds(world, kinds)).collect()
}

/// Everything that the operator made, without what differs between two objects of the same spec.
pub fn objects(world: &World) -> Value {
    // What etcd is at differs by the port.
    let etcd: Vec<_> = world.etcd.iter().map(|etcd| (etcd.url(), "<etcd>")).collect();
    comparable(&made(world), &world.cluster(), &world.volumes(), &etcd).unwrap()
}
