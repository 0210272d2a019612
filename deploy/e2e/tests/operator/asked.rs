//! What a person asks through a kubeconfig, by `kubectl torus` and by `torusctl`: what is so, or why it cannot be told and what to do.

use crate::world::{NAMESPACE, PROGRAMS, SOON, World, condition, volume};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use torus_e2e::process::Process;
use torus_e2e::scratch::Scratch;

/// A call's outcome.
struct Said {
    done: bool,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Said {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { done: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The lines of a table, their columns one space apart.
    #[track_caller]
    fn table(&self) -> Vec<String> {
        assert!(self.err.is_empty(), "{}", self.err);
        self.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

/// `kubectl torus`, on what the environment says of clusters: nothing, unless the call says something.
fn kubectl_torus(args: &[&str]) -> Command {
    asking(&PROGRAMS.kubectl_torus, args)
}

fn asking(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("HOME", "/nonexistent").env("PATH", std::env::var_os("PATH").unwrap());
    command
}

/// Asks with a kubeconfig.
fn ask(kubeconfig: &Path, args: &[&str]) -> Said {
    Said::of(kubectl_torus(args).arg("--kubeconfig").arg(kubeconfig).output().unwrap())
}

/// Refused, with one sentence that has all of `words` in it, and nothing where answers go.
#[track_caller]
fn refused(said: &Said, words: &[&str]) {
    assert!(!said.done, "it is well: {}", said.out);
    assert!(said.out.is_empty(), "{}", said.out);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.starts_with("error: ") && said.err.len() < 600, "{}", said.err);
    for word in words {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    for noise in ["ApiError", "ServiceError", "Status {", "client error"] {
        assert!(!said.err.contains(noise), "{noise}: {}", said.err);
    }
}

const QUESTIONS: [&[&str]; 3] = [&["preflight"], &["status"], &["volume", "list"]];

#[test]
fn what_is_in_the_way_of_an_answer_is_said_with_what_to_do() {
    let scratch = Scratch::new("asked-test").unwrap();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let known = |server: &str| {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        });
        config.to_string()
    };
    // Nobody listens at port 1.
    let away = file("away", &known("https://127.0.0.1:1"));
    let missing = scratch.path().join("missing");
    for question in QUESTIONS {
        refused(&ask(&missing, question), &["cannot read the kubeconfig", "/missing", "No such file", "--kubeconfig"]);
        refused(&ask(scratch.path(), question), &["cannot read the kubeconfig", "Is a directory", "--kubeconfig"]);
        refused(&ask(&file("text", "{{{"), question), &["kubeconfig", "line 1", "--kubeconfig"]);
        refused(&ask(&file("empty", ""), question), &["kubeconfig", "no current context", "--context"]);
        let elsewhere = &[question, &["--context", "there"][..]].concat();
        refused(&ask(&away, elsewhere), &["no context \"there\"", "it has here", "kubectl config get-contexts"]);
        refused(&ask(&away, question), &["https://127.0.0.1:1 does not answer", "Connection refused", "--context"]);
        // Of the environment.
        let nothing = Said::of(kubectl_torus(question).output().unwrap());
        refused(&nothing, &["no Kubernetes cluster is known here", "--kubeconfig FILE", "KUBECONFIG"]);
        let wrong = Said::of(kubectl_torus(question).env("KUBECONFIG", &missing).output().unwrap());
        refused(&wrong, &["cannot read the kubeconfig", "/missing", "$KUBECONFIG"]);
        let right = Said::of(kubectl_torus(question).env("KUBECONFIG", &away).output().unwrap());
        refused(&right, &["https://127.0.0.1:1 does not answer"]);
    }
    // Who waits is told what for, and for how long.
    let waited = ask(&away, &["status", "--wait", "--timeout", "1"]);
    assert!(!waited.done && waited.err.contains("not ready after 1 s"), "{}", waited.err);
    assert!(waited.err.contains("https://127.0.0.1:1 does not answer"), "{}", waited.err);
}

#[test]
fn an_apiserver_that_does_not_give_an_answer_is_told_apart() {
    let world = World::bare();
    let admin = world.kubectl().kubeconfig();
    let help = ["Torus is not installed", "helm install torus charts/torus -n torus-system --create-namespace"];
    refused(&ask(admin, &["status"]), &help);
    refused(&ask(admin, &["volume", "list"]), &help);
    let before = ask(admin, &["preflight"]);
    assert!(!before.done && before.out.contains("there are no nodes"), "{}{}", before.out, before.err);
    // One that it does not know, one that may not, and one who does not know it.
    let with_token = |name: &str, token: &str, has_authority: bool| {
        let path = world.scratch.path().join(name);
        let mut cluster = json!({"server": world.plane.url()});
        if has_authority {
            cluster["certificate-authority"] = json!(world.plane.pki().file("ca.crt"));
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x", "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&path, config.to_string()).unwrap();
        path
    };
    let url = world.plane.url();
    let stranger = with_token("stranger", "made-up", true);
    let untrusting = with_token("untrusting", "made-up", false);
    world.kubectl().run(["create", "serviceaccount", "nobody"]).unwrap();
    let token = world.kubectl().run(["create", "token", "nobody"]).unwrap();
    let nobody = with_token("nobody", token.trim(), true);
    for question in QUESTIONS {
        refused(&ask(&stranger, question), &[url, "does not know who you are", "renew"]);
        refused(&ask(&untrusting, question), &[url, "ertificate"]);
        refused(&ask(&nobody, question), &[url, "system:serviceaccount:default:nobody", "cannot list", "right"]);
    }
}

#[test]
fn nodes_the_cluster_and_volumes_are_told_of_as_they_are() {
    let mut world = World::installed();
    let admin = world.kubectl().kubeconfig().to_owned();
    let ask = |args: &[&str]| ask(&admin, args);
    let none = "there is no TorusCluster in torus-system";
    refused(&ask(&["status"]), &[none, "make one", "deploy/manifests/cluster.yaml"]);
    refused(&ask(&["status", "-n", "default"]), &["there is no TorusCluster in default"]);
    let waited = ask(&["status", "--wait", "--timeout", "1"]);
    assert!(!waited.done && waited.err.contains("not ready after 1 s") && waited.err.contains(none), "{}", waited.err);
    assert!(!ask(&["status", "--timeout", "1"]).done, "a limit without a wait");
    assert_eq!(ask(&["volume", "list"]).table(), ["NAME SIZE USED STATE REDUNDANCY NODE CLAIM VOLUME"]);

    world.nodes(3);
    preflight(&world);

    // It is waited for until it is ready.
    let mut waiting = kubectl_torus(&["status", "--wait", "--timeout", "90", "--kubeconfig"]);
    waiting.arg(&admin);
    let mut waiting = Process::start("waiting", waiting, world.scratch.path()).unwrap();
    let log = waiting.log().to_owned();
    let steps = || -> Vec<String> {
        let told = fs::read_to_string(&log).unwrap();
        told.lines().filter(|line| line.contains(" s  ")).map(str::to_owned).collect()
    };
    // Each of them is waited for: what goes by between two looks is not told.
    waiting.until("it has looked", SOON, || Ok(!steps().is_empty())).unwrap();
    world.make_pool();
    waiting.until("it tells of another step", SOON, || Ok(steps().len() > 1)).unwrap();
    world.make_agents();
    let ended = waiting.wait(SOON).unwrap();
    let told = fs::read_to_string(&log).unwrap();
    assert!(ended.success(), "{told}");
    assert!(steps()[0].contains(none), "{told}");
    let ready = [
        "torus-system/main: Ready",
        "data Healthy",
        "agents 3/3",
        "copies 2/2",
        " on n0: Up",
        " on n1: Up",
        " on n2: Up",
    ];
    for words in ready {
        assert!(told.contains(words), "{words}: {told}");
    }
    let now = ask(&["status"]);
    assert!(now.done && ready.iter().all(|words| now.out.contains(words)), "{}", now.out);
    let documents = documents(&ask, &["status"]);
    assert_eq!((&documents[0]["is_ready"], &documents[0]["agents_ready"]), (&json!(true), &json!("3/3")));

    volumes(&world, &ask);

    // The same by torusctl, which finds the other program beside it.
    let config = admin.to_str().unwrap();
    let torusctl =
        |args: &[&str]| Said::of(asking(&PROGRAMS.torusctl, args).env("KUBECONFIG", config).output().unwrap());
    assert_eq!(torusctl(&["kube", "volume", "list"]).out, ask(&["volume", "list"]).out);
    assert_eq!(torusctl(&["-o", "yaml", "kube", "volume", "list"]).out, ask(&["volume", "list", "-o", "yaml"]).out);
    assert_eq!(torusctl(&["-o", "json", "preflight"]).out, ask(&["preflight", "-o", "json"]).out);
    let status = torusctl(&["status", "--wait", "--timeout", "60"]);
    assert!(status.done && status.out.contains("torus-system/main: Ready"), "{}{}", status.out, status.err);
    let csv = torusctl(&["-o", "csv", "status"]);
    assert!(!csv.done && csv.err.contains("prints tables, JSON and YAML"), "{}", csv.err);

    // What is not as it should be is said, and what to do.
    world.agents[1].kill().unwrap();
    world.until_all("n1 alone is told to be down", SOON, || {
        let less = ask(&["status"]);
        [" on n0: Up", " on n1: Down", " on n2: Up"].iter().all(|words| less.out.contains(words))
    });
}

/// One answer as JSON and as YAML, which say the same.
fn documents(ask: &dyn Fn(&[&str]) -> Said, question: &[&str]) -> Value {
    let as_ = |format| {
        let said = ask(&[question, &["-o", format]].concat());
        assert!(said.err.is_empty(), "{}", said.err);
        said.out
    };
    let json: Value = serde_json::from_str(&as_("json")).unwrap();
    assert_eq!(serde_yaml::from_str::<Value>(&as_("yaml")).unwrap(), json);
    json
}

fn preflight(world: &World) {
    let ask = |args: &[&str]| ask(world.kubectl().kubeconfig(), args);
    let info = |kernel: &str| {
        json!({"nodeInfo": {
            "operatingSystem": "linux", "architecture": "amd64", "kernelVersion": kernel, "kubeletVersion": "v1.34.4",
            "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
        }})
    };
    for node in ["n0", "n1", "n2"] {
        world.client.patch_status("nodes", "", node, &info("6.1.0"));
    }
    let sound = ask(&["preflight"]);
    assert!(sound.done, "{}{}", sound.out, sound.err);
    let cluster = "cluster PASS Kubernetes 1.34; 3 nodes can have agents";
    let node = |name: &str| format!("{name} PASS kernel 6.1.0; kubelet v1.34.4");
    assert_eq!(sound.table()[1..], [node("n0"), node("n1"), node("n2"), cluster.into()]);
    // One that is old, one that is down and closed, and pods that may not be what agents have to be.
    world.client.patch_status("nodes", "", "n0", &info("4.19.0"));
    world.node_is_ready("n1", "Unknown");
    world.client.patch("nodes", "", "n1", &json!({"spec": {"unschedulable": true}}));
    let label = "pod-security.kubernetes.io/enforce";
    world.kubectl().run(["label", "namespace", NAMESPACE, &format!("{label}=restricted"), "--overwrite"]).unwrap();
    let bad = ask(&["preflight"]);
    assert!(!bad.done);
    let lines = bad.table();
    for (at, words) in [
        (1, &["n0 FAIL", "\"4.19.0\"", "5.4 or newer"][..]),
        (2, &["n1 FAIL", "kubectl describe node n1", "kubectl uncordon n1"]),
        (3, &["n2 PASS"]),
        (4, &["cluster FAIL", "kubectl label namespace torus-system", "=privileged --overwrite"]),
    ] {
        assert!(words.iter().all(|words| lines[at].contains(words)), "{lines:#?}");
    }
    let verdicts = documents(&ask, &["preflight"]);
    let passes: Vec<_> = verdicts.as_array().unwrap().iter().map(|verdict| verdict["passes"].as_bool()).collect();
    assert_eq!(passes, [false, false, true, false].map(Some));
    // It is mended by doing what was said.
    world.client.patch_status("nodes", "", "n0", &info("6.1.0"));
    world.node_is_ready("n1", "True");
    world.kubectl().run(["uncordon", "n1"]).unwrap();
    world.kubectl().run(["label", "namespace", NAMESPACE, &format!("{label}=privileged"), "--overwrite"]).unwrap();
    let mended = ask(&["preflight"]);
    assert!(mended.done, "{}", mended.out);
}

fn volumes(world: &World, ask: &dyn Fn(&[&str]) -> Said) {
    for (name, spec) in [
        ("pg1", json!({"size": "8Mi", "claim": {"name": "data-pg1"}})),
        ("raw", json!({"size": "16Mi", "volumeMode": "Block"})),
        ("huge", json!({"size": "60Ti"})),
    ] {
        world.client.create("torusvolumes", &volume(name, &spec));
    }
    // As the provisioner and the attacher leave it for a claim of the StorageClass.
    let provisioned = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-1"},
        "spec": {
            "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "torus",
            "csi": {"driver": "csi.torus.storage", "volumeHandle": "00000000000000bb"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db", "name": "data-0", "uid": "u"},
        },
    });
    let attachment = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "csi-1"},
        "spec": {"attacher": "csi.torus.storage", "nodeName": "n2", "source": {"persistentVolumeName": "pvc-1"}},
    });
    let foreign = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "other"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "csi.example.com", "volumeHandle": "x"},
        },
    });
    for object in [provisioned, attachment, foreign] {
        world.kubectl().apply(&object.to_string()).unwrap();
    }
    let is_ready = |found: &Value| condition(found, "Ready").0 == "True";
    let [pg1, raw] = ["pg1", "raw"].map(|name| world.until(["torusvolumes", "default", name], "it is ready", is_ready));
    let refused = world.until(["torusvolumes", "default", "huge"], "it is refused", |found| {
        condition(found, "Ready").1 == "LargerThanPool"
    });
    let id = |found: &Value| found["status"]["volumeId"].as_str().unwrap_or_default().to_owned();
    let said = ask(&["volume", "list"]);
    assert!(said.done);
    let lines = said.table();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(
        lines[1].starts_with("default/huge 60Ti") && lines[1].contains(refused["status"]["state"].as_str().unwrap())
    );
    assert!(lines[2].starts_with("default/pg1 8Mi") && lines[2].ends_with(&format!("default/data-pg1 {}", id(&pg1))));
    assert!(lines[3].starts_with("default/raw 16Mi") && lines[3].ends_with(&id(&raw)), "{lines:#?}");
    assert_eq!(lines[4], "pvc-1 20Gi Attached n2 db/data-0 00000000000000bb");
    let listed = documents(ask, &["volume", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 4, "{listed:#}");
    assert_eq!(listed[1]["name"], "default/pg1", "{listed:#}");
    assert_eq!(listed[1]["claim"], "default/data-pg1", "{listed:#}");
    assert_eq!(listed[1]["volume"], json!(id(&pg1)), "{listed:#}");
    assert_eq!((&listed[3]["node"], &listed[3]["claim"]), (&json!("n2"), &json!("db/data-0")), "{listed:#}");
}
