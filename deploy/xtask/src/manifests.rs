//! `deploy/manifests/torus.yaml`: the chart, rendered, for clusters where helm is not used.
//!
//! Rendered by helm itself, so that it is what helm would install. It is looked for in the cache of the cluster tests, then in the
//! path; a checkout without it cannot check the file, and says so.

use crate::workspace::{self, works};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

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
        bail!("helm is not here. Get it: GOBIN=~/.cache/torus-e2e/bin go install helm.sh/helm/v3/cmd/helm@v3.19.4");
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

/// Where helm is, if it is here.
pub fn helm() -> Option<PathBuf> {
    let cached = std::env::home_dir().map(|home| home.join(".cache/torus-e2e/bin/helm"));
    let places = cached.into_iter().chain([PathBuf::from("helm")]);
    places.into_iter().find(|place| place.to_str().is_some_and(|place| works(place, &["version"])))
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
