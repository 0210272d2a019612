//! What makes no sense is refused with a sentence and an exit code, and changes nothing.

use crate::Home;

/// Arguments, the exit code, and words that the message must hold.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

const CASES: &[Case] = &[
    (&[], 2, &["Usage"]),
    (&["frobnicate"], 2, &["frobnicate", "unrecognized subcommand"]),
    (&["version", "--frobnicate"], 2, &["--frobnicate"]),
    (&["version", "-o", "xml"], 2, &["xml", "table", "json", "yaml", "csv"]),
    (&["version", "-o"], 2, &["--output"]),
    (&["completion"], 2, &["<SHELL>"]),
    (&["completion", "tcsh"], 2, &["tcsh", "bash", "zsh", "fish"]),
    (&["config", "set"], 2, &["FIELD=VALUE"]),
    (&["config", "set", "etcd"], 2, &["\"etcd\" sets nothing", "FIELD=VALUE"]),
    (&["config", "set", "color=red"], 2, &["no field \"color\"", "etcd-ca"]),
    (&["config", "--view", "set", "etcd=http://x:1"], 2, &["--view"]),
    (&["config", "use", "nowhere"], 2, &["no profile \"nowhere\"", "config.yaml", "There is: none"]),
    (&["config", "remove", "nowhere"], 2, &["no profile \"nowhere\""]),
    (&["config", "--profile", "../x", "set", "etcd=http://x:1"], 2, &["\"../x\" cannot name a profile"]),
    (&["config", "--profile", "", "set", "etcd=http://x:1"], 2, &["\"\" cannot name a profile"]),
];

#[test]
fn every_mistake_gets_a_sentence() {
    let home = Home::new();
    for (args, code, words) in CASES {
        let (got, message) = home.fails(args);
        assert_eq!(got, *code, "{args:?}: {message}");
        for word in *words {
            assert!(message.contains(word), "{args:?} should say {word:?}: {message}");
        }
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "a refused command left something behind");
}
