//! Profiles.

use crate::Home;
use std::fs;

const FILE: &str = ".config/torus/config.yaml";

#[test]
fn a_profile_is_made_shown_used_and_removed() {
    let home = Home::new();
    assert_eq!(home.json(&["config"]), serde_json::json!([]));
    home.prints(&["config", "set", "etcd=http://a:2379,http://b:2379"]);
    home.prints(&["config", "--profile", "lab", "set", "etcd=https://lab:2379", "etcd-user=torus"]);
    let shown = home.prints(&["config", "--view"]);
    assert_eq!(
        shown,
        "PROFILE  CURRENT  ETCD                         USER   CA FILE\n\
         default  yes      http://a:2379,http://b:2379\n\
         lab               https://lab:2379             torus\n"
    );
    home.prints(&["config", "use", "lab"]);
    let profiles = home.json(&["config"]);
    assert_eq!(profiles[1]["name"], "lab");
    assert_eq!(profiles[1]["current"], true);
    assert_eq!(profiles[0]["current"], false);
    home.prints(&["config", "remove", "lab"]);
    assert_eq!(home.json(&["config"])[0]["current"], true);
}

#[test]
fn a_field_is_unset_by_nothing() {
    let home = Home::new();
    home.prints(&["config", "set", "etcd-user=torus", "etcd=http://a:1"]);
    home.prints(&["config", "set", "etcd-user="]);
    assert_eq!(home.json(&["config"]), serde_json::json!([{"name": "default", "current": true, "etcd": "http://a:1"}]));
}

#[test]
fn a_file_that_is_wrong_is_named_and_left_alone() {
    let home = Home::new();
    let file = home.path().join(FILE);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    for bad in
        ["profiles: [", "colour: red", "profiles: {a: {etcd: [7]}}", "\0\u{1}", "profiles:\n  a:\n    etdc: [x]\n"]
    {
        fs::write(&file, bad).unwrap();
        let (code, message) = home.fails(&["config", "set", "etcd=http://a:1"]);
        assert_eq!(code, 1, "{bad:?}");
        assert!(message.contains(FILE) && message.contains("--config"), "{bad:?}: {message}");
        assert_eq!(fs::read_to_string(&file).unwrap(), bad);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let home = Home::new();
    fs::write(home.path().join(".config"), "a file where a directory should be").unwrap();
    let (code, message) = home.fails(&["config", "set", "etcd=http://a:1"]);
    assert_eq!(code, 1);
    assert!(message.contains(FILE), "{message}");
}

#[test]
fn another_file_may_be_named() {
    let home = Home::new();
    home.prints(&["--config", "other.yaml", "config", "set", "etcd=http://a:1"]);
    assert!(fs::read_to_string(home.path().join("other.yaml")).unwrap().contains("http://a:1"));
    assert!(!home.path().join(FILE).exists());
}
