//! The programs that judge the NBD server.

use crate::server::TestServer;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

impl TestServer {
    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The export `name` over the unix socket.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    /// The export `name` over TCP.
    pub fn tcp_uri(&self, name: &str) -> String {
        format!("nbd://{}/{name}", self.address)
    }
}

/// The program `name`, which the Debian package `package` brings.
pub fn tool(name: &str, package: &str) -> Command {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(name).is_file()));
    assert!(found, "`{name}` is not installed, and this test needs it: apt-get install {package}");
    // A client that hangs is a failure of ours, not of the test run.
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", name]);
    command
}

/// Runs `command` and gives what it printed; it must succeed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs `command`; it must fail, and by itself. Gives what it printed.
pub fn fail(command: &mut Command) -> String {
    let output = run(command);
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!output.status.success() && output.status.code() != Some(124), "{command:?}: {}\n{text}", output.status);
    text
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Runs the Python script `name` beside this file under Debian's own Python, where libnbd is.
pub fn python(name: &str, args: &[&str]) -> String {
    let python = "/usr/bin/python3";
    let has_libnbd = Command::new(python).args(["-c", "import nbd"]).output().is_ok_and(|o| o.status.success());
    assert!(has_libnbd, "{python} has no libnbd, and this test needs it: apt-get install python3-libnbd");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nbd").join(name);
    succeed(Command::new("timeout").args(["-k", "5", "120", python]).arg(script).args(args))
}
