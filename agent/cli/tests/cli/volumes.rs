//! Clusters and volumes, over a metadata store that is one file: every command is a process of its own, as for a person.

use crate::Home;

const STORE: [&str; 2] = ["--etcd", "embedded:meta.redb"];

fn with_store<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &STORE].concat()
}

/// A home with a cluster in it.
fn cluster() -> Home {
    let home = Home::new();
    home.prints(&with_store(&["init"]));
    home
}

#[test]
fn a_cluster_is_made_once_and_shown() {
    let home = Home::new();
    let (code, message) = home.fails(&with_store(&["init", "--view"]));
    assert!(code == 1 && message.contains("torusctl init"), "{message}");
    let made = home.json(&with_store(&["init", "--block-size", "16MiB", "--block-spec", "crc,r=3"]));
    assert_eq!((&made["extent_bytes"], &made["replicas"]), (&(16 << 20).into(), &3.into()));
    assert_eq!(home.json(&with_store(&["init", "--view"])), made);
    let (code, message) = home.fails(&with_store(&["init"]));
    assert!(code == 3 && message.contains(made["cluster"].as_str().unwrap()), "{message}");
    assert_eq!(home.json(&with_store(&["init", "--view"])), made);
}

#[test]
fn a_volume_is_made_listed_shown_and_grown() {
    let home = cluster();
    assert_eq!(home.prints(&with_store(&["volume", "list"])), "NAME  SIZE  REPLICAS  STATE  OWNER  ID\n");
    let said = home.prints(&with_store(&["volume", "create-block", "db-0", "20GiB"]));
    assert_eq!(said, "volume \"db-0\" created: 20.0 GiB, replicas 2, acknowledged when durable\n");
    home.prints(&with_store(&["block", "create", "small", "1", "--replicas", "1", "--write-level", "one"]));
    let list = home.json(&with_store(&["volume", "list"]));
    assert_eq!(list[0]["name"], "db-0");
    assert_eq!(list[0]["size_bytes"], 20u64 << 30);
    assert_eq!(
        (&list[0]["replicas"], &list[0]["min_replicas"], &list[0]["ack_mode"]),
        (&2.into(), &1.into(), &"durable".into())
    );
    assert_eq!((&list[1]["size_bytes"], &list[1]["ack_mode"]), (&4096.into(), &"received".into()));
    home.prints(&with_store(&["volume", "resize", "db-0", "30G"]));
    let info = home.json(&with_store(&["volume", "info", "db-0"]));
    assert_eq!(
        (&info["size_bytes"], &info["state"], &info["epoch"]),
        (&(30u64 << 30).into(), &"closed".into(), &0.into())
    );
    let by_id = home.json(&with_store(&["volume", "info", info["id"].as_str().unwrap()]));
    assert_eq!(by_id, info);
    let si = home.prints(&with_store(&["volume", "list", "--si"]));
    assert!(si.contains("32.2 GB"), "{si}");
    let csv = home.prints(&with_store(&["volume", "list", "-o", "csv"]));
    assert!(csv.starts_with("name,size,replicas,state,owner,id\ndb-0,32212254720,2,closed,,"), "{csv}");
    let yaml = home.prints(&with_store(&["volume", "info", "small", "-o", "yaml"]));
    assert!(yaml.contains("size_bytes: 4096\n"), "{yaml}");
}

#[test]
fn a_cluster_without_agents_has_an_empty_list_of_them() {
    let home = cluster();
    assert_eq!(home.json(&with_store(&["peer", "list"])), serde_json::json!([]));
    let columns = "NAME  STATE  FREE  SIZE  DISKS  DOMAIN  ADDRESS  VERSION  ID\n";
    assert_eq!(home.prints(&with_store(&["list-peers"])), columns);
}

/// Arguments, the exit code, and words that the message must hold.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const REFUSED: &[Case] = &[
    (&["volume"], 2, &["Usage"]),
    (&["volume", "create", "x"], 2, &["<SIZE>"]),
    (&["volume", "create", "x", "20Xi"], 2, &["20Xi", "\"Xi\" is not a unit"]),
    (&["volume", "create", "x", "-5"], 2, &["-5"]),
    (&["volume", "create", "x", "0"], 2, &["out of bounds", "64 TiB"]),
    (&["volume", "create", "x", "65TiB"], 2, &["out of bounds", "64 TiB"]),
    (&["volume", "create", "../x", "1G"], 2, &["\"../x\" is not a volume's name", "a-z"]),
    (&["volume", "create", "X", "1G"], 2, &["\"X\" is not a volume's name"]),
    (&["volume", "create", "", "1G"], 2, &["\"\" is not a volume's name"]),
    (&["volume", "create", "x", "1G", "--replicas", "9"], 2, &["\"9\" is not a number of copies", "1 to 7"]),
    (&["volume", "create", "x", "1G", "-r", "2", "--min-replicas", "3"], 2, &["2 replicas", "3"]),
    (&["volume", "create", "x", "1G", "--ack-mode", "maybe"], 2, &["maybe", "durable", "received"]),
    (&["volume", "create", "x", "1G", "--ack-mode", "durable", "--write-level", "one"], 2, &["cannot be used with"]),
    (&["volume", "create", "db", "1G"], 1, &["cannot create volume \"db\"", "Choose another"]),
    (&["volume", "info", "nope"], 1, &["no volume \"nope\"", "torusctl volume list"]),
    (&["volume", "resize", "nope", "1G"], 1, &["no volume \"nope\""]),
    (&["volume", "resize", "db", "1M"], 3, &["cannot resize volume \"db\"", "cannot shrink"]),
    (&["serve", "db"], 2, &["--socket", "--listen"]),
    (&["serve", "db", "--listen", "nowhere"], 2, &["nowhere"]),
    (&["serve", "db", "--socket", "s", "--listen", "127.0.0.1:1"], 2, &["cannot be used with"]),
    (&["serve", "nope", "--socket", "s"], 1, &["no volume \"nope\""]),
    (&["serve", "db", "--socket", "s"], 1, &["no ring", "torusctl peer add"]),
    (&["serve", "db", "--socket", "meta.redb/s"], 1, &["no ring"]),
    (&["init", "--block-size", "1M"], 2, &["1.0 MiB", "4.0 MiB to 256.0 MiB"]),
    (&["init", "--block-size", "4194305"], 2, &["whole blocks"]),
    (&["init", "--block-spec", "crc,rs=2"], 2, &["\"rs=2\"", "crc,r=2"]),
    (&["init", "--view", "--replicas", "2"], 2, &["cannot be used with"]),
];

#[test]
fn every_mistake_gets_a_sentence_and_changes_nothing() {
    let home = cluster();
    home.prints(&with_store(&["volume", "create", "db", "1G"]));
    let before = home.json(&with_store(&["volume", "list"]));
    for (args, code, words) in REFUSED {
        let (got, message) = home.fails(&with_store(args));
        assert_eq!(got, *code, "{args:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{args:?} should say {word:?}: {message}");
        }
    }
    assert_eq!(home.json(&with_store(&["volume", "list"])), before);
}

#[test]
fn a_store_that_is_none_is_named() {
    let home = Home::new();
    let port = torus_e2e::ports::free().unwrap();
    let address = format!("127.0.0.1:{port}");
    std::fs::write(home.path().join("text"), "no database").unwrap();
    for (etcd, code, word) in [
        (address.as_str(), 1, address.as_str()),
        ("ftp://x", 2, "ftp:// is not known"),
        ("http://", 2, "not a host"),
        ("https://127.0.0.1", 2, "--etcd-ca"),
        ("embedded:", 2, "no file"),
        ("embedded:/nowhere/at/all", 1, "/nowhere/at/all"),
        ("embedded:text", 1, "text"),
        ("memory:", 1, "torusctl init"),
    ] {
        let (got, message) = home.fails(&["volume", "list", "--etcd", etcd]);
        assert_eq!(got, code, "{etcd}: {message}");
        assert!(message.contains(word), "{etcd} should say {word:?}: {message}");
    }
}

#[test]
fn the_cluster_may_come_from_a_profile_or_the_environment() {
    let home = cluster();
    home.prints(&["config", "--profile", "here", "set", "etcd=embedded:meta.redb"]);
    home.prints(&["volume", "create", "a", "1G"]);
    home.prints(&["volume", "list", "--profile", "here"]);
    let from_environment =
        home.torusctl(&["volume", "list"]).env("TORUS_ETCD", "embedded:meta.redb").assert().success();
    assert!(String::from_utf8_lossy(&from_environment.get_output().stdout).contains("1.0 GiB"));
    // What the environment names wins over the current profile.
    home.torusctl(&["volume", "list"]).env("TORUS_ETCD", "embedded:other.redb").assert().failure();
    let (code, message) = home.fails(&["volume", "list", "--profile", "there"]);
    assert!(code == 2 && message.contains("no profile \"there\"") && message.contains("here"), "{message}");
}

#[test]
fn a_real_etcd_holds_a_cluster_too() {
    let etcd = torus_e2e::etcd::Etcd::start().unwrap();
    let home = Home::new();
    let url = etcd.url();
    home.prints(&["--etcd", &url, "init"]);
    home.prints(&["--etcd", &url, "volume", "create", "db", "1G"]);
    assert_eq!(home.json(&["--etcd", &url, "volume", "list"])[0]["name"], "db");
    let (code, message) = home.fails(&["--etcd", &url, "--etcd-prefix", "/other/", "volume", "list"]);
    assert!(code == 1 && message.contains("--etcd-prefix"), "{message}");
}
