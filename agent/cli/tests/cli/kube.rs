//! Kubernetes is another program's business: what was typed reaches it as it is.

use assert_cmd::Command;

#[test]
fn what_is_about_kubernetes_is_passed_on_to_the_program_beside() {
    let directory = tempfile::tempdir().unwrap();
    let torusctl = directory.path().join("torusctl");
    // Both are written by another process: what this one has open for writing, a child that another test starts at that moment
    // has too, until it runs its own program, and a program that is open for writing cannot be run (ETXTBSY, execve(2)).
    let install = r#"cp "$1" "$2/torusctl" && printf '#!/bin/sh\necho "$@"\n' > "$2/kubectl-torus" && chmod 755 "$2/kubectl-torus""#;
    let programs = [env!("CARGO_BIN_EXE_torusctl").as_ref(), directory.path()];
    Command::new("sh").args(["-c", install, "install"]).args(programs).assert().success();
    for (typed, passed) in [
        (vec!["preflight"], "preflight\n"),
        (vec!["status", "--wait", "--timeout", "5"], "status --wait --timeout 5\n"),
        (vec!["-o", "json", "kube", "volume", "list"], "-o json volume list\n"),
        (vec!["kube", "--help"], "--help\n"),
    ] {
        Command::new(&torusctl).args(&typed).assert().success().stdout(passed);
    }
    Command::new(&torusctl).args(["-o", "csv", "status"]).assert().code(2);
}
