//! `torusctl attach`, `attached` and `detach`: volumes as block devices and mounted filesystems of this host.
//!
//! The volume is owned by a process in the background, which `attach` starts: the same program with the same arguments
//! and `--keeper`, so that it finds the cluster in the same way. It is in a session of its own, logs to a file beside the
//! volume's record, and says in one line on its stdout whether the device is there. Everything that is done *to* the
//! device (mkfs, fsck, mount) is done by `attach` itself, as no process may do I/O on a device that it serves.

mod background;
mod shown;

use crate::args::Global;
use crate::cluster;
use crate::failure::{Failure, Kind as FailureKind};
use crate::output::Printer;
use background::{keep, start_keeper};
use clap::ValueEnum;
use shown::Shown;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use torus_agent::metadata::{self, VolumeInfo};
use torus_agent::node::filesystem::Wanted;
use torus_agent::node::{self, Attachment, Attachments, Filesystem, Kind, NodeError, Record, Settled};

/// How long a process may take to let a volume go: what is not in a checkpoint yet is written first.
const LET_GO: Duration = Duration::from_secs(120);
/// How often a person is told that something is still under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said of what a process has left that is gone.
const CLEARED: &str = "detached: the process that served it was gone, and its dead device was removed";

/// Which volume, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Its name, or its id.
    volume: String,
    /// The kind of block device.
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    device: Device,
    /// Mount it on this directory; where it holds nothing, a filesystem is made first.
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// The filesystem it must hold, or is to be made: ext4 or xfs [default: what it holds, or ext4].
    #[arg(long, value_name = "FS", requires = "mount")]
    fs: Option<Filesystem>,
    /// With kernel NBD: how long requests wait when the process that serves the device is gone, before they fail
    /// [default: 300].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    dead_time: Option<u64>,
    /// Take no writes.
    #[arg(long)]
    read_only: bool,
    /// Take the volume over from whoever holds it: they are fenced and get nothing more acknowledged.
    #[arg(long)]
    fence: bool,
    #[command(flatten)]
    state: State,
    /// What the process in the background logs.
    #[arg(long, env = "TORUS_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Be the process in the background.
    #[arg(long, hide = true)]
    keeper: bool,
}

/// Where this host's records are.
#[derive(clap::Args, Debug)]
pub struct State {
    /// Where it is written down what is attached on this host.
    #[arg(long, env = "TORUS_STATE_DIR", value_name = "DIR", default_value = node::DIRECTORY)]
    state_dir: PathBuf,
}

impl State {
    fn attachments(&self) -> Attachments {
        Attachments::at(std::path::absolute(&self.state_dir).unwrap_or_else(|_| self.state_dir.clone()))
    }
}

/// What is attached.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    state: State,
}

/// What to detach.
#[derive(clap::Args, Debug)]
pub struct DetachArgs {
    /// The volume's name or id, its device, or the directory it is mounted on.
    what: String,
    /// Where its process is gone and its device waits for the next: give up what was not written yet.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    state: State,
}

/// Kinds of block devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Device {
    /// The best there is on this host.
    #[default]
    Auto,
    /// The kernel's nbd driver: the device outlives its process, and waits for the next.
    Nbd,
    /// A FUSE file with a loop device on it: wherever there are containers, but gone with its process.
    Fuse,
}

impl Device {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Auto => None,
            Self::Nbd => Some(Kind::Nbd),
            Self::Fuse => Some(Kind::Fuse),
        }
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let kind = match error {
            NodeError::Owner(error) => return error.into(),
            NodeError::NoDirectory(..) | NodeError::NotADirectory(_) => FailureKind::Usage,
            NodeError::Locked(_)
            | NodeError::Served(_)
            | NodeError::MountedOn { .. }
            | NodeError::HoldsOther { .. }
            | NodeError::HoldsUnknown { .. }
            | NodeError::NothingToRead { .. }
            | NodeError::Damaged { .. }
            | NodeError::Busy { .. }
            | NodeError::OfAnAgent { .. } => FailureKind::Refused,
            _ => FailureKind::Failed,
        };
        Self::of(kind, &error)
    }
}

impl From<node::RecordError> for Failure {
    fn from(error: node::RecordError) -> Self {
        Self::of(FailureKind::Failed, &error)
    }
}

/// Attaches a volume.
pub fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    if args.keeper {
        return keep(global, &args);
    }
    super::wait(attach(global, args, printer))
}

async fn attach(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    root("attaching a volume")?;
    let attachments = args.state.attachments();
    let info = find(global, &args.volume).await?;
    let name = info.meta.doc.name.clone();
    let _lock = attachments.lock(info.id).await?;
    let mut wanted = args.mount.clone().map(|directory| Wanted {
        directory,
        filesystem: args.fs,
        read_only: args.read_only,
        options: Vec::new(),
        pinned: None,
    });
    let (mut before, mut served, mut gone) = (None, false, None);
    match attachments.settle(info.id).await? {
        Settled::Free => {}
        Settled::Attached(record) => (before, served) = (Some(record), true),
        Settled::Orphaned(record) => {
            eprintln!(
                "the process that served volume {name:?} here is gone: {} is taken over",
                device(&record).display()
            );
            before = Some(record);
        }
        Settled::Cleared(record) => {
            eprintln!(
                "the process that served volume {name:?} here is gone: {} was dead and was removed",
                device(&record).display()
            );
            gone = Some(record);
        }
    };
    if let Some(record) = &before {
        same(record, &args)?;
    }
    if let Some(wanted) = &mut wanted {
        wanted.check(before.as_ref().map(device))?;
    }
    let fresh = before.is_none();
    let log = attachments.records().place(info.id).join("log");
    let mut record = match before {
        Some(record) if served => record,
        orphan => {
            let kind = orphan.as_ref().map(|record| record.kind).or(args.device.kind());
            let (kind, second_best) = node::choose(kind).map_err(|error| Failure::of(FailureKind::Failed, &error))?;
            if let Some(why) = second_best {
                eprintln!("{kind} is used: {why}");
            }
            let dead = orphan.as_ref().or(gone.as_ref());
            start_keeper(&attachments, &info, dead.is_some_and(|record| record.is_of_owner(&info))).await?
        }
    };
    if let Some(wanted) = &wanted
        && let Err(error) = patiently("mounting", &log, attachments.mount(&mut record, wanted)).await
    {
        if fresh {
            // Nothing is left of a command that failed; what it failed of matters more than how that went.
            let _ = node::end(attachments.records(), &record, LET_GO).await;
        }
        return Err(error.into());
    }
    let place = record.mount.as_ref().map(|mount| format!(", {} on {}", mount.filesystem, mount.directory.display()));
    let already = if served { "already " } else { "" };
    let (node, place) = (device(&record).display(), place.unwrap_or_default());
    let sentence = format!("volume {name:?} is {already}attached: {node} ({}){place}", record.kind);
    printer.done(&sentence, &Shown::from(Attachment { record, served: true }))
}

fn device(record: &Record) -> &Path {
    record.device.as_deref().unwrap_or(Path::new("its device"))
}

/// Waits for `work`, and says that it waits: I/O that cannot be carried out now waits until it can.
async fn patiently<T>(what: &str, log: &Path, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(PATIENCE) => eprintln!(
                "still {what}: it waits for the volume, or takes its time; {} says whether agents are missing",
                log.display()
            ),
        }
    }
}

/// Fails where what is attached is not what is asked for.
fn same(record: &Record, args: &Args) -> Result<(), Failure> {
    let refuse = |what: String| {
        let text = format!("volume {:?} is attached on this host already, {what}", record.name);
        Err(Failure::failed_as(FailureKind::Refused, text)
            .next(format!("`torusctl detach {}` comes first.", record.name)))
    };
    if args.device.kind().is_some_and(|kind| kind != record.kind) {
        return refuse(format!("as {}", record.kind));
    }
    if args.read_only != record.read_only {
        return refuse(if record.read_only { "read-only" } else { "for writing" }.into());
    }
    let wanted = args.mount.as_ref().map(|directory| std::fs::canonicalize(directory).unwrap_or_default());
    match (&record.mount, wanted) {
        (Some(mount), Some(wanted)) if mount.directory != wanted => {
            refuse(format!("and mounted on {}", mount.directory.display()))
        }
        _ => Ok(()),
    }
}

/// Lists what is attached on this host.
pub fn list(args: &ListArgs, printer: Printer) -> Result<(), Failure> {
    let all = args.state.attachments().list()?;
    printer.list(&all.into_iter().map(Shown::from).collect::<Vec<_>>())
}

/// Detaches a volume.
pub async fn detach(args: DetachArgs, printer: Printer) -> Result<(), Failure> {
    root("detaching a volume")?;
    let attachments = args.state.attachments();
    let Some(found) = attachments.find(&args.what)? else {
        return Err(Failure::failed(format!("nothing called {:?} is attached on this host", args.what))
            .next("`torusctl attached` shows what is."));
    };
    let volume = found.record.volume;
    let _lock = attachments.lock(volume).await?;
    let (record, sentence) = match attachments.settle(volume).await? {
        // Another has detached it while the lock was waited for.
        Settled::Free => (found.record, "detached"),
        Settled::Cleared(record) => (record, CLEARED),
        Settled::Orphaned(record) if args.force => {
            attachments.clear(&record).await?;
            (record, CLEARED)
        }
        Settled::Orphaned(record) => {
            let node = device(&record).display();
            let text =
                format!("the process that served volume {:?} is gone, and {node} waits for the next", record.name);
            let next = format!(
                "`torusctl attach {0}` takes it over; `torusctl detach {0} --force` gives up what was not written yet.",
                record.name
            );
            return Err(Failure::failed_as(FailureKind::Refused, text).next(next));
        }
        Settled::Attached(record) => {
            let log = attachments.records().place(volume).join("log");
            patiently("unmounting", &log, attachments.unmount(&record)).await?;
            node::end(attachments.records(), &record, LET_GO).await?;
            (record, "detached")
        }
    };
    let sentence = format!("volume {:?} is {sentence}", record.name);
    printer.done(&sentence, &Shown::from(Attachment { record, served: false }))
}

/// The volume that is meant.
async fn find(global: &Global, volume: &str) -> Result<VolumeInfo, Failure> {
    let store = cluster::open(global).await?;
    Ok(metadata::find_volume(store.as_ref(), volume).await?)
}

fn root(what: &str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let sentence = format!("{what} takes root, as it makes a block device of this host");
    Err(Failure::failed_as(FailureKind::Refused, sentence).next("`torusctl serve` gives a volume to programs without."))
}
