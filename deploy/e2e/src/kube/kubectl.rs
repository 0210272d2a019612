//! `kubectl`, with one Kubernetes.

use crate::process::until;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The pause between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// The program, and whom it speaks to.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// Speaks to whom a kubeconfig names.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_path_buf(), kubeconfig: kubeconfig.to_path_buf() }
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A call, not yet made.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Not what a person has for clusters of theirs.
        command.env_remove("KUBECONFIG").arg("--kubeconfig").arg(&self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// What a call prints.
    ///
    /// # Errors
    /// When it fails; what it said is in the text.
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = self.command();
        command.args(args);
        checked(&shown(&command), command.output().context("cannot run kubectl")?)
    }

    /// The JSON that `kubectl … -o json` prints.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let text = self.run(args.into_iter().chain(["-o", "json"]))?;
        serde_json::from_str(&text).context("kubectl -o json prints no JSON")
    }

    /// An object, if it is there. `of`: how kubectl names it, such as `["pod", "a", "-n", "b"]`.
    ///
    /// # Errors
    /// When the apiserver does not answer.
    pub fn find<'a>(&self, of: impl IntoIterator<Item = &'a str>) -> Result<Option<Value>> {
        let text = self.run(["get"].into_iter().chain(of).chain(["--ignore-not-found", "-o", "json"]))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).context("kubectl -o json prints no JSON")
    }

    /// Applies manifests, YAML or JSON. What it said, warnings included.
    ///
    /// # Errors
    /// When one is refused.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.feed(["apply", "-f", "-"], manifests)
    }

    /// Makes a call that reads `input`. What it said on both outputs.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn feed<'a>(&self, args: impl IntoIterator<Item = &'a str>, input: &str) -> Result<String> {
        let mut command = self.command();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = shown(&command);
        let mut child = command.spawn().context("cannot run kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl takes no input")?;
        let text = input.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().context("cannot wait for kubectl")?;
        // It closes its input when it has failed, and then says why.
        let _ = writer.join();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(checked(&shown, output)? + &said)
    }

    /// Waits until `condition` holds for an object. A question that fails is asked again.
    ///
    /// # Errors
    /// When that takes longer than `limit`; the object as it was last is in the text, and why it is not known how it is now.
    pub fn until<'a>(
        &self,
        of: impl IntoIterator<Item = &'a str>,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let of: Vec<_> = of.into_iter().collect();
        self.look_until(&of, what, limit, |found| !found.is_null() && condition(found))
    }

    /// Waits until an object is not there. A question that fails is asked again.
    ///
    /// # Errors
    /// As [`Kubectl::until`].
    pub fn until_gone<'a>(&self, of: impl IntoIterator<Item = &'a str>, limit: Duration) -> Result<()> {
        let of: Vec<_> = of.into_iter().collect();
        let is_gone = |found: &Value| found.is_null() || found["items"].as_array().is_some_and(Vec::is_empty);
        self.look_until(&of, &format!("{} is gone", of.join(" ")), limit, is_gone).map(drop)
    }

    /// Looks until `holds`, of null while nothing is there; what was seen then.
    fn look_until(&self, of: &[&str], what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let (mut last, mut failed) = (Value::Null, None);
        let waited = until(what, limit, || {
            std::thread::sleep(LOOK);
            match self.find(of.iter().copied()) {
                Ok(found) => (last, failed) = (found.unwrap_or_default(), None),
                Err(error) => failed = Some(error),
            }
            Ok(failed.is_none() && holds(&last))
        });
        waited.with_context(|| {
            let failed = failed.iter().map(|error| format!("; the last question failed: {error:#}"));
            format!("{} is {}{}", of.join(" "), brief(&last), failed.collect::<String>())
        })?;
        Ok(last)
    }
}

/// The condition `kind` of an object, if it has one.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether the condition `kind` of an object is true.
#[must_use]
pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

/// What matters of an object that is waited for.
fn brief(object: &Value) -> String {
    if object.is_null() {
        return "not there".into();
    }
    let parts = ["deletionTimestamp", "finalizers"].map(|name| (name, &object["metadata"][name]));
    let parts = parts.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| format!("{name} {value}"));
    parts.chain([format!("status {}", object["status"])]).collect::<Vec<_>>().join(", ")
}

fn shown(command: &Command) -> String {
    // After --kubeconfig and its path.
    let words = command.get_args().skip(2).map(|word| word.to_string_lossy().into_owned());
    std::iter::once("kubectl".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn checked(shown: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let said = [output.stderr, output.stdout].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
        bail!("`{shown}` failed ({}): {}", output.status, said.join("\n").trim());
    }
    String::from_utf8(output.stdout).context("kubectl prints no UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::shell::must;
    use crate::scratch::Scratch;

    const SOON: Duration = Duration::from_secs(20);

    /// A program in kubectl's place. It runs in a directory of its own.
    fn pretend(script: &str) -> (Scratch, Kubectl) {
        let scratch = Scratch::new("kubectl-test").unwrap();
        let program = scratch.path().join("kubectl");
        let text = format!("#!/bin/sh\ncd {}\n{script}\n", scratch.path().display());
        // Written by another process: what this one has open for writing, a child that another test starts may have as well, and while
        // it has, the program cannot be run.
        must("sh", ["-ec", r#"printf %s "$2" >"$1"; chmod +x "$1""#, "sh", program.to_str().unwrap(), text.as_str()])
            .unwrap();
        let kubectl = Kubectl::new(&program, Path::new("/nonexistent"));
        (scratch, kubectl)
    }

    #[test]
    fn a_wait_goes_on_past_questions_that_fail() {
        let (_scratch, kubectl) =
            pretend("[ -e asked ] || { touch asked; echo refused >&2; exit 1; }; echo '{\"status\": 7}'");
        assert_eq!(kubectl.until(["a", "b"], "it is 7", SOON, |found| found["status"] == 7).unwrap()["status"], 7);
        // What is not known to be there is not known to be gone.
        let (_scratch, kubectl) = pretend("[ -e asked ] || { touch asked; echo refused >&2; exit 1; }");
        kubectl.until_gone(["a", "b"], SOON).unwrap();
        let (_scratch, kubectl) = pretend("echo refused >&2; exit 1");
        let said = kubectl.until_gone(["a", "b"], Duration::from_millis(500)).unwrap_err();
        assert!(format!("{said:#}").contains("refused"), "{said:#}");
        let said = kubectl.until(["a", "b"], "it is 7", Duration::from_millis(500), |_| true).unwrap_err();
        assert!(format!("{said:#}").contains("refused"), "{said:#}");
    }
}
