//! A node: containerd, kubelet and kube-proxy in namespaces of their own.
//!
//! A node is a tree of processes below one that holds its namespaces: of mounts, of the network, of process ids and of the host's
//! name. `/var/lib`, `/var/log` and `/run` are the node's own, so that what the kubelet, the agents and their sockets have fixed
//! paths for is apart for each node, as on machines of their own. Killing the one process ends everything on the node at
//! once, with all its mounts and its network: that is how a node dies here.
//!
//! What nodes share, being one kernel: `/dev` with its loop devices, the clock, and the control groups, where each has a subtree.

use super::kernel;
use super::network::Network;
use super::run::Run;
use super::shell::{must, output};
use crate::process::{Process, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The image of pods' first containers.
pub const PAUSE_IMAGE: &str = "localhost/torus-e2e/busybox:1";
/// Where a kubelet looks for FlexVolume drivers here.
pub const FLEX_VOLUME_DIR: &str = "/var/lib/kubelet/volumeplugins";
/// How long a part may take to come up.
const READY: Duration = Duration::from_secs(120);
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where containernetworking-plugins has its programs, on Debian.
const CNI_PROGRAMS: &str = "/usr/lib/cni";

/// What a node is made from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where `kubelet` and `kube-proxy` are.
    pub programs: PathBuf,
    /// The network.
    pub network: Network,
    /// How many nodes there will be.
    pub nodes: u8,
}

/// A node of a run.
#[derive(Debug)]
pub struct Node {
    number: u8,
    name: String,
    directory: PathBuf,
    group: String,
    /// The first process in its namespaces.
    pid: u32,
    parts: Parts,
    // Those that are in the namespaces first.
    processes: Vec<Process>,
    holder: Option<Process>,
}

impl Node {
    /// Starts the namespaces and containerd. `number`: 1 for the first.
    ///
    /// # Errors
    /// Without root, or when a part of it does not come up.
    pub fn start(run: &Run, number: u8, parts: &Parts) -> Result<Self> {
        let name = format!("node-{number}");
        let directory = run.subdirectory(&name)?;
        let group = format!("{}/{name}", run.name());
        kernel::make_group(&group)?;
        let mut node =
            Self { number, name, directory, group, pid: 0, parts: parts.clone(), processes: Vec::new(), holder: None };
        node.power_on(run)?;
        Ok(node)
    }

    /// Its name in Kubernetes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, 1 for the first.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> String {
        self.parts.network.node(self.number).to_string()
    }

    /// What is `/var/lib` on the node.
    #[must_use]
    pub fn lib(&self) -> PathBuf {
        self.directory.join("lib")
    }

    /// What is `/var/log` on the node.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// A command that runs on the node, as one that a person gives there.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--net", "--pid", "--uts", "--", program]);
        command
    }

    /// What a command on the node prints; it must succeed.
    pub fn said<'a>(&self, program: &str, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        output(self.command(program).args(args)).with_context(|| format!("on {}", self.name))
    }

    /// Brings in an image.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("a path that is no UTF-8")?;
        self.said("ctr", ["--address", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "import", archive]).map(drop)
    }

    /// Starts the kubelet and kube-proxy with these kubeconfigs.
    pub fn start_kubelet(&mut self, run: &Run, kubelet: &Path, proxy: &Path, ca: &Path) -> Result<()> {
        let config = self.write("kubelet.yaml", &self.kubelet_config(ca))?;
        let mut command = self.command(self.parts.programs.join("kubelet").to_str().context("no UTF-8")?);
        command.arg("--config").arg(config).arg("--kubeconfig").arg(kubelet);
        command.args(["--root-dir=/var/lib/kubelet", &format!("--hostname-override={}", self.name)]);
        command.arg(format!("--node-ip={}", self.address()));
        command.arg(format!("--node-labels=topology.kubernetes.io/zone=zone-{}", self.number));
        let process = run.start(&format!("{}-kubelet", self.name), command)?;
        self.processes.insert(0, process);
        let config = self.write("kube-proxy.yaml", &self.proxy_config(proxy))?;
        let mut command = self.command(self.parts.programs.join("kube-proxy").to_str().context("no UTF-8")?);
        command.arg("--config").arg(config);
        let process = run.start(&format!("{}-kube-proxy", self.name), command)?;
        self.processes.insert(0, process);
        Ok(())
    }

    /// Everything on the node ends at once, and it is cut off, as when its power fails. Its disk stays.
    ///
    /// # Errors
    /// When the kernel does not let it go.
    pub fn power_off(&mut self) -> Result<()> {
        let loops = kernel::loops(&self.group)?;
        if let Some(mut holder) = self.holder.take() {
            holder.kill()?;
        }
        kernel::end_groups(&self.group)?;
        self.processes.clear();
        kernel::clear_group(&self.group)?;
        // Another machine's memory would be gone; here the kernel lives on.
        kernel::detach(&loops)
    }

    /// The node comes up again with the disk it had, until containerd runs.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn power_on(&mut self, run: &Run) -> Result<()> {
        for name in ["lib", "log", "lib/kubelet", "lib/containerd", "cni"] {
            let path = self.directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::create_dir_all(self.lib().join("kubelet/volumeplugins")).context("cannot make the plugins' directory")?;
        self.hold(run)?;
        self.parts.network.join(self.number, self.parts.nodes, self.pid)?;
        must("nsenter", ["--target", &self.pid.to_string(), "--net", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        self.write("cni/10-torus-e2e.conflist", &self.cni_config())?;
        let config = self.write("containerd.toml", &self.containerd_config())?;
        let mut command = self.command("containerd");
        command.arg("--config").arg(config);
        let mut process = run.start(&format!("{}-containerd", self.name), command)?;
        let is_up = process.until("it answers", READY, || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(self.said("ctr", ["--address", CONTAINERD_SOCKET, "version"]).is_ok())
        });
        self.processes.insert(0, process);
        is_up
    }

    /// Makes the namespaces.
    fn hold(&mut self, run: &Run) -> Result<()> {
        let ready = self.directory.join("held");
        // Left from an earlier life of the node.
        let _ = fs::remove_file(&ready);
        // In shell, as this has to be the first process in the namespaces. It collects those whose parents have ended.
        let script = "set -e; hostname \"$1\"; mount --make-rshared /
            mount --bind \"$2/lib\" /var/lib; mount --bind \"$2/log\" /var/log; mount -t tmpfs tmpfs /run
            : > \"$2/held\"; set +e; while :; do sleep 1000 & wait $!; done";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=slave", "--net", "--uts", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "sh", "-c", script, "sh", &self.name]).arg(&self.directory);
        let mut holder = run.start(&self.name, command)?;
        holder.until("its namespaces are made", READY, || Ok(ready.exists()))?;
        let children = format!("/proc/{0}/task/{0}/children", holder.pid());
        let child = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
        self.pid = child.trim().parse().context("the node has no first process")?;
        self.holder = Some(holder);
        Ok(())
    }

    fn containerd_config(&self) -> String {
        let cni = self.directory.join("cni");
        format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{}"
"#,
            cni.display()
        )
    }

    /// Pods hang on links of their own, and not on a bridge: what comes back from a service passes the node's rules that way
    /// without the kernel's bridge filter.
    fn cni_config(&self) -> String {
        let config = json!({
            "cniVersion": "0.4.0",
            "name": "torus-e2e",
            "plugins": [{
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{"subnet": self.parts.network.pods(self.number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        });
        format!("{config:#}\n")
    }

    fn kubelet_config(&self, ca: &Path) -> String {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": false}, "x509": {"clientCAFile": ca},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.group),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "failSwapOn": false,
            "failCgroupV1": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "volumePluginDir": FLEX_VOLUME_DIR,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            // An image that is thrown away to save space would have to come from a registry.
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": false,
            // Programs are killed here again and again, and would otherwise be waited for longer each time.
            "featureGates": {"KubeletCrashLoopBackOffMax": true},
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        });
        format!("{config:#}\n")
    }

    fn proxy_config(&self, kubeconfig: &Path) -> String {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig},
            "clusterCIDR": self.parts.network.cluster(),
            // Those of the machine, which a namespace cannot set.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
            "hostnameOverride": self.name,
            "mode": "iptables",
        });
        format!("{config:#}\n")
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Kills (-9) one of its daemons by name: `kubelet`, `containerd`, `kube-proxy`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, daemon: &str) -> Result<()> {
        let name = format!("{}-{daemon}", self.name);
        let at = self.processes.iter().position(|process| process.name() == name);
        let mut process = self.processes.remove(at.with_context(|| format!("{name} does not run"))?);
        // What runs as the daemon is the child of what entered the namespaces.
        let children = format!("/proc/{0}/task/{0}/children", process.pid());
        let child = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
        must("kill", ["-9", child.trim()])?;
        process.kill()?;
        let gone = PathBuf::from(format!("/proc/{}", child.trim()));
        until(&format!("{name} is gone"), READY, || Ok(!gone.exists()))
    }

    /// Lets its processes run on for good.
    pub fn leave(mut self) -> Result<()> {
        let mut all = self.processes.drain(..).chain(self.holder.take());
        all.try_for_each(Process::leave)
    }

    /// Fails when a part of it has ended, with the end of its log.
    pub fn is_whole(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended()? {
                anyhow::bail!("{} ended ({status}); it said:\n{}", process.name(), process.log_tail());
            }
        }
        ensure!(self.holder.is_some(), "{} is off", self.name);
        Ok(())
    }
}
