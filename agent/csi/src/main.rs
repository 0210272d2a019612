//! `torus-csi`: the CSI controller, and the CSI node plugin.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use torus_agent::metadata::{self, MetaArgs, MetaConfig};
use torus_agent::process::{Logging, file, logging, told};
use torus_csi::controller::Controller;
use torus_csi::identity::Driver;
use torus_csi::node::Plugin;
use torus_csi::{REQUEST_BYTES_MAX, registration, serve};
use torus_proto::csi::controller_server::ControllerServer;
use torus_proto::csi::identity_server::IdentityServer;
use torus_proto::csi::node_server::NodeServer;

/// Settings that make no sense.
const EXIT_USAGE: u8 = 2;
/// How long is waited before etcd is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Torus for Kubernetes: the services of the Container Storage Interface, on unix sockets
#[derive(Parser, Debug)]
#[command(name = "torus-csi", version, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    service: Service,
    /// What to log: a level, or target=level pairs
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "info", global = true)]
    log: String,
    /// Log one JSON object per line
    #[arg(long, env = "TORUS_LOG_JSON", global = true)]
    log_json: bool,
}

#[derive(Subcommand, Debug)]
enum Service {
    /// Makes, deletes, grows and publishes volumes; one for a cluster is enough, several do no harm
    Controller(ControllerArgs),
    /// Translates between the kubelet and the agent on this host
    Node(NodeArgs),
}

#[derive(clap::Args, Debug)]
struct ControllerArgs {
    /// Serve CSI on this socket
    #[arg(long, env = "TORUS_CSI_SOCKET", value_name = "PATH")]
    csi_socket: PathBuf,
    /// Take the settings of the metadata store from this file: an agent's, of which the rest is not looked at
    #[arg(long, env = "TORUS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    meta: MetaArgs,
}

#[derive(clap::Args, Debug)]
struct NodeArgs {
    /// Serve CSI on this socket
    #[arg(long, env = "TORUS_CSI_SOCKET", value_name = "PATH")]
    csi_socket: PathBuf,
    /// Where the agent on this host serves its node service
    #[arg(long, env = "TORUS_NODE_SOCKET", value_name = "PATH", default_value = torus_agent::node::SOCKET)]
    node_socket: PathBuf,
    /// Make the plugin known to the kubelet, which looks for plugins here; otherwise somebody else has to
    #[arg(long, env = "TORUS_REGISTRATION_DIR", value_name = "DIR")]
    registration_dir: Option<PathBuf>,
    /// Where the kubelet finds the CSI socket [default: --csi-socket]
    #[arg(long, env = "TORUS_KUBELET_CSI_SOCKET", value_name = "PATH")]
    kubelet_csi_socket: Option<PathBuf>,
    /// What Kubernetes calls this node: refuses to serve if the agent says another name
    #[arg(long, env = "TORUS_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = logging::start(&Logging { filter: args.log, json: args.log_json }) {
        return complain(EXIT_USAGE, &error.to_string());
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(1, &format!("cannot start: {error}")),
    };
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => return complain(1, &format!("cannot listen for signals: {error}")),
        };
        let served = async {
            match args.service {
                Service::Controller(args) => controller(args, stop.clone()).await,
                Service::Node(args) => node(args, stop.clone()).await,
            }
        };
        tokio::pin!(served);
        tokio::select! {
            ended = &mut served => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
        tokio::select! {
            ended = &mut served => ended,
            // What is under way is done again when it is asked for again.
            () = tokio::time::sleep(Duration::from_secs(5)) => ExitCode::SUCCESS,
        }
    })
}

async fn controller(args: ControllerArgs, stop: CancellationToken) -> ExitCode {
    let config = match meta(&args) {
        Ok(config) => config,
        Err(text) => return complain(EXIT_USAGE, &text),
    };
    let store = loop {
        match metadata::connect(&config).await {
            Ok(store) => break store,
            Err(error) if error.is_transient() => tracing::warn!("{}; trying again", told(&error)),
            Err(error) => return complain(1, &told(&error)),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return ExitCode::SUCCESS,
        }
    };
    let controller = Controller::new(store);
    let identity = IdentityServer::new(Driver(Arc::new(controller.clone())));
    let service = ControllerServer::new(controller).max_decoding_message_size(REQUEST_BYTES_MAX);
    ended(serve(&args.csi_socket, Server::builder().add_service(identity).add_service(service), stop).await)
}

async fn node(args: NodeArgs, stop: CancellationToken) -> ExitCode {
    let plugin = match Plugin::new(&args.node_socket, args.node_name) {
        Ok(plugin) => plugin,
        Err(error) => return complain(EXIT_USAGE, &error),
    };
    let identity = IdentityServer::new(Driver(Arc::new(plugin.clone())));
    let service = NodeServer::new(plugin.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let csi = serve(&args.csi_socket, Server::builder().add_service(identity).add_service(service), stop.clone());
    let registering = async {
        match &args.registration_dir {
            Some(directory) => {
                let endpoint = args.kubelet_csi_socket.as_deref().unwrap_or(&args.csi_socket);
                registration::serve(directory, endpoint, &plugin, stop.clone()).await
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = csi => ended(served),
        registered = registering => ended(registered),
    }
}

/// The settings of the metadata store.
fn meta(args: &ControllerArgs) -> Result<MetaConfig, String> {
    let config = match &args.config {
        None => args.meta.config(),
        Some(path) => {
            let line = ["torus-agent".into(), "--config".into(), OsString::from(path)];
            file::parse(line).map_err(|error| told(&error))?.meta.config()
        }
    };
    config.map_err(|error| told(&error))
}

fn ended(served: Result<(), torus_csi::ServeError>) -> ExitCode {
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(1, &told(&error)),
    }
}

fn complain(code: u8, text: &str) -> ExitCode {
    eprintln!("torus-csi: {text}");
    ExitCode::from(code)
}
