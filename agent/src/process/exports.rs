//! Volumes that an agent owns and serves over NBD itself.
//!
//! What is stored by this very agent goes to its disks and comes from them without a socket in between and, as all this
//! happens on the data plane's own thread, without waking another: which is why one does this instead of running `torusctl
//! serve` beside the agent. One thread is one core at most. Volumes that need more are served by processes of their own.
//!
//! 1. A volume that cannot be opened now (another has it, too few agents are there, it does not exist yet) is tried again
//!    until the agent stops; why is logged each time that the reason changes.
//! 2. A volume that somebody else took over is theirs: it is not taken back.

use super::told;
use crate::metadata::find_volume;
use crate::owner::{Control, OwnerConfig};
use crate::serving::{Door, Serving};
use crate::tdp::LocalDoor;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Pause before a volume that cannot be opened is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// What is served where.
#[derive(Clone, Debug)]
pub struct ExportArg {
    volume: String,
    door: Door,
}

/// A text that says no such thing.
#[derive(Debug, thiserror::Error)]
#[error("expected VOLUME=PATH with the absolute path of a socket, or VOLUME=ADDRESS:PORT such as db=127.0.0.1:10809")]
pub struct NoExport;

impl FromStr for ExportArg {
    type Err = NoExport;

    fn from_str(text: &str) -> Result<Self, NoExport> {
        let (volume, place) = text.split_once('=').filter(|(volume, _)| !volume.is_empty()).ok_or(NoExport)?;
        let door = match place.parse::<SocketAddr>() {
            Ok(address) => Door::Tcp(address),
            Err(_) if Path::new(place).is_absolute() => Door::Socket(PathBuf::from(place)),
            Err(_) => return Err(NoExport),
        };
        Ok(Self { volume: volume.into(), door })
    }
}

/// The volumes that this process serves. Dropped, they end as a crash would.
#[derive(Debug)]
pub struct Exports {
    stop: CancellationToken,
    /// One for each volume that is served, or is to be.
    ended: Vec<oneshot::Receiver<()>>,
}

impl Exports {
    /// Begins to serve on the thread of the agent behind `door`. `control` must be driven by another.
    #[must_use]
    pub fn start(exports: Vec<ExportArg>, control: &Control, door: &LocalDoor) -> Self {
        let stop = CancellationToken::new();
        let control = &Control { door: Some(door.clone()), ..control.clone() };
        let begin = |export: ExportArg| {
            let (control, stop) = (control.clone(), stop.clone());
            let (end, ended) = oneshot::channel();
            door.inside(move || async move {
                serve(export, control, stop).await;
                // Nobody may wait for it.
                let _ = end.send(());
            });
            ended
        };
        let ended = exports.into_iter().map(begin).collect();
        Self { stop, ended }
    }

    /// Answers what was asked, and lets the volumes go.
    pub async fn stop(self) {
        self.stop.cancel();
        for ended in self.ended {
            // An error: it has ended with the agent.
            let _ = ended.await;
        }
    }
}

/// One volume, until `stop`, or until it is lost.
async fn serve(export: ExportArg, control: Control, stop: CancellationToken) {
    let Some(Some(mut serving)) = stop.run_until_cancelled(open(&export, &control)).await else { return };
    let volume = &export.volume;
    tracing::info!(volume, epoch = %serving.epoch(), "served over NBD at {}", export.door.uri(volume));
    let ended = match stop.run_until_cancelled(serving.lost()).await {
        None => serving.close().await,
        Some(lost) => {
            serving.leave().await;
            Err(lost.into())
        }
    };
    if let Err(error) = ended {
        tracing::error!(volume, "served here no more: {}", told(&error));
    }
}

/// Tries until the volume is open. `None`: the control side has ended.
async fn open(export: &ExportArg, control: &Control) -> Option<Serving> {
    let mut said = String::new();
    loop {
        let (store, name) = (Arc::clone(&control.store), export.volume.clone());
        let found = control.runtime.spawn(async move { find_volume(&*store, &name).await }).await.ok()?;
        let opened = match found {
            Ok(info) => {
                Serving::open(control.clone(), &info, OwnerConfig::new(), &export.door).await.map_err(|e| told(&e))
            }
            Err(error) => Err(told(&error)),
        };
        match opened {
            Ok(serving) => return Some(serving),
            Err(why) if why == said => {}
            Err(why) => {
                tracing::warn!(volume = export.volume, "not served over NBD yet, tried again: {why}");
                said = why;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_names_a_volume_and_a_place() {
        let read = |text: &str| text.parse::<ExportArg>().map(|export| export.door.uri(&export.volume)).ok();
        assert_eq!(read("db=/run/db.sock").as_deref(), Some("nbd+unix:///db?socket=/run/db.sock"));
        assert_eq!(read("db=127.0.0.1:10809").as_deref(), Some("nbd://127.0.0.1:10809/db"));
        assert_eq!(read("db=[::1]:7").as_deref(), Some("nbd://[::1]:7/db"));
        for bad in ["", "db", "db=", "=/run/db.sock", "db=run/db.sock", "db=localhost:1", "db=1.2.3.4"] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
