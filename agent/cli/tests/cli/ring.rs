//! The ring, over a metadata store that is one file, with agents that were registered there.

use crate::Home;
use torus_agent::metadata::{Embedded, register_agent};
use torus_core::ids::{AgentId, DiskId};
use torus_core::meta::docs::AgentDoc;

const STORE: [&str; 2] = ["--etcd", "embedded:meta.redb"];

fn with_store<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &STORE].concat()
}

/// A home with a cluster of agents `n1` to `n4`, each on a machine of its own, of which none runs.
fn cluster(init: &[&str]) -> Home {
    let home = Home::new();
    home.prints(&with_store(&[&["init"], init].concat()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        let store = Embedded::open(&home.path().join("meta.redb")).expect("init made it");
        for number in 1..=4 {
            let name = format!("n{number}");
            let disks = vec![DiskId(number)];
            let doc =
                AgentDoc { name: name.clone(), domain: format!("rack-{}/{name}", number % 2), weight: 100, disks };
            register_agent(&store, AgentId(number), &doc).await.expect("these are sound");
        }
    });
    home
}

#[test]
fn agents_are_put_into_the_ring_and_shown() {
    let home = cluster(&[]);
    let (code, message) = home.fails(&with_store(&["ring", "get"]));
    assert!(code == 1 && message.contains("torusctl peer add"), "{message}");
    let said = home.prints(&with_store(&["peer", "add", "n1", "2"]));
    assert_eq!(said, "in the ring: n1, n2. It is at version 1 and has 2 agents now\n");
    home.prints(&with_store(&["peer", "add", "--all-peers"]));
    let ring = home.json(&with_store(&["ring", "get"]));
    assert_eq!((&ring["version"], &ring["kind"], &ring["replicas"]), (&2.into(), &"rendezvous".into(), &2.into()));
    let shares: Vec<f64> = ring["agents"].as_array().unwrap().iter().map(|a| a["share"].as_f64().unwrap()).collect();
    assert!(shares.len() == 4 && shares.iter().all(|share| (0.23..0.27).contains(share)), "{shares:?}");
    let shown = home.prints(&with_store(&["ring", "get"]));
    assert!(shown.starts_with("ring v2: rendezvous, replicas 2\nAGENT"), "{shown}");
    let peers = home.json(&with_store(&["peer", "list"]));
    assert_eq!((&peers[3]["name"], &peers[3]["up"]), (&"n4".into(), &false.into()));
}

#[test]
fn a_change_is_simulated_before_it_is_made() {
    let home = cluster(&[]);
    home.prints(&with_store(&["peer", "add", "n1", "n2", "n3"]));
    let wanted = ["--type", "ketama", "--all-peers", "-r", "3"];
    let simulated = home.json(&with_store(&[&["ring", "simulate"], &wanted[..]].concat()));
    let moved = simulated["copies_moved"].as_f64().unwrap();
    assert!((0.3..1.0).contains(&moved), "{moved}");
    assert_eq!(simulated["agents"][3]["share_before"], 0.0);
    let dry = home.json(&with_store(&[&["ring", "manual-change", "--dry-run"], &wanted[..]].concat()));
    assert_eq!(dry, simulated);
    assert_eq!(home.json(&with_store(&["ring", "get"]))["version"], 1);
    home.prints(&with_store(&[&["ring", "manual-change"], &wanted[..]].concat()));
    let ring = home.json(&with_store(&["ring", "get"]));
    assert_eq!((&ring["version"], &ring["kind"], &ring["replicas"]), (&2.into(), &"ketama".into(), &3.into()));
    home.prints(&with_store(&["ring", "set-replication", "1"]));
    assert_eq!(home.json(&with_store(&["ring", "get"]))["replicas"], 1);
    assert_eq!(home.json(&with_store(&["volume", "create", "v", "1G"]))["replicas"], 1);
}

#[test]
fn every_kind_can_be_chosen() {
    let home = cluster(&["--no-ring"]);
    assert_eq!(home.json(&with_store(&["ring", "get"]))["kind"], "empty");
    let rules = r#"{"rules": [{"agents": ["0000000000000002", "0000000000000003"]}]}"#;
    std::fs::write(home.path().join("rules.json"), rules).unwrap();
    for (kind, more, agents) in [
        ("rendezvous", vec!["--all-peers", "--spread", "1"], 4),
        ("ketama", vec!["--uuids", "n1,n2", "--spread", "0", "--weights", "n1=300"], 2),
        ("mod", vec!["--all-peers"], 4),
        ("map", vec!["--all-peers", "--options", "rules.json"], 4),
        ("single", vec!["--uuids", "3"], 1),
        ("empty", vec![], 0),
    ] {
        home.prints(&with_store(&[&["ring", "manual-change", "--type", kind], &more[..]].concat()));
        let ring = home.json(&with_store(&["ring", "get"]));
        assert_eq!((&ring["kind"], ring["agents"].as_array().unwrap().len()), (&kind.into(), agents));
        if kind == "ketama" {
            assert_eq!(ring["agents"][0]["weight"], 300);
        }
        if kind == "map" {
            assert_eq!(ring["agents"][0]["share"], 0.0);
        }
    }
}

/// Arguments, the exit code, and words that the message must hold.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const REFUSED: &[Case] = &[
    (&["ring", "manual-change", "--type", "donut"], 2, &["donut", "rendezvous", "ketama"]),
    (&["ring", "manual-change", "--uuids", "n9"], 1, &["no agent n9", "torusctl peer list"]),
    (&["ring", "manual-change", "--uuids", "n1", "--all-peers"], 2, &["cannot be used with"]),
    (&["ring", "manual-change", "--uuids", "n1,1"], 2, &["in the ring twice"]),
    (&["ring", "manual-change", "--type", "single", "--all-peers"], 2, &["one agent with a weight, not 4"]),
    (&["ring", "manual-change", "--type", "map"], 2, &["options do not fit", "map"]),
    (&["ring", "manual-change", "--type", "map", "--options", "nowhere.json"], 1, &["nowhere.json"]),
    (&["ring", "manual-change", "--spread", "3"], 2, &["2 parts"]),
    (&["ring", "manual-change", "--weights", "n1"], 2, &["AGENT=WEIGHT"]),
    (&["ring", "manual-change", "--weights", "n4=1"], 2, &["\"n4\"", "not in"]),
    (&["ring", "manual-change", "--weights", "n1=0,n2=0"], 2, &["weight 0"]),
    (&["ring", "manual-change", "-r", "0"], 2, &["1 to 7"]),
    (&["ring", "set-replication"], 2, &["<N>"]),
    (&["ring", "set-replication", "8"], 2, &["1 to 7"]),
    (&["peer", "add"], 2, &["AGENT"]),
    (&["peer", "add", "../etc"], 1, &["no agent ../etc"]),
    (&["peer", "add", "n1", "--all-peers"], 2, &["cannot be used with"]),
];

#[test]
fn every_mistake_gets_a_sentence_and_changes_nothing() {
    let home = cluster(&[]);
    home.prints(&with_store(&["peer", "add", "n1", "n2"]));
    let before = home.json(&with_store(&["ring", "get"]));
    for (args, code, words) in REFUSED {
        let (got, message) = home.fails(&with_store(args));
        assert_eq!(got, *code, "{args:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{args:?} should say {word:?}: {message}");
        }
    }
    assert_eq!(home.json(&with_store(&["ring", "get"])), before);
}
