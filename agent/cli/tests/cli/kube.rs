//! Kubernetes is another program's business: what was typed reaches it as it is.

use assert_cmd::Command;
use std::os::unix::fs::PermissionsExt;

#[test]
fn what_is_about_kubernetes_is_passed_on_to_the_program_beside() {
    let directory = tempfile::tempdir().unwrap();
    let torusctl = directory.path().join("torusctl");
    std::fs::copy(env!("CARGO_BIN_EXE_torusctl"), &torusctl).unwrap();
    let other = directory.path().join("kubectl-torus");
    std::fs::write(&other, "#!/bin/sh\necho \"$@\"\n").unwrap();
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
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
