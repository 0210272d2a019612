//! Makes the node plugin known to the kubelet, by the kubelet's own protocol: no registrar beside it is needed.

use crate::{DRIVER, ServeError};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use torus_proto::registration::registration_server::{Registration, RegistrationServer};
use torus_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// The versions of CSI that are served, as the kubelet spells them.
const VERSIONS: [&str; 1] = ["1.0.0"];

struct Plugin {
    endpoint: PathBuf,
}

/// Serves registration in `directory` until `stop`; the kubelet is told that CSI is at `endpoint`.
///
/// # Errors
/// As [`crate::serve`].
pub async fn serve(directory: &Path, endpoint: &Path, stop: CancellationToken) -> Result<(), ServeError> {
    let service = RegistrationServer::new(Plugin { endpoint: endpoint.into() });
    let socket = directory.join(format!("{DRIVER}-reg.sock"));
    crate::serve(&socket, Server::builder().add_service(service), stop).await
}

#[async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        match plugin_registered {
            true => tracing::info!("the kubelet has taken the plugin"),
            // It asks again when the socket is made anew, or it is restarted.
            false => tracing::error!("the kubelet does not take the plugin: {error}"),
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
