//! A TCP proxy before an etcd, to break connections where it hurts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does to its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Everything goes through.
    Pass = 0,
    /// Requests arrive, answers are swallowed.
    Swallow = 1,
    /// Connections are closed, new ones at once.
    Cut = 2,
}

pub struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    changed: watch::Sender<()>,
}

impl Proxy {
    /// Before the server at `url`, which is `http://127.0.0.1:port`.
    pub async fn before(url: &str) -> Self {
        let target = url.strip_prefix("http://").unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(Mode::Pass as u8));
        let (changed, changes) = watch::channel(());
        let shared = mode.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), shared.clone(), changes.clone()));
            }
        });
        Self { port, mode, changed }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
        self.changed.send_replace(());
    }
}

async fn carry(mut client: TcpStream, target: String, mode: Arc<AtomicU8>, mut changes: watch::Receiver<()>) {
    let is = |wanted: Mode| mode.load(Ordering::SeqCst) == wanted as u8;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    while !is(Mode::Cut) {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(count) if count > 0 => if server.write_all(&up[..count]).await.is_err() { return },
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(count) if count > 0 && is(Mode::Pass) => if client.write_all(&down[..count]).await.is_err() { return },
                Ok(count) if count > 0 => {}
                _ => return,
            },
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
