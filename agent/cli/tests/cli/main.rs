//! The real binary, as a person at a terminal sees it.

mod bad_input;
mod config;
mod kube;
mod ring;
mod scripts;
mod volumes;

use assert_cmd::Command;
use std::path::Path;
use tempfile::TempDir;

/// A home directory of its own, so that no test sees a person's configuration.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory can be made"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `torusctl` with `args`, in this home and with none of our variables.
    fn torusctl(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("torusctl").expect("cargo built it");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TORUS_")) {
            command.env_remove(name);
        }
        command.env_remove("XDG_CONFIG_HOME").env("HOME", self.path()).current_dir(self.path()).args(args);
        command
    }

    /// What a run that succeeds prints.
    fn prints(&self, args: &[&str]) -> String {
        let output = self.torusctl(args).assert().success().get_output().clone();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        String::from_utf8(output.stdout).expect("answers are UTF-8")
    }

    /// What a run prints that succeeds with `-o json`.
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.prints(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("-o json prints JSON")
    }

    /// The exit code and the message of a run that fails. Whatever it is: nothing on stdout, no panic.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.torusctl(args).assert().failure().get_output().clone();
        let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
        assert!(!message.contains("panicked"), "{args:?}: {message}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
        (output.status.code().expect("not killed by a signal"), message)
    }
}
