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
    crate::serve(&directory.join(socket_name()), Server::builder().add_service(service), stop).await
}

/// The socket's name, with an `@` for a reason: the kubelet calls with the escaped path of the socket as the `:authority` of HTTP/2,
/// and the `%` of an escape is refused there except before an `@`.
fn socket_name() -> String {
    format!("{DRIVER}@reg.sock")
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

#[cfg(test)]
mod tests {
    use super::socket_name;
    use tonic::codegen::http::uri::Authority;

    #[test]
    fn the_kubelets_name_for_the_socket_is_an_authority() {
        let path = format!("/var/lib/kubelet/plugins_registry/{}", socket_name());
        // As grpc-go escapes it: all but letters, digits, `-_.~`, sub-delimiters and `:[]@`.
        let escaped = path.replace('/', "%2F");
        assert!(Authority::try_from(escaped.as_str()).is_ok(), "{escaped}");
        assert!(Authority::try_from(escaped.replace('@', "-").as_str()).is_err());
    }
}
