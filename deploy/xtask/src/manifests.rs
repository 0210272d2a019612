//! `deploy/manifests/torus.yaml`: the chart, rendered, for clusters where helm is not used.
//!
//! Rendered by helm itself, so that it is what helm would install: the one in the path, or one built from its Go module, as the
//! cluster tests do. Without either the file cannot be checked, which is said.

use crate::workspace::{self, works};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use torus_e2e::kube::{Progress, go};

/// The version that the chart is rendered for.
const KUBE_VERSION: &str = "1.34.4";
/// The file, from the root.
const FILE: &str = "deploy/manifests/torus.yaml";
/// Before what helm writes.
const HEADER: &str = "# Made by `cargo xtask manifests` from charts/torus: change it there.\n\
    apiVersion: v1\nkind: Namespace\nmetadata:\n  name: torus-system\n";

/// What to do.
#[derive(clap::Args)]
pub struct Options {
    /// Write nothing: fail if the file is not what the chart says
    #[arg(long)]
    pub check: bool,
}

/// Renders the chart and writes the file, or compares.
pub fn run(options: &Options) -> Result<bool> {
    let Some(helm) = helm() else {
        bail!("helm is not here, and cannot be built");
    };
    let root = workspace::root()?;
    if !workspace::succeeds(
        Command::new(&helm).args(["lint", "--strict", "--quiet", "charts/torus"]).current_dir(&root),
    )? {
        return Ok(false);
    }
    let text = render(&helm, &root)?;
    let path = root.join(FILE);
    if !options.check {
        std::fs::write(&path, text).with_context(|| format!("cannot write {FILE}"))?;
        println!("wrote {FILE}");
    } else if std::fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))? != text {
        eprintln!("{FILE} is not what charts/torus says: run `cargo xtask manifests`");
        return Ok(false);
    }
    Ok(true)
}

/// Where helm is: in the path, or built from its Go module.
pub fn helm() -> Option<PathBuf> {
    if works("helm", &["version"]) {
        return Some("helm".into());
    }
    go::HELM.program("helm", &Progress::default()).map_err(|error| eprintln!("{error:#}")).ok()
}

fn render(helm: &Path, root: &Path) -> Result<String> {
    let args = [
        "template",
        "torus",
        "charts/torus",
        "--namespace",
        "torus-system",
        "--no-hooks",
        "--kube-version",
        KUBE_VERSION,
    ];
    let output = Command::new(helm).args(args).current_dir(root).output().context("cannot run helm")?;
    if !output.status.success() {
        bail!("helm does not render the chart: {}", String::from_utf8_lossy(&output.stderr));
    }
    let rendered = String::from_utf8(output.stdout).context("what helm writes is no text")?;
    Ok(format!("{HEADER}{rendered}"))
}
