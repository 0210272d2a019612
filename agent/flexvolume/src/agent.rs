//! The agent of this host, asked over its socket.

use crate::call::Call;
use crate::reply::Reply;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use torus_proto::node::node_client::NodeClient;
use torus_proto::node::{AttachReply, AttachRequest, DetachRequest, InfoRequest, StatusRequest};

/// Names the agent's socket, over all else.
const SOCKET_ENV: &str = "TORUS_NODE_SOCKET";
/// A file beside the driver that names it: the agent that installs the driver writes it.
const SOCKET_FILE: &str = "socket";
/// Where it is if nobody says so.
const SOCKET_DEFAULT: &str = "/run/torus/node.sock";
/// How long the agent may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Has `call` done.
pub async fn carry_out(call: Call) -> Reply {
    // What needs no agent is answered without one: a kubelet asks at its start.
    match call {
        Call::Init => return Reply::ready(),
        Call::Version => return Reply::version(),
        Call::Name(options) => return Reply::volume_name(options.volume),
        _ => {}
    }
    let socket = socket();
    let channel = match connect(&socket).await {
        Ok(channel) => channel,
        Err(error) => {
            return Reply::failure(format!(
                "the Torus agent of this host does not answer at {}: {error}. `torusctl flex doctor` finds out why",
                socket.display()
            ));
        }
    };
    match ask(&mut NodeClient::new(channel), call).await {
        Ok(reply) => reply,
        Err(status) => Reply::failure(status.message()),
    }
}

async fn ask(agent: &mut NodeClient<Channel>, call: Call) -> Result<Reply, Status> {
    Ok(match call {
        Call::Init => Reply::ready(),
        Call::Version => Reply::version(),
        Call::Name(options) => Reply::volume_name(options.volume),
        Call::Attach(options, node) => {
            if let Some(node) = node {
                let here = agent.info(InfoRequest {}).await?.into_inner().node;
                if here != node {
                    return Ok(Reply::failure(format!(
                        "this host is {here:?}: volumes are attached to {node:?} there"
                    )));
                }
            }
            let read_only = options.read_only;
            let attach = AttachRequest { volume: options.volume, read_only, ..AttachRequest::default() };
            Reply::device(agent.attach(attach).await?.into_inner().device)
        }
        Call::IsAttached(options) => {
            match agent.status(StatusRequest { volume: options.volume, path: String::new() }).await {
                Ok(_) => Reply::attached(true),
                Err(status) if status.code() == Code::NotFound => Reply::attached(false),
                Err(status) => return Err(status),
            }
        }
        Call::Detach(volume) => {
            agent.detach(DetachRequest { volume, directory: String::new() }).await?;
            Reply::success()
        }
        Call::Mount(directory, options) => {
            let attach = AttachRequest {
                volume: options.volume,
                read_only: options.read_only,
                must_be_published: false,
                directory,
                filesystem: options.filesystem,
                mount_flags: if options.trim { vec!["discard".into()] } else { Vec::new() },
                make_directory: true,
            };
            let AttachReply { device, .. } = agent.attach(attach).await?.into_inner();
            Reply::device(device)
        }
        Call::Unmount(directory) => {
            agent.detach(DetachRequest { volume: directory.clone(), directory }).await?;
            Reply::success()
        }
    })
}

fn socket() -> PathBuf {
    let beside = || {
        let file = std::env::current_exe().ok()?.with_file_name(SOCKET_FILE);
        Some(std::fs::read_to_string(file).ok()?.trim().into())
    };
    std::env::var_os(SOCKET_ENV).map(PathBuf::from).or_else(beside).unwrap_or_else(|| SOCKET_DEFAULT.into())
}

async fn connect(socket: &std::path::Path) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.map_err(|error| error.to_string())?.connect_timeout(CONNECT);
    endpoint.connect().await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        cause.to_string()
    })
}
