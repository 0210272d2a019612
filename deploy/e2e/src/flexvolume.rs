//! The FlexVolume driver, called as kubelets call it: a program, a few words, one line of JSON.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The driver on one host.
#[derive(Clone, Debug)]
pub struct Driver {
    program: PathBuf,
}

impl Driver {
    /// The one that is installed as `program`. Where its agent is stands beside it.
    #[must_use]
    pub fn at(program: PathBuf) -> Self {
        Self { program }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What it answers, and whether its exit code says success.
    ///
    /// # Errors
    /// When it answers anything else than one line of JSON with a status, or prints anything beside.
    pub fn call<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<(Value, bool)> {
        let mut command = Command::new(&self.program);
        command.args(words).env_clear().stdin(Stdio::null());
        let output = command.output().context("cannot run the driver")?;
        let said = String::from_utf8(output.stdout).context("the driver prints no UTF-8")?;
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(complained.is_empty(), "the driver prints beside its answer: {complained}");
        ensure!(said.lines().count() == 1, "the driver answers {} lines: {said}", said.lines().count());
        let answer: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
        ensure!(answer["status"].is_string(), "an answer without a status: {said}");
        Ok((answer, output.status.success()))
    }

    /// Its answer, which must be success.
    pub fn must<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Value> {
        let (answer, good) = self.call(words)?;
        ensure!(good && answer["status"] == "Success", "refused: {answer}");
        Ok(answer)
    }

    /// Mounts a volume on `directory`, by the current call form.
    pub fn mount(&self, directory: &Path, volume: &str, kind: &str) -> Result<()> {
        let options = json!({"volume": volume, "kubernetes.io/fsType": kind, "kubernetes.io/readwrite": "rw"});
        self.must(&[OsStr::new("mount"), directory.as_ref(), options.to_string().as_ref()]).map(drop)
    }

    /// Unmounts what is on `directory`.
    pub fn unmount(&self, directory: &Path) -> Result<()> {
        self.must(&[OsStr::new("unmount"), directory.as_ref()]).map(drop)
    }
}
