//! The schemas, as a real apiserver takes and applies them.

use crate::world::{World, cluster, root, volume, with};
use serde_json::{Value, json};

/// Applied by the server, which says what is wrong with it.
fn refusal(world: &World, object: &Value) -> Option<String> {
    world
        .kubectl()
        .feed(["apply", "--server-side", "--force-conflicts", "-f", "-"], &object.to_string())
        .err()
        .map(|error| format!("{error:#}"))
}

fn sound_cluster() -> Value {
    cluster(&json!({
        "replicas": 2, "minReplicas": 1,
        "storage": {"count": 3, "hostPath": {"path": "/var/lib/torus/data", "size": "10Gi"}},
        "etcd": {"managed": {"members": 3}},
    }))
}

fn sound_volume() -> Value {
    volume("pg1", &json!({"size": "20Gi", "replicas": 2, "claim": {"name": "pg1"}}))
}

#[test]
fn a_real_apiserver_takes_the_schemas_without_a_warning_and_refuses_what_cannot_be_with_a_sentence() {
    let world = World::bare();
    let kubectl = world.kubectl();
    for file in ["torusclusters", "torusvolumes"] {
        let path = root().join(format!("crds/{file}.yaml"));
        let said = kubectl.feed(["apply", "--server-side", "-f", path.to_str().unwrap()], "").unwrap();
        assert!(!said.contains("Warning"), "{said}");
        let name = format!("crd/{file}.torus.storage");
        kubectl.run(["wait", "--for=condition=Established", &name, "--timeout=60s"]).unwrap();
        let found = kubectl.json(["get", &name]).unwrap();
        for kind in ["NonStructuralSchema", "KubernetesAPIApprovalPolicyConformant"] {
            assert!(!torus_e2e::kube::kubectl::is_true(&found, kind), "{found:#}");
        }
    }
    world.until_kinds_are_served();
    kubectl.run(["create", "namespace", "torus-system"]).unwrap();
    assert_eq!(refusal(&world, &sound_cluster()), None);
    assert_eq!(refusal(&world, &sound_volume()), None);
    new_ones(&world);
    changes(&world);
    columns_and_names(&world);
}

fn new_ones(world: &World) {
    let mut wrong = Vec::new();
    let long = "n".repeat(41);
    let clusters: &[(&str, Value, &str)] = &[
        ("/spec/minReplicas", json!(3), "minReplicas cannot be more than replicas"),
        ("/spec/replicas", json!(4), "each copy is on an agent of its own"),
        ("/spec/replicas", json!(0), "greater than or equal to 1"),
        ("/spec/replicas", json!(8), "less than or equal to 7"),
        ("/spec/replicas", json!(-1), "greater than or equal to 1"),
        ("/spec/replicas", json!("two"), "expected numeric"),
        ("/spec/storage/count", json!(0), "greater than or equal to 1"),
        ("/spec/storage/count", json!(513), "less than or equal to 512"),
        ("/spec/storage", json!({"count": 3}), "exactly one of storage.claim"),
        ("/spec/storage/devices", json!(["/dev/sdb"]), "exactly one of storage.claim"),
        ("/spec/storage", json!({"count": 3, "devices": ["/etc/passwd"]}), "should match"),
        ("/spec/storage", json!({"count": 3, "devices": ["/dev/../etc/passwd"]}), "has no .. in it"),
        ("/spec/storage", json!({"count": 3, "devices": ["/dev/sdb", "/dev/sdb"]}), "list each device once"),
        ("/spec/storage", json!({"count": 3, "devices": ["--size=1"]}), "should match"),
        ("/spec/storage/hostPath/path", json!("/var/../etc"), "has no .. in it"),
        ("/spec/storage/hostPath/path", json!("relative"), "should match"),
        ("/spec/storage/hostPath/path", json!("/-rf"), "should match"),
        ("/spec/storage/hostPath/size", json!("4Ki"), "size must be from 1Gi to 256Ti"),
        ("/spec/storage/hostPath/size", json!("300Ti"), "size must be from 1Gi to 256Ti"),
        ("/spec/storage/hostPath/size", json!("-1Gi"), "should match"),
        ("/spec/storage/hostPath/size", json!("1e30"), "should match"),
        ("/spec/storage/hostPath/size", json!(""), "should match"),
        ("/spec/etcd", json!({}), "exactly one of etcd.external and etcd.managed"),
        ("/spec/etcd/external", json!({"endpoints": ["http://a:1"]}), "exactly one of etcd.external and etcd.managed"),
        ("/spec/etcd/managed/members", json!(2), "members must be 1, 3 or 5"),
        ("/spec/etcd", json!({"external": {"endpoints": []}}), "at least 1 items"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1", "https://b:1"]}}), "or all https"),
        ("/spec/etcd", json!({"external": {"endpoints": ["file:///etc"]}}), "should match"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1"], "prefix": "no"}}), "3 chars long"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1"], "secret": {"name": "../x"}}}), "should match"),
        ("/spec/network/httpPort", json!(40_000), "dataPort, controlPort and httpPort must differ"),
        ("/spec/network/dataPort", json!(80), "greater than or equal to 1024"),
        ("/spec/network/dataPort", json!(70_000), "less than or equal to 65535"),
        ("/spec/placement/spreadLevel", json!(3), "a level that failure domains do not have"),
        ("/spec/placement/ring", json!("Random"), "Unsupported value"),
        ("/spec/placement/domainLabels", json!(["-x"]), "should match"),
        ("/spec/nodePlugin/kubeletDir", json!("/var/../x"), "has no .. in it"),
        ("/spec/nodePlugin/flexVolumeDir", json!("x"), "2 chars long"),
        ("/spec/failover/graceSeconds", json!(1), "greater than or equal to 5"),
        ("/spec/csi/replicas", json!(4), "less than or equal to 3"),
        ("/spec/storageClass/name", json!("Torus"), "should match"),
        ("/spec/image", json!(""), "at least 1 chars long"),
        ("/spec/image", json!("--help"), "should match"),
        ("/spec/image", json!("a b"), "should match"),
        ("/spec/csi/resizerImage", json!("-x"), "should match"),
        ("/spec/imagePullSecrets", json!([{"name": "../x"}]), "should match"),
        ("/spec/agent/priorityClassName", json!("--all"), "should match"),
        ("/spec/agent/tolerations", json!([{"key": "../x"}]), "should match"),
        ("/spec/agent/tolerations", json!([{"key": "a", "value": "$(reboot)"}]), "should match"),
        ("/spec/storage", json!({"count": 3, "claim": {"size": "10Gi", "storageClassName": "../x"}}), "should match"),
        ("/spec/etcd/managed/hostPath", json!("/var/../x"), "has no .. in it"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1/--x"]}}), "should match"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1"], "prefix": "/-rf/"}}), "should match"),
        ("/spec/agent/nodeSelector", json!({"a": "b c"}), "should match"),
        ("/spec/agent/resources/limits/memory", json!("lots"), "should match"),
        ("/metadata/name", json!(long), "at most 40 characters"),
    ];
    for (path, value, words) in clusters {
        let mut bad = with(&sound_cluster(), path, value.clone());
        if *path != "/metadata/name" {
            bad["metadata"]["name"] = json!("another");
        }
        let said = refusal(world, &bad).unwrap_or_else(|| "it was taken".into());
        wrong.extend((!said.contains(words)).then(|| format!("{path} = {value}: {said}")));
    }
    let volumes: &[(&str, Value, &str)] = &[
        ("/spec/size", json!("1Ki"), "size must be from 1Mi to 64Ti"),
        ("/spec/size", json!("65Ti"), "size must be from 1Mi to 64Ti"),
        ("/spec/size", json!("-20Gi"), "should match"),
        ("/spec/size", json!("lots"), "should match"),
        ("/spec/size", json!("99999999999999999999Gi"), "Too long"),
        ("/spec/size", Value::Null, "Required value"),
        ("/spec/replicas", json!(0), "greater than or equal to 1"),
        ("/spec/replicas", json!(8), "less than or equal to 7"),
        ("/spec/minReplicas", json!(3), "minReplicas cannot be more than replicas"),
        ("/spec/claim", json!({"name": "../../etc"}), "should match"),
        ("/spec/claim", json!({"name": "--all"}), "should match"),
        ("/spec/claim", json!({"name": ""}), "at least 1 chars long"),
        ("/spec/volumeName", json!("../x"), "should match"),
        ("/spec/volumeName", json!("-rf"), "should match"),
        ("/spec/ackMode", json!("Sometimes"), "Unsupported value"),
        ("/spec/accessMode", json!("ReadWriteMany"), "Unsupported value"),
        ("/spec/volumeMode", json!("Tape"), "Unsupported value"),
        ("/spec/fsType", json!("ntfs"), "Unsupported value"),
        ("/spec/deletionPolicy", json!("Recycle"), "Unsupported value"),
        ("/spec/cluster", json!({"name": "main"}), "Required value"),
        ("/spec/cluster", json!({"name": "../x", "namespace": "y"}), "should match"),
        ("/spec/cluster", json!({"name": "x", "namespace": "-n"}), "should match"),
        ("/metadata/name", json!("Not_A_Name"), "RFC 1123"),
    ];
    for (path, value, words) in volumes {
        let mut bad = with(&sound_volume(), path, value.clone());
        if *path != "/metadata/name" {
            bad["metadata"]["name"] = json!("another");
        }
        let said = refusal(world, &bad).unwrap_or_else(|| "it was taken".into());
        wrong.extend((!said.contains(words)).then(|| format!("{path} = {value}: {said}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let block = with(&with(&sound_volume(), "/spec/volumeMode", json!("Block")), "/spec/fsType", json!("xfs"));
    let said = refusal(world, &with(&block, "/metadata/name", json!("another"))).unwrap();
    assert!(said.contains("leave it out for a block device"), "{said}");
    // What nobody knows is named, by kubectl's own check; the apiserver drops it.
    for unknown in
        [with(&sound_cluster(), "/spec/sotrage", json!({})), with(&sound_volume(), "/spec/sise", json!("1Gi"))]
    {
        let said = world.kubectl().apply(&unknown.to_string()).unwrap_err();
        assert!(format!("{said:#}").contains("unknown field"), "{said:#}");
    }
}

fn changes(world: &World) {
    let mut wrong = Vec::new();
    let clusters: &[(&str, Value, &str)] = &[
        ("/spec/storage/count", json!(2), "can only grow"),
        ("/spec/storage/hostPath/size", json!("20Gi"), "keeps the size"),
        ("/spec/storage/hostPath/size", json!("5Gi"), "keeps the size"),
        ("/spec/storage/hostPath/path", json!("/data"), "the data is there"),
        ("/spec/storage", json!({"count": 3, "claim": {"size": "10Gi"}}), "kind of storage cannot be changed"),
        ("/spec/etcd", json!({"external": {"endpoints": ["http://a:1"]}}), "cannot be exchanged"),
        ("/spec/etcd/managed/members", json!(5), "members cannot be changed"),
        ("/spec/etcd/managed/hostPath", json!("/elsewhere"), "the data is there"),
        ("/spec/placement/ring", json!("Mod"), "placement.ring cannot be changed"),
    ];
    for (path, value, words) in clusters {
        let kubectl = world.kubectl();
        let bad = with(&sound_cluster(), path, value.clone());
        let patch = json!({"spec": replaced(&bad["spec"])}).to_string();
        let said = kubectl.run(["patch", "toruscluster", "main", "-n", "torus-system", "--type=merge", "-p", &patch]);
        let said = said.map_or_else(|error| format!("{error:#}"), |_| "it was taken".into());
        wrong.extend((!said.contains(words)).then(|| format!("{path} = {value}: {said}")));
    }
    let volumes: &[(&str, Value, &str)] = &[
        ("/spec/size", json!("19.9Gi"), "a volume never shrinks"),
        ("/spec/replicas", json!(3), "replicas cannot be changed"),
        ("/spec/replicas", Value::Null, "replicas cannot be changed"),
        ("/spec/minReplicas", json!(1), "minReplicas cannot be changed"),
        ("/spec/ackMode", json!("Received"), "ackMode cannot be changed"),
        ("/spec/accessMode", json!("ReadWriteOncePod"), "accessMode cannot be changed"),
        ("/spec/volumeMode", json!("Block"), "volumeMode cannot be changed"),
        ("/spec/fsType", json!("xfs"), "fsType cannot be changed"),
        ("/spec/claim", json!({"name": "other"}), "neither changed nor taken away"),
        ("/spec/claim", Value::Null, "neither changed nor taken away"),
        ("/spec/volumeName", json!("old"), "volumeName cannot be changed"),
        ("/spec/cluster", json!({"name": "b", "namespace": "c"}), "stays in its pool"),
    ];
    for (path, value, words) in volumes {
        let kubectl = world.kubectl();
        let field = path.strip_prefix("/spec/").unwrap();
        let patch = json!({"spec": {field: value}}).to_string();
        let said = kubectl.run(["patch", "torusvolume", "pg1", "--type=merge", "-p", &patch]);
        let said = said.map_or_else(|error| format!("{error:#}"), |_| "it was taken".into());
        wrong.extend((!said.contains(words)).then(|| format!("{path} = {value}: {said}")));
    }
    let grown =
        world.kubectl().run(["patch", "torusvolume", "pg1", "--type=merge", "-p", r#"{"spec":{"size":"0.5Ti"}}"#]);
    grown.unwrap();
}

/// A merge patch that leaves nothing of what was there in the kinds of storage and etcd.
fn replaced(spec: &Value) -> Value {
    let mut patch = spec.clone();
    for (part, kinds) in [("storage", ["claim", "hostPath"]), ("etcd", ["external", "managed"])] {
        for kind in kinds {
            if patch[part][kind].is_null() {
                patch[part][kind] = Value::Null;
            }
        }
    }
    patch
}

fn columns_and_names(world: &World) {
    let kubectl = world.kubectl();
    for (names, columns) in [
        ("tc", "NAME PHASE HEALTH AGENTS REDUNDANCY USED VERSION AGE"),
        ("tv", "NAME SIZE USED STATE REDUNDANCY NODE CLAIM AGE"),
    ] {
        let table = kubectl.run(["get", names, "-A"]).unwrap();
        let head = table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(head, format!("NAMESPACE {columns}"));
    }
    let both = kubectl.run(["get", "torus", "-A", "-o", "name"]).unwrap();
    assert!(
        both.contains("toruscluster.torus.storage/main") && both.contains("torusvolume.torus.storage/pg1"),
        "{both}"
    );
    for path in ["toruscluster.spec.storage.count", "torusvolume.spec.size", "torusvolume.status.used"] {
        let told = kubectl.run(["explain", path]).unwrap();
        assert!(told.contains("DESCRIPTION") && !told.contains("<empty>"), "{path}: {told}");
    }
}
