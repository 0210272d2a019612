//! An NBD server on a thread of its own.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc as channel;
use tokio::task::LocalSet;
use torus_agent::device::Unaligned;
use torus_agent::device::testing::MemoryDevice;
use torus_agent::nbd::{Export, Server};

/// What is served: memory, at any byte.
pub type Device = Unaligned<MemoryDevice>;
type Job = Box<dyn FnOnce(&[Rc<Device>]) + Send>;

/// An NBD server with a unix socket and a TCP port, stopped and joined on drop.
pub struct TestServer {
    /// Removed with the server; room for a test's own files.
    pub dir: TempDir,
    /// Where it listens on loopback.
    pub address: SocketAddr,
    jobs: Option<channel::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    /// Serves a device for each of `exports`: name, size in bytes, read-only.
    pub fn new(exports: &'static [(&'static str, u64, bool)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let (jobs, mut inbox) = channel::unbounded_channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let server = Server::new();
                let devices = RefCell::new(Vec::new());
                for (name, size, read_only) in exports {
                    let device = MemoryDevice::new(*size);
                    let device = if *read_only { device.read_only() } else { device };
                    let device = Rc::new(Unaligned::new(device));
                    devices.borrow_mut().push(device.clone());
                    server.add(Export { name: (*name).into(), description: format!("volume {name}"), device }).unwrap();
                }
                server.listen_unix(&socket, 0o600).unwrap();
                ready.send(server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
                while let Some(job) = inbox.recv().await {
                    job(&devices.borrow());
                }
                server.stop(Duration::from_secs(5)).await;
            });
        });
        let address = started.recv_timeout(Duration::from_secs(10)).expect("the server starts");
        Self { dir, address, jobs: Some(jobs), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// What `ask` says of the device of export number `index`.
    pub fn device<T: Send + 'static>(&self, index: usize, ask: impl FnOnce(&Device) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |devices| answer.send(ask(&devices[index])).unwrap());
        self.jobs.as_ref().unwrap().send(job).expect("the server runs");
        answered.recv_timeout(Duration::from_secs(10)).expect("the server answers")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.jobs.take();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok(), "the server panicked");
    }
}
