//! What each service account may do, by the apiserver's own word, kept in deploy/rights: a change of it is seen in review.

use crate::world::{NAMESPACE, World, helm, root};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

/// The accounts that the chart makes.
const ACCOUNTS: [&str; 4] = ["torus-operator", "torus-agent", "torus-csi-controller", "torus-etcd"];
/// Set to write the files instead of comparing.
const WRITE: &str = "TORUS_WRITE_RIGHTS";

#[test]
fn service_accounts_may_do_what_is_written_down_and_nothing_by_wildcard() {
    let world = World::installed();
    let mut tables: BTreeMap<String, String> = ACCOUNTS.map(|name| (name.to_owned(), rights(&world, name))).into();
    tables.insert("torus-guard".into(), guard(&world));
    for (account, table) in &tables {
        let file = format!("deploy/rights/{account}.txt");
        let path = root().join(&file);
        if std::env::var_os(WRITE).is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, table).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == *table,
            "{account} may do something else than {file} says. Run this test with {WRITE}=1 and look at the difference:\n{table}"
        );
        // Lines without a resource are what every account may ask: versions, health, what there is.
        for line in table.lines().skip(1).filter(|line| !line.starts_with('[')) {
            assert!(!line.contains('*'), "{account} has a wildcard: {line}");
        }
    }
    // Agents and etcd talk to nobody in Kubernetes: no more than any account may.
    assert_eq!(tables["torus-agent"], tables["torus-etcd"]);
    for forbidden in ["secrets", "roles", "clusterroles", "rolebindings", "serviceaccounts", "pods/exec"] {
        let operator = &tables["torus-operator"];
        let line = operator
            .lines()
            .find(|line| line.split_whitespace().next().is_some_and(|word| word.starts_with(forbidden)));
        let is_named =
            line.is_none_or(|line| forbidden == "secrets" && line.contains("[etcd]") && line.ends_with("[get]"));
        assert!(is_named, "{line:?}");
    }
}

/// As `kubectl auth can-i --list` prints it, in an order that does not change.
fn rights(world: &World, account: &str) -> String {
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    let printed = world.kubectl().run(["auth", "can-i", "--list", "-n", NAMESPACE, "--as", &user]).unwrap();
    let mut lines = printed.lines();
    let head = columns(lines.next().unwrap());
    let mut lines: Vec<_> = lines.map(columns).collect();
    lines.sort();
    format!("{head}\n{}\n", lines.join("\n"))
}

/// A line with its columns one space apart: how wide they are depends on all the others.
fn columns(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The account of the hook that runs before the chart is uninstalled: it is there then only, so its rules are read from the chart.
fn guard(world: &World) -> String {
    let (done, rendered) =
        helm(None, &["template", "torus", "charts/torus", "-n", NAMESPACE, "--show-only", "templates/guard.yaml"]);
    assert!(done, "{rendered}");
    world.kubectl().apply(&rendered.replace("kind: Job", "kind: Job\n# made up by nobody")).unwrap();
    world.kubectl().run(["delete", "job", "torus-guard", "-n", NAMESPACE]).unwrap();
    rights(world, "torus-guard")
}

#[test]
fn pods_run_with_no_more_than_they_need() {
    let mut world = World::installed();
    world.nodes(3);
    world.start_etcd();
    world.start_operator();
    let mut spec = world.spec();
    spec["etcd"] = serde_json::json!({"managed": {"members": 1}});
    world.apply_cluster(&spec).unwrap();
    let (done, rendered) =
        helm(None, &["template", "torus", "charts/torus", "-n", NAMESPACE, "--show-only", "templates/operator.yaml"]);
    assert!(done, "{rendered}");
    let operator = world.kubectl().feed(["create", "--dry-run=client", "-o", "json", "-f", "-"], &rendered).unwrap();
    let operator: Value = serde_json::from_str(&operator).unwrap();
    confined("operator", &operator["spec"]["template"]["spec"], true);
    let etcd = world.until(["statefulsets", NAMESPACE, "main-etcd-0"], "it is made", |set| !set.is_null());
    confined("etcd", &etcd["spec"]["template"]["spec"], false);
}

/// Whether no container can write to its root filesystem or get more rights; and is not root, where that is asked.
pub fn confined(what: &str, pod: &Value, is_not_root: bool) {
    if is_not_root {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}: {pod:#}");
        assert!(pod["securityContext"]["runAsUser"].as_u64().is_some_and(|user| user > 0), "{what}: {pod:#}");
    }
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{what}: {container:#}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{what}: {container:#}");
        assert_eq!(context["capabilities"]["drop"][0], "ALL", "{what}: {container:#}");
        assert!(context["privileged"].is_null(), "{what}: {container:#}");
    }
}
