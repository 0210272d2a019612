//! A device and the connection by which this process serves it.

use super::{Device, KernelNbdError, Shape, connect, disconnect, reconfigure, resize, status};
use crate::device::BlockDevice;
use crate::nbd::Server;
use std::os::unix::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// A device that this process serves by an export of its NBD server.
///
/// Dropped, the device stays set up, and so it does when the server stops or the process ends: its requests wait for
/// the next process.
#[derive(Debug)]
pub struct KernelDevice {
    device: Device,
    shape: Shape,
    /// Cancelled when the connection is over and all that came by it is done.
    over: CancellationToken,
}

impl KernelDevice {
    /// Sets up a new device of `shape` for the export `export` of `server`. Needs a `LocalSet`.
    ///
    /// # Errors
    /// As [`connect`]; or when there is no such export.
    pub async fn connect<D>(server: &Server<D>, export: &str, shape: Shape) -> Result<Self, KernelNbdError>
    where
        D: BlockDevice + 'static,
    {
        let asked = shape.clone();
        let (device, socket) = blocking(move || connect(&asked)).await?;
        match serve(server, export, device, socket) {
            Ok(over) => Ok(Self { device, shape, over }),
            Err(error) => {
                blocking(move || disconnect(device)).await?;
                Err(error)
            }
        }
    }

    /// Goes on with a device that another process has left. Needs a `LocalSet`.
    ///
    /// # Errors
    /// As [`reconfigure`]; or when there is no such export. The device then waits on.
    pub async fn take_over<D>(
        server: &Server<D>,
        export: &str,
        device: Device,
        shape: Shape,
    ) -> Result<Self, KernelNbdError>
    where
        D: BlockDevice + 'static,
    {
        let asked = shape.clone();
        let socket = blocking(move || reconfigure(device, &asked)).await?;
        let over = serve(server, export, device, socket)?;
        Ok(Self { device, shape, over })
    }

    /// Which one it is.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Tells the kernel that the volume has grown.
    ///
    /// # Errors
    /// As [`resize`].
    pub async fn resize(&mut self, size_bytes: u64) -> Result<(), KernelNbdError> {
        let (device, shape) = (self.device, Shape { size_bytes, ..self.shape.clone() });
        self.shape = blocking(move || resize(device, &shape).map(|()| shape)).await?;
        Ok(())
    }

    /// Serves on, by a new socket where the kernel gave the old one up, until that is not possible; gives the reason,
    /// which is mostly that somebody else disconnected the device. Cancel safe.
    pub async fn lost<D>(&mut self, server: &Server<D>, export: &str) -> KernelNbdError
    where
        D: BlockDevice + 'static,
    {
        loop {
            // Only when all that came by the old socket is done may the same come by a new one.
            self.over.cancelled().await;
            match self.renew(server, export).await {
                Ok(()) => tracing::warn!(device = %self.device, "the kernel gave a connection up and got a new one"),
                Err(error) => return error,
            }
        }
    }

    async fn renew<D>(&mut self, server: &Server<D>, export: &str) -> Result<(), KernelNbdError>
    where
        D: BlockDevice + 'static,
    {
        let (device, shape) = (self.device, self.shape.clone());
        let socket = blocking(move || match status(device)? {
            Some(status) if status.connected && status.identifier.as_ref() == Some(&shape.identifier) => {
                reconfigure(device, &shape)
            }
            _ => Err(KernelNbdError::Disconnected(device)),
        });
        self.over = serve(server, export, device, socket.await?)?;
        Ok(())
    }

    /// Ends the device; see [`disconnect`] for what that does to who still uses it.
    ///
    /// # Errors
    /// As [`disconnect`].
    pub async fn disconnect(self) -> Result<(), KernelNbdError> {
        let device = self.device;
        blocking(move || disconnect(device)).await
    }
}

/// Serves `device` by `socket`; gives what is cancelled when that is over.
fn serve<D>(
    server: &Server<D>,
    export: &str,
    device: Device,
    socket: UnixStream,
) -> Result<CancellationToken, KernelNbdError>
where
    D: BlockDevice + 'static,
{
    let socket = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(socket));
    let socket = socket.map_err(KernelNbdError::Socket)?;
    server
        .serve_connected(socket, export, &device.to_string())
        .map_err(|source| KernelNbdError::Export { device, source })
}

/// Waits for `work` on a thread where it may block: requests of the device are served meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KernelNbdError> + Send + 'static,
) -> Result<T, KernelNbdError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
