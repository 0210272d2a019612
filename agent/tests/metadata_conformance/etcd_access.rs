//! Users, passwords, TLS: who is let in, and what is said to those who are not.

use crate::bed::{PATIENCE, changes, committed, config, get, put, refusal, with_etcd};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use torus_agent::metadata::{ConfigError, MetaConfig, OpenError, TlsFiles, connect};
use torus_core::meta::{MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn};
use torus_e2e::etcd::{Etcd, Options, Tls};

async fn write(store: &dyn MetadataStore, key: &str) -> Result<MetaReply, MetaError> {
    store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![put(key, "v")] })).await
}

async fn refused_to_open(config: MetaConfig) -> OpenError {
    match connect(&config).await {
        Ok(store) => panic!("{} was opened", store.describe()),
        Err(error) => error,
    }
}

/// An etcd with authentication: `root` may do all, `torus` may read and write `/torus/`.
async fn with_users() -> Etcd {
    let etcd = with_etcd(Etcd::start).await;
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    client.role_add("torus").await.unwrap();
    let all = etcd_client::Permission::read_write("/torus/").with_prefix();
    client.role_grant_permission("torus", all).await.unwrap();
    for user in ["root", "torus"] {
        client.user_add(user, format!("{user}-password"), None).await.unwrap();
    }
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_grant_role("torus", "torus").await.unwrap();
    client.auth_enable().await.unwrap();
    etcd
}

fn as_user(url: &str, user: &str, password: &str) -> MetaConfig {
    MetaConfig { user: Some((user.into(), password.into())), ..config(url) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_gets_what_it_may_and_others_are_told_why_not() {
    let etcd = with_users().await;
    let torus = as_user(&etcd.url(), "torus", "torus-password");
    let store = connect(&torus).await.unwrap();
    committed(write(&*store, "k").await);
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    assert!(store.keep_alive(lease).await.unwrap());

    let nobody = refused_to_open(config(&etcd.url())).await;
    assert!(matches!(nobody, OpenError::Refused { .. }) && nobody.to_string().contains("--etcd-user"), "{nobody}");
    for (user, password) in [("torus", "wrong"), ("stranger", "torus-password")] {
        let error = refused_to_open(as_user(&etcd.url(), user, password)).await;
        assert!(matches!(error, OpenError::Refused { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("password") && text.contains(&etcd.url()) && !text.contains("torus-password"), "{text}");
    }
    let elsewhere = MetaConfig { prefix: "/secret/".into(), ..torus.clone() };
    let error = refused_to_open(elsewhere).await;
    assert!(error.to_string().contains("permission denied"), "{error}");

    // A role that may read only.
    let root = etcd_client::ConnectOptions::new().with_user("root", "root-password");
    let mut client = etcd_client::Client::connect([etcd.url()], Some(root)).await.unwrap();
    let all = etcd_client::RoleRevokePermissionOptions::new().with_prefix();
    client.role_revoke_permission("torus", "/torus/", Some(all)).await.unwrap();
    let read = etcd_client::Permission::read("/torus/").with_prefix();
    client.role_grant_permission("torus", read).await.unwrap();
    assert!(get(&*store, "k").await.unwrap().is_some());
    assert!(refusal(write(&*store, "k").await).contains("permission denied"));
    store.watch("k".into(), Revision(0)).await.unwrap();
    client.user_revoke_role("torus", "torus").await.unwrap();
    let error = store.watch("k".into(), Revision(0)).await.err();
    assert!(matches!(&error, Some(MetaError::Refused(text)) if text.contains("ermission")), "{error:?}");
}

/// etcd keeps its tokens in memory: after its restart, every token is unknown to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_token_is_renewed() {
    let etcd = with_users().await;
    let store = connect(&as_user(&etcd.url(), "torus", "torus-password")).await.unwrap();
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let first = committed(write(&*store, "k").await);
    assert_eq!(changes(&mut *watch).await.1, first);
    let mut etcd = etcd;
    let _etcd = with_etcd(move || etcd.restart().map(|()| etcd)).await;
    let until = Instant::now() + PATIENCE;
    let second = loop {
        match write(&*store, "k").await {
            Ok(reply) => break committed(Ok(reply)),
            // The connection that the restart broke.
            Err(MetaError::Unknown(_)) => assert!(Instant::now() < until),
            Err(refused) => panic!("{refused}"),
        }
    };
    assert!(store.keep_alive(lease).await.unwrap());
    let mut seen = changes(&mut *watch).await.1;
    while seen < second {
        seen = changes(&mut *watch).await.1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_for_an_etcd_without_users_is_refused() {
    let etcd = with_etcd(Etcd::start).await;
    let error = refused_to_open(as_user(&etcd.url(), "torus", "x")).await;
    assert!(error.to_string().contains("no authentication enabled"), "{error}");
}

/// A certificate authority in a directory.
struct Authority<'a> {
    issuer: CertifiedIssuer<'static, KeyPair>,
    name: &'static str,
    dir: &'a Path,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path, name: &'static str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, name, dir };
        std::fs::write(authority.ca(), authority.issuer.pem()).unwrap();
        authority
    }

    fn ca(&self) -> PathBuf {
        self.dir.join(format!("{}-ca.pem", self.name))
    }

    /// A certificate for `name` and its key.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.dir.join(format!("{}-{name}-{kind}.pem", self.name));
        let (cert_file, key_file) = (file("cert"), file("key"));
        std::fs::write(&cert_file, cert.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }
}

async fn etcd_with((cert, key): (PathBuf, PathBuf), client_ca: Option<PathBuf>) -> Etcd {
    let options = Options { tls: Some(Tls { cert, key, client_ca }), ..Options::default() };
    with_etcd(move || Etcd::start_with(options)).await
}

fn trusting(url: &str, ca: PathBuf) -> MetaConfig {
    MetaConfig { tls: Some(TlsFiles { ca, identity: None }), ..config(url) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_whom_the_ca_signed_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let etcd = etcd_with(ours.sign("127.0.0.1"), None).await;
    let store = connect(&trusting(&etcd.url(), ours.ca())).await.unwrap();
    committed(write(&*store, "k").await);
    let mut watch = store.watch("k".into(), Revision(0)).await.unwrap();
    let second = committed(write(&*store, "k").await);
    assert_eq!(changes(&mut *watch).await.1, second);

    let stranger = refused_to_open(trusting(&etcd.url(), theirs.ca())).await.to_string();
    assert!(stranger.contains("not signed by the CA") && stranger.contains(&etcd.url()), "{stranger}");

    let plain = etcd.url().replace("https", "http");
    let error = refused_to_open(config(&plain)).await.to_string();
    assert!(error.contains(&plain) && error.contains("https"), "{error}");

    let in_the_clear = with_etcd(Etcd::start).await;
    let secure = in_the_clear.url().replace("http", "https");
    let error = refused_to_open(trusting(&secure, ours.ca())).await.to_string();
    assert!(error.contains("does not speak TLS"), "{error}");

    let other_name = etcd_with(ours.sign("etcd.example.net"), None).await;
    let error = refused_to_open(trusting(&other_name.url(), ours.ca())).await.to_string();
    assert!(error.contains("for another name or address"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let etcd = etcd_with(ours.sign("127.0.0.1"), Some(ours.ca())).await;
    let showing = |identity: Option<(PathBuf, PathBuf)>| {
        let trusting = trusting(&etcd.url(), ours.ca());
        MetaConfig { tls: Some(TlsFiles { ca: ours.ca(), identity }), ..trusting }
    };
    let store = connect(&showing(Some(ours.sign("agent")))).await.unwrap();
    committed(write(&*store, "k").await);
    for identity in [None, Some(theirs.sign("agent"))] {
        let error = refused_to_open(showing(identity)).await.to_string();
        assert!(error.contains("ertificate"), "{error}");
    }
}

#[tokio::test]
async fn tls_files_that_are_no_good_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.pem");
    let error = refused_to_open(trusting("https://127.0.0.1:1", missing.clone())).await;
    assert!(matches!(&error, OpenError::Config(ConfigError::TlsFile { path, .. }) if *path == missing), "{error}");
    let ours = Authority::new(dir.path(), "ours");
    let (cert, key) = ours.sign("agent");
    let garbage = dir.path().join("garbage.pem");
    std::fs::write(&garbage, "not a certificate").unwrap();
    let with = |ca: &PathBuf, cert: &PathBuf, key: &PathBuf| {
        let tls = Some(TlsFiles { ca: ca.clone(), identity: Some((cert.clone(), key.clone())) });
        MetaConfig { tls, ..config("https://127.0.0.1:1") }
    };
    for config in [with(&garbage, &cert, &key), with(&ours.ca(), &garbage, &key), with(&ours.ca(), &cert, &garbage)] {
        let error = refused_to_open(config).await;
        assert!(
            matches!(&error, OpenError::Config(ConfigError::TlsContent { path, .. }) if *path == garbage),
            "{error}"
        );
    }
    // Marked as what it should be, and broken.
    std::fs::write(&garbage, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let error = refused_to_open(with(&ours.ca(), &cert, &garbage)).await;
    assert!(matches!(&error, OpenError::Config(ConfigError::Tls { .. })), "{error}");
}
