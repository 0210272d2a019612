//! A TCP proxy before an etcd, to break connections where it hurts.

use crate::bed::PATIENCE;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does to its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Everything goes through.
    Pass,
    /// Requests arrive, answers are swallowed.
    Swallow,
    /// Connections are closed, new ones at once.
    Cut,
}

pub struct Proxy {
    port: u16,
    /// Every connection has a receiver, and nothing else has one.
    mode: Arc<watch::Sender<Mode>>,
    answers: Arc<AtomicUsize>,
}

impl Proxy {
    /// Before the server at `url`, which is `http://127.0.0.1:port`.
    pub async fn before(url: &str) -> Self {
        let target = url.strip_prefix("http://").unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let answers = Arc::new(AtomicUsize::new(0));
        let proxy = Self { port, mode: mode.clone(), answers: answers.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(mode.subscribe(), client, target.clone(), answers.clone()));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many times something went back to a client.
    pub fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    /// After a cut, returns when the connections are closed: one that had not heard of it yet would live through a cut
    /// that is soon over.
    pub async fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
        if mode == Mode::Cut {
            tokio::time::timeout(PATIENCE, self.mode.closed()).await.expect("connections are closed in time");
        }
    }
}

async fn carry(mut mode: watch::Receiver<Mode>, client: TcpStream, target: String, answers: Arc<AtomicUsize>) {
    let carried = between(mode.clone(), client, target, answers);
    tokio::select! {
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
        () = carried => {}
    }
}

async fn between(mode: watch::Receiver<Mode>, mut client: TcpStream, target: String, answers: Arc<AtomicUsize>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(count) if count > 0 => if server.write_all(&up[..count]).await.is_err() { return },
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(count) if count > 0 => if *mode.borrow() == Mode::Pass {
                    answers.fetch_add(1, Ordering::SeqCst);
                    if client.write_all(&down[..count]).await.is_err() { return }
                },
                _ => return,
            },
        }
    }
}
