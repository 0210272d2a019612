//! Completions and versions.

use crate::Home;

#[test]
fn every_shell_gets_a_completion_that_knows_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.prints(&["completion", shell]);
        for word in ["torusctl", "config", "version", "profile"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}

#[test]
fn the_version_is_printed_in_every_form() {
    let home = Home::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(home.prints(&["version"]), format!("torusctl:        {version}\nmetadata format: 1\n"));
    assert_eq!(home.json(&["version"])["torusctl"], version);
    assert_eq!(home.prints(&["version", "-o", "csv"]), format!("torusctl,metadata_format\n{version},1\n"));
    assert_eq!(home.prints(&["version", "-o", "yaml"]), format!("torusctl: {version}\nmetadata_format: 1\n"));
    assert_eq!(home.prints(&["--version"]), format!("torusctl {version}\n"));
}
