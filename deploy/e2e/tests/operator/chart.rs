//! The chart: sound, strict about its values, the source of deploy/manifests, and not to be uninstalled over data.

use crate::rights::confined;
use crate::world::{NAMESPACE, PROGRAMS, World, condition, helm, root, volume};
use serde_json::json;
use std::process::Command;

#[test]
fn the_chart_is_sound_and_refuses_values_that_are_not() {
    let (done, said) = helm(None, &["lint", "--strict", "charts/torus"]);
    assert!(done, "{said}");
    let (done, said) = helm(None, &["template", "torus", "charts/torus", "-n", NAMESPACE]);
    assert!(done, "{said}");
    for (value, words) in [
        ("image.repository=", "image"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.tga=1", "tga"),
        ("image.pullSecrets=x", "pullSecrets"),
        ("operator.replicas=0", "replicas"),
        ("operator.replicas=6", "replicas"),
        ("operator.replicas=two", "replicas"),
        ("operator.log=", "log"),
        ("operator.resources=lots", "resources"),
        ("operator.nodeSelector.a=1", "nodeSelector"),
        ("operator.tolerations=x", "tolerations"),
        ("operator.verbose=true", "verbose"),
        ("crds.install=maybe", "install"),
        ("guard.enabled=perhaps", "enabled"),
        ("storageClasses=", "storageClasses"),
        ("storageClasses={}", "storageClasses"),
        ("storageClasses={Bad_Name}", "storageClasses"),
        ("etcdSecrets=x", "etcdSecrets"),
        ("etcdSecrets={../x}", "etcdSecrets"),
        ("test.storageClass=", "storageClass"),
        ("test.storageClass=-x", "storageClass"),
        ("nonsense=1", "nonsense"),
    ] {
        let (done, said) = helm(None, &["template", "torus", "charts/torus", "--set", value]);
        assert!(!done && said.contains(words), "--set {value}: {said}");
    }
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let checked =
        Command::new(env!("CARGO")).args(["xtask", "manifests", "--check"]).current_dir(root()).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
}

/// The guard is run as the hook runs it, by its own account; the hook itself needs nodes.
#[test]
fn the_guard_names_what_would_be_lost() {
    let world = World::ready();
    let (done, rendered) =
        helm(None, &["template", "torus", "charts/torus", "-n", NAMESPACE, "--show-only", "templates/guard.yaml"]);
    assert!(done, "{rendered}");
    world.kubectl().apply(&rendered).unwrap();
    let job = world.kubectl().json(["get", "job", "torus-guard", "-n", NAMESPACE]).unwrap();
    confined("guard", &job["spec"]["template"]["spec"], true);
    world.kubectl().run(["delete", "job", "torus-guard", "-n", NAMESPACE]).unwrap();
    let account = world.account("torus-guard");
    let guard = || {
        let output = Command::new(&PROGRAMS.operator).arg("guard").env("KUBECONFIG", &account).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    world
        .kubectl()
        .apply(&volume("precious", &json!({"size": "8Mi", "claim": {"name": "precious"}})).to_string())
        .unwrap();
    world.until(["torusvolumes", "default", "precious"], "it is ready", |found| condition(found, "Ready").0 == "True");
    let (done, said) = guard();
    assert!(!done, "{said}");
    for words in
        ["TorusVolumes default/precious", "PersistentVolumes torus-", "TorusClusters torus-system/main", "--no-hooks"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    world.kubectl().run(["delete", "torusvolume", "precious", "--timeout=90s"]).unwrap();
    let (done, said) = guard();
    assert!(!done && said.contains("TorusClusters torus-system/main") && !said.contains("precious"), "{said}");
    world.kubectl().run(["delete", "toruscluster", "main", "-n", NAMESPACE, "--timeout=90s"]).unwrap();
    let (done, said) = guard();
    assert!(done, "{said}");
    // Uninstalled, the definitions stay: with them would go all objects of their kinds.
    let (done, said) = helm(Some(world.kubectl()), &["uninstall", "torus", "-n", NAMESPACE, "--no-hooks"]);
    assert!(done, "{said}");
    world.kubectl().run(["get", "crd", "torusclusters.torus.storage", "torusvolumes.torus.storage"]).unwrap();
}
