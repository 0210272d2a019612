//! A device that takes no writes.

use super::{BlockDevice, DeviceInfo, IoError, IoErrorKind, StatusExtent};
use torus_core::format::Pieces;

/// Shows `device` without letting anything be changed on it, if so wished.
pub struct ReadOnly<D> {
    device: D,
    read_only: bool,
}

impl<D> ReadOnly<D> {
    /// `device`; with `read_only`, unchanged for as long as this lives.
    pub fn when(read_only: bool, device: D) -> Self {
        Self { device, read_only }
    }

    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn check(&self) -> Result<(), IoError> {
        match self.read_only {
            true => Err(IoError::new(IoErrorKind::ReadOnly, "the device was attached read-only")),
            false => Ok(()),
        }
    }
}

impl<D: BlockDevice> BlockDevice for ReadOnly<D> {
    fn info(&self) -> DeviceInfo {
        let below = self.device.info();
        DeviceInfo { read_only: below.read_only || self.read_only, ..below }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        self.device.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        self.check()?;
        self.device.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.check()?;
        self.device.trim(offset, len, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.check()?;
        self.device.write_zeroes(offset, len, no_hole, fua).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        self.device.block_status(offset, len).await
    }
}
