//! The way to the apiserver. What stands in it is said so that a person knows what to do next: what is in the way of the first call is
//! rarely Torus.

use anyhow::{Error, Result, bail};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// How long the apiserver may take to be reached, and to say something.
const PATIENCE: Duration = Duration::from_secs(15);
/// How to name another cluster.
const OTHERWISE: &str = "name another cluster with --kubeconfig or --context";

/// Which cluster is meant.
#[derive(clap::Args)]
pub struct Whom {
    /// The kubeconfig; unless given, $KUBECONFIG, ~/.kube/config, or that of the pod
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of it
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The namespace that Torus is in
    #[arg(long, short, global = true, value_name = "NAME", default_value = "torus-system")]
    namespace: String,
}

/// A cluster that can be asked.
pub struct Access {
    /// What asks.
    pub client: Client,
    /// The namespace that Torus is in.
    pub namespace: String,
    server: String,
}

impl Access {
    /// Ready to ask; nothing was asked yet.
    ///
    /// # Errors
    /// When no cluster is known, or what is known of it cannot be used.
    pub async fn open(whom: &Whom) -> Result<Access> {
        let mut config = config(whom).await?;
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        Ok(Access { client, namespace: whom.namespace.clone(), server })
    }

    /// All of a kind. `what` is their name in the plural.
    ///
    /// # Errors
    /// When the apiserver does not say.
    pub async fn list<K: Clone + Debug + DeserializeOwned>(&self, api: &Api<K>, what: &str) -> Result<Vec<K>, Refusal> {
        match api.list(&ListParams::default()).await {
            Ok(found) => Ok(found.items),
            Err(error) => Err(self.refusal(&format!("list {what}"), &error)),
        }
    }

    /// What it means that the apiserver did not do something, such as `list nodes`.
    pub fn refusal(&self, doing: &str, error: &kube::Error) -> Refusal {
        let Access { server, namespace, .. } = self;
        match error {
            // What is named may be missing too; but these calls name nothing that has to be there.
            kube::Error::Api(status) if status.code == 404 => Refusal::Passing(format!(
                "cannot {doing}: Torus is not installed at {server}: helm install torus charts/torus -n {namespace} --create-namespace"
            )),
            kube::Error::Api(status) if status.code == 401 => Refusal::Final(format!(
                "cannot {doing}: {server} does not know who you are: renew what the kubeconfig says of its user, or {OTHERWISE}"
            )),
            kube::Error::Api(status) if status.code == 403 => Refusal::Final(format!(
                "cannot {doing}: {}: have somebody give you that right at {server}, or be another user with --kubeconfig or --context",
                status.message
            )),
            kube::Error::Api(status) => Refusal::Passing(format!("cannot {doing}: {server} says: {}", status.message)),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Refusal::Passing(format!(
                "cannot {doing}: {server} does not answer ({}): see that its apiserver runs and can be reached from here, or {OTHERWISE}",
                root(error)
            )),
            other => Refusal::Final(format!("cannot {doing} at {server}: {}", root(other))),
        }
    }
}

/// Why the apiserver did not do something.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It may come to pass: who waits goes on waiting.
    #[error("{0}")]
    Passing(String),
    /// Nothing comes of waiting.
    #[error("{0}")]
    Final(String),
}

async fn config(whom: &Whom) -> Result<Config> {
    let read = match &whom.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let kubeconfig = match read {
        Ok(kubeconfig) => kubeconfig,
        Err(error) if whom.kubeconfig.is_none() && whom.context.is_none() && is_missing(&error) => {
            return Config::incluster().map_err(|_| {
                anyhow::anyhow!("no Kubernetes cluster is known here: pass --kubeconfig FILE, or set KUBECONFIG")
            });
        }
        Err(KubeconfigError::ReadConfig(error, path)) => {
            bail!("cannot read the kubeconfig {}: {error}: correct --kubeconfig or $KUBECONFIG", path.display())
        }
        Err(error) => return Err(unusable(&error)),
    };
    let names: Vec<_> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let wanted = whom.context.clone().or_else(|| kubeconfig.current_context.clone()).filter(|name| !name.is_empty());
    let known = if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) };
    match wanted {
        None => bail!("the kubeconfig has no current context ({known}): pass --context, or kubectl config use-context"),
        Some(name) if !names.contains(&name) => {
            bail!("the kubeconfig has no context {name:?} ({known}): correct --context, or kubectl config get-contexts")
        }
        Some(_) => {}
    }
    let options = KubeConfigOptions { context: whom.context.clone(), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error))
}

fn is_missing(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        // One that was named has to be there.
        KubeconfigError::ReadConfig(error, _) => {
            error.kind() == ErrorKind::NotFound && std::env::var_os("KUBECONFIG").is_none()
        }
        _ => false,
    }
}

fn unusable(error: &dyn std::error::Error) -> Error {
    anyhow::anyhow!("the kubeconfig cannot be used: {}: correct it, or name another with --kubeconfig", root(error))
}

/// What was at the bottom of an error, in a line: what wraps it says where in a library it went through.
fn root(error: &dyn std::error::Error) -> String {
    let mut bottom = error;
    while let Some(source) = bottom.source() {
        bottom = source;
    }
    bottom.to_string().lines().next().unwrap_or_default().to_owned()
}
