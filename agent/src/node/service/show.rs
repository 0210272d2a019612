//! An attached volume shown at more places, one for each pod: bind mounts of its filesystem, or of its device.
//!
//! 1. A target is in the record before it is made, and goes from it after it is gone.

use super::{Inner, NodeService};
use crate::grpc::Failure;
use crate::node::places::{Pinned, Places};
use crate::node::{NodeError, Record, Target, filesystem, mounts};
use nix::mount::{MsFlags, mount};
use std::path::{Path, PathBuf};
use tokio::task::spawn_blocking;
use tonic::Code;
use torus_core::ids::VolumeId;

/// One more place for a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Show {
    /// Where it was mounted when it was attached; `None`: the device is meant.
    pub staging: Option<String>,
    /// The place.
    pub target: String,
    /// It takes no writes there.
    pub read_only: bool,
    /// Nobody else may have it.
    pub alone: bool,
}

impl NodeService {
    /// Shows an attached volume at one more place.
    ///
    /// # Errors
    /// See [`Failure::code`].
    pub async fn show(&self, volume: VolumeId, asked: Show) -> Result<(), Failure> {
        let this = self.clone();
        self.alone(volume, async move { this.show_alone(volume, asked).await }).await
    }

    async fn show_alone(&self, volume: VolumeId, asked: Show) -> Result<(), Failure> {
        let Inner { places, attachments, .. } = &*self.0;
        let path = places.of(&asked.target)?;
        let staging = asked.staging.as_deref().map(|staging| places.of(staging)).transpose()?;
        let _right = attachments.lock(volume).await?;
        let mut record = self.served(volume)?;
        let device = record.device_there().ok_or(NodeError::Ended)?.to_owned();
        let source = match &staging {
            None => device,
            Some(staging) => {
                let is_there = record.mount.as_ref().is_some_and(|mount| mount.directory == *staging)
                    && mounts::of(&device).contains(staging);
                if !is_there {
                    let text =
                        format!("volume {:?} is not mounted on {}: stage it first", record.name, staging.display());
                    return Err(Failure::not_now(text));
                }
                staging.clone()
            }
        };
        let target = Target { path, block: staging.is_none(), read_only: asked.read_only };
        if target.block && target.read_only && !record.read_only {
            let text =
                format!("the device of volume {:?} takes writes: publish the volume for reading only", record.name);
            return Err(Failure::invalid(text));
        }
        prune(&mut record);
        match record.targets.iter().find(|found| found.path == target.path) {
            Some(found) if *found == target => return Ok(()),
            Some(found) => {
                let path = found.path.display();
                let text = format!("volume {:?} is at {path} already, in another way: unmount it first", record.name);
                return Err(Failure::Refused(Code::AlreadyExists, text));
            }
            None => {}
        }
        if let Some(other) = record.targets.first().filter(|_| asked.alone) {
            let text = format!("volume {:?} is for one pod, which has it at {}", record.name, other.path.display());
            return Err(Failure::not_now(text));
        }
        self.bind(&mut record, source, target).await
    }

    /// Makes `target` and binds `source` there. The caller holds the volume's lock.
    pub(super) async fn bind(&self, record: &mut Record, source: PathBuf, target: Target) -> Result<(), Failure> {
        let Inner { places, attachments, .. } = &*self.0;
        if target.block {
            places.make_file(&target.path)?;
        } else {
            places.make_directory(&target.path)?;
        }
        if let Some(other) = mounts::on(&target.path) {
            return Err(NodeError::MountedOn { directory: target.path, kind: other.kind }.into());
        }
        let added = target.clone();
        let changed = attachments.records().change(record.volume, |record| {
            prune(record);
            record.targets.push(added);
        })?;
        *record = changed.ok_or(NodeError::Ended)?;
        let (places, place) = (places.clone(), target.clone());
        let binding = spawn_blocking(move || bind(&places, &source, &place));
        let bound = binding.await.unwrap_or_else(|error| Err(Failure::Refused(Code::Internal, error.to_string())));
        let Err(failure) = bound else { return Ok(()) };
        // Half done is undone; why it failed matters more than how that went.
        let _ = self.unbind(record, &target).await;
        let text = format!("cannot mount volume {:?} at {}: {failure}", record.name, target.path.display());
        Err(Failure::Refused(failure.code(), text))
    }

    /// Takes a volume from one of its places.
    ///
    /// # Errors
    /// When somebody uses it there, or something else is mounted there.
    pub async fn hide(&self, volume: VolumeId, target: &str) -> Result<(), Failure> {
        let (this, path) = (self.clone(), self.0.places.of(target)?);
        self.alone(volume, async move { this.hide_alone(volume, &path).await }).await
    }

    async fn hide_alone(&self, volume: VolumeId, path: &Path) -> Result<(), Failure> {
        let Inner { places, attachments, .. } = &*self.0;
        let _right = attachments.lock(volume).await?;
        let record = attachments.records().load(volume)?;
        let target = record.as_ref().and_then(|record| record.targets.iter().find(|found| found.path == path).cloned());
        match (record, target) {
            (Some(mut record), Some(target)) => self.unbind(&mut record, &target).await?,
            _ => {
                self.nothing_on(&volume.to_string(), Some(path))?;
                // What an earlier process made: it is empty, or not removed.
                places.remove(path)?;
            }
        }
        self.remarks().remove(&volume);
        Ok(())
    }

    async fn unbind(&self, record: &mut Record, target: &Target) -> Result<(), Failure> {
        let Inner { places, attachments, .. } = &*self.0;
        // Links on the way are found here; what is mounted there is known by its path.
        places.look(&target.path)?;
        while mounts::on(&target.path).is_some() {
            let failed = |source| {
                let (volume, directory) = (record.name.clone(), target.path.clone());
                Failure::from(NodeError::Unmount { volume, directory, source })
            };
            let is_mounted = || mounts::on(&target.path).is_some();
            if let Some(refused) = filesystem::unmount_from(&target.path, is_mounted).await.map_err(failed)? {
                return Err(failed(refused));
            }
        }
        places.remove(&target.path)?;
        let removed = |record: &mut Record| record.targets.retain(|found| found.path != target.path);
        if let Some(now) = attachments.records().change(record.volume, removed)? {
            *record = now;
        }
        Ok(())
    }
}

/// Binds `source`, a device or a place, to what there is at `target`. Both are taken hold of first: a path that is changed
/// meanwhile leads nowhere else.
fn bind(places: &Places, source: &Path, target: &Target) -> Result<(), Failure> {
    let refused = |error: nix::Error| Failure::Refused(Code::Internal, error.to_string());
    let none = None::<&Path>;
    let staged = if target.block { None } else { Some(places.pin(source)?) };
    let source = staged.as_ref().map_or(source.to_owned(), Pinned::path);
    let place = places.pin(&target.path)?;
    mount(Some(&source), &place.path(), none, MsFlags::MS_BIND, none).map_err(refused)?;
    // What is there now is what was mounted.
    let mounted = places.pin(&target.path)?;
    if mounts::on(&target.path).is_none() {
        return Err(NodeError::Moved(target.path.clone()).into());
    }
    if target.read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &mounted.path(), none, flags, none).map_err(refused)?;
    }
    Ok(())
}

/// Forgets targets at which nothing is mounted any more.
pub(super) fn prune(record: &mut Record) {
    record.targets.retain(|target| mounts::on(&target.path).is_some());
}
