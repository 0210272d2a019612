//! A Kubernetes without nodes: etcd, apiserver, controller manager and scheduler.
//!
//! On the loopback address it needs no root, and is what an operator, a chart or a schema is tested against:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let control = torus_e2e::kube::ControlPlane::start()?;
//! control.kubectl().run(["create", "namespace", "torus-system"])?;
//! println!("KUBECONFIG={}", control.kubectl().kubeconfig().display());
//! # Ok(())
//! # }
//! ```
//!
//! Dropped, it is gone with all it has. What a killed run has left, the next one removes ([`super::run`]).

use super::go;
use super::kubectl::Kubectl;
use super::pki::Pki;
use super::progress::Progress;
use super::run::Run;
use crate::etcd;
use crate::ports;
use crate::process::Process;
use anyhow::{Context, Result};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a part may take to become ready. All together take about five seconds; a loaded machine takes longer.
const READY: Duration = Duration::from_secs(120);

/// Where a control plane is, and what addresses it hands out.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where the apiserver listens.
    pub address: Ipv4Addr,
    /// Addresses of services, such as `10.96.0.0/20`.
    pub services: String,
    /// The first of them, which the apiserver takes for itself.
    pub first_service: Ipv4Addr,
    /// Whether nodes reach the apiserver at `address`, and pods by the first service.
    pub has_nodes: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            services: "10.96.0.0/20".into(),
            first_service: Ipv4Addr::new(10, 96, 0, 1),
            has_nodes: false,
        }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    kubectl: Kubectl,
    pki: Pki,
    url: String,
    address: Ipv4Addr,
    // In the order in which they are to end, the run's directory last.
    processes: Vec<Process>,
    run: Run,
}

impl ControlPlane {
    /// One on the loopback address, without nodes.
    ///
    /// # Errors
    /// When its programs cannot be built, or do not become ready.
    pub fn start() -> Result<Self> {
        let progress = Progress::default();
        Self::start_at(&Place::default(), Run::begin()?, &progress)
    }

    /// One for a run that has begun.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_at(place: &Place, run: Run, progress: &Progress) -> Result<Self> {
        let programs = go::CONTROL_PLANE.build(progress)?;
        let pki = Pki::make(&run.subdirectory("pki")?)?;
        let url = format!("https://{}:{}", place.address, ports::free()?);
        let admin = pki.kubeconfig("admin", Some("system:masters"), &url)?;
        let kubectl = Kubectl::new(&programs.join("kubectl"), &admin);
        let mut plane = Self { kubectl, pki, url, address: place.address, processes: Vec::new(), run };
        let etcd_url = plane.start_etcd()?;
        plane.start_apiserver(&programs, place, &etcd_url)?;
        plane.start_controllers(&programs, place)?;
        plane.kubectl.until(["serviceaccount", "default", "-n", "default"], "it is there", READY, |_| true)?;
        progress.say(&format!("the control plane is ready ({})", plane.run.name()));
        Ok(plane)
    }

    /// `kubectl`, as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The authority of its certificates.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where the apiserver is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// This machine's address, as nodes reach it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What it has on this machine.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Where logs are, `apiserver.log` among them.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.run.directory().join("logs")
    }

    /// What was written to the apiserver, by whom: an audit event in each line.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    /// Leaves it running for good.
    pub fn leave(mut self) -> Result<()> {
        self.run.leave()?;
        self.processes.drain(..).try_for_each(Process::leave)
    }

    fn start_etcd(&mut self) -> Result<String> {
        let client = format!("http://127.0.0.1:{}", ports::free()?);
        let peer = format!("http://127.0.0.1:{}", ports::free()?);
        let mut command = Command::new(etcd::program()?);
        command.args(["--name", "kubernetes", "--data-dir"]).arg(self.run.directory().join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("kubernetes={peer}"), "--log-level", "warn"]);
        let process = self.run.start("etcd", command)?;
        self.processes.insert(0, process);
        Ok(client)
    }

    fn start_apiserver(&mut self, programs: &Path, place: &Place, etcd: &str) -> Result<()> {
        let serving_names = [
            place.address.to_string(),
            place.first_service.to_string(),
            "127.0.0.1".into(),
            "localhost".into(),
            "kubernetes.default.svc".into(),
            "kubernetes.default.svc.cluster.local".into(),
        ];
        let serving = self.pki.sign("apiserver", None, &serving_names)?;
        let to_kubelets = self.pki.sign("apiserver-kubelet-client", Some("system:masters"), &[])?;
        let port = self.url.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new(programs.join("kube-apiserver"));
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let mut text = std::ffi::OsString::from(format!("--{name}="));
            text.push(value);
            command.arg(text);
        };
        flag("etcd-servers", &etcd);
        flag("bind-address", &place.address.to_string());
        flag("secure-port", &port);
        flag("tls-cert-file", &serving.cert);
        flag("tls-private-key-file", &serving.key);
        flag("client-ca-file", &self.pki.file("ca.crt"));
        flag("kubelet-client-certificate", &to_kubelets.cert);
        flag("kubelet-client-key", &to_kubelets.key);
        // Otherwise it looks up nodes' names in DNS for logs and exec.
        flag("kubelet-preferred-address-types", &"InternalIP");
        flag("service-account-key-file", &self.pki.file("sa.pub"));
        flag("service-account-signing-key-file", &self.pki.file("sa.key"));
        flag("service-account-issuer", &"https://kubernetes.default.svc.cluster.local");
        flag("service-cluster-ip-range", &place.services);
        flag("authorization-mode", &"Node,RBAC");
        flag("enable-admission-plugins", &"NodeRestriction");
        flag("allow-privileged", &"true");
        flag("anonymous-auth", &"false");
        flag("audit-policy-file", &self.audit_policy()?);
        flag("audit-log-path", &self.audit());
        if place.has_nodes {
            flag("advertise-address", &place.address.to_string());
        } else {
            // A loopback address cannot be given out to pods, and there are none.
            flag("advertise-address", &"10.255.255.254");
            flag("endpoint-reconciler-type", &"none");
        }
        let mut process = self.run.start("apiserver", command)?;
        let ready = process.until("it is ready", READY, || {
            std::thread::sleep(Duration::from_millis(150));
            Ok(self.kubectl.run(["get", "--raw", "/readyz"]).is_ok())
        });
        self.processes.insert(0, process);
        ready
    }

    /// Every write, once, without what was written.
    fn audit_policy(&self) -> Result<PathBuf> {
        let path = self.run.directory().join("audit-policy.json");
        let policy = serde_json::json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
                {"level": "None"},
            ],
        });
        std::fs::write(&path, policy.to_string()).context("cannot write the policy of audits")?;
        Ok(path)
    }

    fn start_controllers(&mut self, programs: &Path, place: &Place) -> Result<()> {
        let kubeconfig = |user: &str| self.pki.kubeconfig(user, None, &self.url);
        let mut manager = Command::new(programs.join("kube-controller-manager"));
        manager.arg("--kubeconfig").arg(kubeconfig("system:kube-controller-manager")?);
        manager.arg("--service-account-private-key-file").arg(self.pki.file("sa.key"));
        manager.arg("--root-ca-file").arg(self.pki.file("ca.crt"));
        manager.args(["--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0"]);
        // The default is 50 s; kubelets tell that they live every 10 s.
        manager.arg("--node-monitor-grace-period=20s");
        if !place.has_nodes {
            // A test that makes nodes up says itself how they are.
            manager.arg("--controllers=*,-node-lifecycle-controller");
            // The default of 20 calls a second is for who shares an apiserver with many.
            manager.args(["--kube-api-qps=200", "--kube-api-burst=400"]);
        }
        manager.arg("--flex-volume-plugin-dir").arg(self.run.subdirectory("flexvolume")?);
        let mut scheduler = Command::new(programs.join("kube-scheduler"));
        scheduler.arg("--kubeconfig").arg(kubeconfig("system:kube-scheduler")?);
        scheduler.args(["--leader-elect=false", "--secure-port=0"]);
        for (name, command) in [("controller-manager", manager), ("scheduler", scheduler)] {
            let process = self.run.start(name, command)?;
            self.processes.insert(0, process);
        }
        Ok(())
    }

    /// Fails when a part of it has ended, with the end of its log.
    pub fn is_whole(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended().context("cannot look at the control plane")? {
                anyhow::bail!("{} ended ({status}); it said:\n{}", process.name(), process.log_tail());
            }
        }
        Ok(())
    }
}
