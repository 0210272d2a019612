//! Makes the node plugin known to the kubelet, by the kubelet's own protocol: no registrar beside it is needed.

use crate::identity::Health;
use crate::{DRIVER, ServeError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use torus_proto::registration::registration_server::{Registration, RegistrationServer};
use torus_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// The versions of CSI that are served, as the kubelet spells them.
const VERSIONS: [&str; 1] = ["1.0.0"];

/// How often is looked whether the node service answers.
const POLL: Duration = Duration::from_millis(200);
/// How long is waited after the kubelet has refused.
const AGAIN: Duration = Duration::from_secs(2);

struct Plugin {
    endpoint: PathBuf,
    /// Cancelled when the kubelet refuses.
    refused: CancellationToken,
}

/// Serves registration in `directory` until `stop`; the kubelet is told that CSI is at `endpoint`.
///
/// A kubelet asks once, when the socket appears, and at once asks the node service who it is; one that gets no answer never asks
/// again. So the socket appears when `node` answers, and goes and comes again when the kubelet has refused all the same.
///
/// # Errors
/// As [`crate::serve`].
pub async fn serve<H: Health>(
    directory: &Path,
    endpoint: &Path,
    node: &H,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let socket = directory.join(socket_name());
    loop {
        while !node.is_ready().await {
            tokio::select! {
                () = sleep(POLL) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        let refused = stop.child_token();
        let service = RegistrationServer::new(Plugin { endpoint: endpoint.into(), refused: refused.clone() });
        crate::serve(&socket, Server::builder().add_service(service), refused).await?;
        tokio::select! {
            () = sleep(AGAIN) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
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
            false => {
                tracing::error!("the kubelet does not take the plugin: {error}; it will be asked again");
                self.refused.cancel();
            }
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::time::timeout;
    use tonic::codegen::http::uri::Authority;
    use tonic::transport::Endpoint;
    use torus_proto::registration::registration_client::RegistrationClient;

    #[test]
    fn the_kubelets_name_for_the_socket_is_an_authority() {
        let path = format!("/var/lib/kubelet/plugins_registry/{}", socket_name());
        // As grpc-go escapes it: all but letters, digits, `-_.~`, sub-delimiters and `:[]@`.
        let escaped = path.replace('/', "%2F");
        assert!(Authority::try_from(escaped.as_str()).is_ok(), "{escaped}");
        assert!(Authority::try_from(escaped.replace('@', "-").as_str()).is_err());
    }

    struct Agent(Arc<AtomicBool>);

    #[async_trait]
    impl Health for Agent {
        async fn is_ready(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(Duration::from_secs(60), met).await.is_ok(), "waited in vain for {what}");
    }

    #[tokio::test]
    async fn it_is_offered_when_the_agent_answers_and_again_when_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(socket_name());
        let (is_up, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let place = directory.path().to_owned();
        let (agent, stopped) = (Agent(Arc::clone(&is_up)), stop.clone());
        let served = tokio::spawn(async move { serve(&place, Path::new("/csi.sock"), &agent, stopped).await });
        sleep(POLL * 2).await;
        assert!(!socket.exists(), "offered without an agent");
        is_up.store(true, Ordering::Relaxed);
        until("the offer", || socket.exists()).await;
        let made = || socket.metadata().and_then(|file| file.modified()).ok();
        let first = made();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let mut kubelet = RegistrationClient::new(endpoint.connect().await.unwrap());
        assert_eq!(kubelet.get_info(InfoRequest {}).await.unwrap().into_inner().endpoint, "/csi.sock");
        let refusal = RegistrationStatus { plugin_registered: false, error: "no".into() };
        kubelet.notify_registration_status(refusal).await.unwrap();
        drop(kubelet);
        until("the next offer", || made().is_some_and(|made| Some(made) != first)).await;
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}
