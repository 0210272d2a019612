//! `torusctl flex doctor`: finds out why FlexVolumes do not work on this host, and says how to mend it.

use crate::failure::{Failure, Kind};
use crate::output::{Printer, Record, Style};
use clap::Subcommand;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command as Process;
use tokio::time::timeout;
use torus_agent::node;
use torus_agent::process::flexvolume::{DRIVER, DRIVER_DIR, SOCKET_FILE};
use torus_proto::node::InfoRequest;
use torus_proto::node::node_client::NodeClient;

/// Where kubelets look for drivers unless told otherwise.
const DIRECTORY: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
/// How long a driver or an agent may take to say who it is.
const ASKED: Duration = Duration::from_secs(5);

/// The FlexVolume driver of this host.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Look for what is wrong with the FlexVolume driver on this host
    Doctor(Doctor),
}

/// Where to look.
#[derive(clap::Args, Debug)]
struct Doctor {
    /// The kubelet's --volume-plugin-dir.
    #[arg(long, env = "TORUS_FLEXVOLUME_DIR", value_name = "DIR", default_value = DIRECTORY)]
    flexvolume_dir: PathBuf,
    /// The agent's socket [default: what stands beside the driver, or /run/torus/node.sock].
    #[arg(long, env = "TORUS_NODE_SOCKET", value_name = "PATH")]
    node_socket: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    sound: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn sound(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, sound: true, found: found.into(), mend: None }
    }

    fn wrong(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what, sound: false, found: found.into(), mend: Some(mend.into()) }
    }
}

impl Record for Finding {
    const COLUMNS: &'static [&'static str] = &["WHAT", "", "FOUND", "WHAT TO DO"];

    fn cells(&self, _: Style) -> Vec<String> {
        let mark = if self.sound { "ok" } else { "wrong" };
        vec![self.what.into(), mark.into(), self.found.clone(), self.mend.clone().unwrap_or_default()]
    }
}

/// Does it.
pub async fn run(args: Args, printer: Printer) -> Result<(), Failure> {
    let Command::Doctor(doctor) = args.command;
    let place = doctor.flexvolume_dir.join(DRIVER_DIR);
    let beside = || Some(std::fs::read_to_string(place.join(SOCKET_FILE)).ok()?.trim().into());
    let socket = doctor.node_socket.clone().or_else(beside).unwrap_or_else(|| node::SOCKET.into());
    let mut findings = vec![directory(&doctor.flexvolume_dir)];
    let (finding, version) = driver(&place.join(DRIVER)).await;
    findings.push(finding);
    findings.push(file(&socket));
    findings.extend(agent(&socket, version.as_deref()).await);
    printer.list(&findings)?;
    match findings.iter().filter(|finding| !finding.sound).count() {
        0 => Ok(()),
        wrong => {
            let sentence = format!("{wrong} of {} things are wrong on this host", findings.len());
            Err(Failure::failed_as(Kind::Failed, sentence).next("The last column says what to do."))
        }
    }
}

fn directory(path: &Path) -> Finding {
    let what = "plugin directory";
    let shown = path.display();
    let other = "start the kubelet with --volume-plugin-dir=/var/lib/kubelet/volumeplugins, and the agent with the same \
                 as --flexvolume-dir";
    if !path.is_dir() {
        return Finding::wrong(what, format!("{shown} is not there"), format!("make it, or {other}"));
    }
    match access(path, AccessFlags::W_OK) {
        Ok(()) => Finding::sound(what, shown.to_string()),
        Err(nix::Error::EROFS) => Finding::wrong(what, format!("{shown} is on a read-only filesystem"), other),
        Err(error) => Finding::wrong(what, format!("{shown} cannot be written to: {error}"), "run this as root"),
    }
}

/// What there is of the driver, and the version that it says it has.
async fn driver(path: &Path) -> (Finding, Option<String>) {
    let what = "driver";
    let shown = path.display();
    let install = "start the agent of this host with --role node and --flexvolume-dir";
    let Ok(found) = std::fs::metadata(path) else {
        return (Finding::wrong(what, format!("{shown} is not there"), install), None);
    };
    if found.permissions().mode() & 0o111 == 0 {
        let mend = format!("chmod 755 {shown}; and see that its filesystem is not mounted noexec");
        return (Finding::wrong(what, format!("{shown} is not executable"), mend), None);
    }
    let mut call = Process::new(path);
    call.arg("version").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(ASKED, call.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return (Finding::wrong(what, format!("{shown} cannot be run: {error}"), install), None),
        Err(_) => return (Finding::wrong(what, format!("{shown} does not end"), install), None),
    };
    let reply: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
    let version = reply.as_ref().and_then(|reply| Some(reply.get("version")?.as_str()?.to_owned()));
    match version {
        Some(version) => (Finding::sound(what, format!("{shown}, version {version}")), Some(version)),
        None => (Finding::wrong(what, format!("{shown} does not answer as Torus's driver"), install), None),
    }
}

fn file(socket: &Path) -> Finding {
    let what = "agent's socket";
    let shown = socket.display();
    match std::fs::metadata(socket) {
        Ok(found) if found.file_type().is_socket() => Finding::sound(what, shown.to_string()),
        Ok(_) => Finding::wrong(what, format!("{shown} is no socket"), "remove it, and start the agent again"),
        Err(error) => Finding::wrong(
            what,
            format!("{shown}: {error}"),
            "start torus-agent --role node on this host; in a container, with /run/torus of the host mounted",
        ),
    }
}

async fn agent(socket: &Path, driver: Option<&str>) -> Vec<Finding> {
    let what = "agent";
    let wrong = |found: String| {
        vec![Finding::wrong(what, found, "look at the agent's log; start it with --role node, and run this as root")]
    };
    let endpoint = match tonic::transport::Endpoint::from_shared(format!("unix://{}", socket.display())) {
        Ok(endpoint) => endpoint.connect_timeout(ASKED).timeout(ASKED),
        Err(error) => return wrong(error.to_string()),
    };
    let asked = async {
        let mut client = NodeClient::new(endpoint.connect().await.map_err(|error| crate::failure::told(&error))?);
        let info = client.info(InfoRequest {}).await.map_err(|status| status.message().to_owned())?;
        Ok::<_, String>(info.into_inner())
    };
    let info = match asked.await {
        Ok(info) => info,
        Err(why) => return wrong(format!("does not answer: {why}")),
    };
    let same = driver.is_none_or(|driver| driver == info.version);
    let answer = format!("node {:?}, version {}", info.node, info.version);
    let version = match same {
        true => Finding::sound(what, answer),
        false => Finding::wrong(what, answer, "start the agent again: it installs the driver of its own version"),
    };
    let device = match info.device_failure.is_empty() {
        true => Finding::sound("devices", info.device_kind),
        false => {
            Finding::wrong("devices", info.device_failure, "load the module on the host, and start the agent again")
        }
    };
    vec![version, device]
}
