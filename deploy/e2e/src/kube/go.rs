//! Kubernetes, helm and the CSI sidecars, built from Go modules.
//!
//! No registry of images or of programs has to be reached: the modules under `deploy/e2e/kubernetes` name one version each of what is
//! built, and `go.sum` what its sources are. What was built is kept outside the tree, in a directory named after everything
//! that went into it, so that another version is another directory and nothing stale is ever run.

use super::progress::Progress;
use super::shell::thrice;
use crate::cache;
use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Go module, and the programs of it that are wanted.
#[derive(Debug)]
pub struct Module {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// Packages whose last part is the program's name.
    packages: &'static [&'static str],
    ldflags: &'static str,
}

macro_rules! module {
    ($name:literal, $ldflags:expr, $packages:expr) => {
        Module {
            name: $name,
            go_mod: include_str!(concat!("../../kubernetes/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../../kubernetes/", $name, "/go.sum")),
            packages: $packages,
            ldflags: $ldflags,
        }
    };
}

/// Symbols are of no use here, and a third of the size.
const PLAIN: &str = "-s -w";
/// Kubernetes tells its version to clients, who look at it.
const KUBERNETES_VERSION: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.4 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34";

/// The control plane.
pub const CONTROL_PLANE: Module = module!(
    "kubernetes",
    KUBERNETES_VERSION,
    &[
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubectl",
    ]
);
/// What runs on nodes.
pub const NODE: Module =
    module!("kubernetes", KUBERNETES_VERSION, &["k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"]);
/// `helm`.
pub const HELM: Module = module!("helm", PLAIN, &["helm.sh/helm/v3/cmd/helm"]);
/// `csi-provisioner`.
pub const PROVISIONER: Module =
    module!("external-provisioner", PLAIN, &["github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"]);
/// `csi-attacher`.
pub const ATTACHER: Module =
    module!("external-attacher", PLAIN, &["github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"]);
/// `csi-resizer`.
pub const RESIZER: Module =
    module!("external-resizer", PLAIN, &["github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"]);
/// `csi-sanity`.
pub const SANITY: Module = module!("csi-sanity", PLAIN, &["github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"]);

/// All of them, in the order in which their parts are shared best.
pub const ALL: [&Module; 7] = [&CONTROL_PLANE, &NODE, &HELM, &PROVISIONER, &ATTACHER, &RESIZER, &SANITY];

impl Module {
    /// Builds what is not in the cache yet; the directory where the programs are.
    ///
    /// # Errors
    /// When there is no Go that is new enough, or a build fails.
    pub fn build(&self, progress: &Progress) -> Result<PathBuf> {
        let directory = self.directory()?;
        if self.missing(&directory).next().is_none() {
            return Ok(directory);
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Two runs at once build it once.
        let lock = File::create(directory.join("lock")).context("cannot make a lock for Go builds")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let source = directory.join("source");
        let write = |name: &str, text: &str| {
            fs::write(source.join(name), text).with_context(|| format!("cannot write {name} of {}", self.name))
        };
        fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
        write("go.mod", self.go_mod)?;
        write("go.sum", self.go_sum)?;
        let missing: Vec<_> = self.missing(&directory).collect();
        if !missing.is_empty() {
            self.is_go_here()?;
        }
        for package in missing {
            let program = name_of(package);
            progress.say(&format!("building {program} of {} (minutes when Go's cache is empty)", self.name));
            let unfinished = directory.join(format!("{program}.new"));
            let mut go = Command::new("go");
            go.current_dir(&source).env("CGO_ENABLED", "0").env("GOWORK", "off").stdin(Stdio::null());
            go.args(["build", "-buildvcs=false", "-trimpath", "-ldflags", self.ldflags, "-o"]);
            go.arg(&unfinished).arg(package);
            // It fetches the sources as well.
            thrice(&format!("building {program}"), || {
                let status = go.status().context("cannot run go")?;
                ensure!(status.success(), "go build {package} of deploy/e2e/kubernetes/{} failed", self.name);
                Ok(())
            })?;
            fs::rename(&unfinished, directory.join(program)).context("cannot keep what Go built")?;
        }
        Ok(directory)
    }

    /// Where a program of it is, built.
    ///
    /// # Errors
    /// As [`Module::build`].
    pub fn program(&self, program: &str, progress: &Progress) -> Result<PathBuf> {
        ensure!(self.packages.iter().any(|package| name_of(package) == program), "{} has no {program}", self.name);
        Ok(self.build(progress)?.join(program))
    }

    fn missing<'a>(&self, directory: &'a Path) -> impl Iterator<Item = &'static str> + use<'a> {
        self.packages.iter().copied().filter(|package| !directory.join(name_of(package)).is_file())
    }

    /// The same for everything that comes from the same source in the same way.
    fn directory(&self) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        (self.go_mod, self.go_sum, self.ldflags).hash(&mut hasher);
        Ok(cache::directory()?.join("go").join(format!("{}-{:016x}", self.name, hasher.finish())))
    }

    /// Asks Go whether it is new enough, in a sentence that says what to do when it is not.
    fn is_go_here(&self) -> Result<()> {
        let wanted = self.go_mod.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or("1.26");
        let hint = format!(
            "{} is built from its Go module, which needs Go {wanted} or newer in PATH. Debian's package golang-go is older: take one \
             from go.dev/dl, or from a newer release of Debian",
            self.name
        );
        let said = Command::new("go").args(["env", "GOVERSION"]).stdin(Stdio::null()).output();
        let Ok(said) = said else { bail!("there is no Go: {hint}") };
        let version = String::from_utf8_lossy(&said.stdout).trim().trim_start_matches("go").to_owned();
        ensure!(numbers(&version) >= numbers(wanted), "Go is {version:?}: {hint}");
        Ok(())
    }
}

/// The program that a package makes.
fn name_of(package: &str) -> &str {
    package.rsplit('/').next().unwrap_or(package)
}

/// `1.26.8` as something that can be compared.
fn numbers(version: &str) -> Vec<u32> {
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    version.split('.').map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(numbers("1.26.8") > numbers("1.26.0"));
        assert!(numbers("1.26") > numbers("1.9.12"));
        assert!(numbers("1.27rc1") > numbers("1.26.3"));
        assert!(numbers("devel") < numbers("1.24.0"));
    }

    #[test]
    fn every_module_names_what_it_builds() {
        for module in ALL {
            assert!(module.go_mod.contains("\ntool "), "{}", module.name);
            for package in module.packages {
                assert!(module.go_mod.contains(package), "{package}");
            }
        }
    }

    #[test]
    fn what_differs_is_kept_apart() {
        assert_ne!(HELM.directory().unwrap(), SANITY.directory().unwrap());
        assert_eq!(NODE.directory().unwrap(), CONTROL_PLANE.directory().unwrap());
    }
}
