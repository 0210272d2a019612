//! A TCP proxy that can be cut: what goes through it then vanishes, as on a network that drops packets.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How often a cut connection looks whether it still is.
const POLL: Duration = Duration::from_millis(10);

/// A proxy on a port of its own. Its threads end with the connections, or with the process.
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    /// Passes everything on to `port` of this machine.
    pub fn to(port: u16) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot find a port for a proxy")?;
        let own = listener.local_addr().context("cannot tell a proxy's port")?.port();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                while is_cut.load(Ordering::Relaxed) {
                    thread::sleep(POLL);
                }
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)) {
                    join(client, server, &is_cut);
                }
            }
        });
        Ok(Proxy { port: own, cut })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing gets through, or everything does again. What was on its way waits.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

fn join(client: TcpStream, server: TcpStream, cut: &Arc<AtomicBool>) {
    let pairs = client.try_clone().and_then(|c| Ok([(c, server.try_clone()?), (server, client)]));
    for (from, to) in pairs.into_iter().flatten() {
        let cut = Arc::clone(cut);
        // Without the other side's socket there is nothing left to pass on.
        thread::spawn(move || pass(from, to, &cut));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let _ = to.set_nodelay(true);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        while cut.load(Ordering::Relaxed) {
            thread::sleep(POLL);
        }
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_passes_on_until_it_is_cut_and_then_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap().port()).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        server.read_exact(&mut byte).unwrap();
        proxy.cut(true);
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        client.write_all(b"b").unwrap();
        assert!(server.read_exact(&mut byte).is_err(), "it got through");
        proxy.cut(false);
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        drop(client);
        assert_eq!(server.read(&mut byte).unwrap(), 0);
    }
}
