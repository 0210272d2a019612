//! `torusctl attach`, `attached` and `detach`: volumes as block devices and mounted filesystems of this host.
//!
//! The volume is owned by a process in the background, which `attach` starts: the same program with the same arguments
//! and `--keeper`, so that it finds the cluster in the same way. It is in a session of its own, logs to a file beside the
//! volume's record, and says in one line on its stdout whether the device is there. Everything that is done *to* the
//! device (mkfs, fsck, mount) is done by `attach` itself, as no process may do I/O on a device that it serves.

use crate::args::Global;
use crate::cluster;
use crate::failure::{Failure, Kind as FailureKind};
use crate::output::{Printer, Record as Listed, Style};
use crate::serving::control_runtime;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use torus_agent::metadata::{self, VolumeInfo};
use torus_agent::node::filesystem::Wanted;
use torus_agent::node::{
    self, Attachment, Attachments, Filesystem, Keeper, Kind, NodeError, Record, Role, Settled, Wish,
};
use torus_agent::owner::{Control, OwnerConfig};
use torus_agent::process::{Logging, logging};
use torus_core::ids::VolumeId;

/// How long a process may take to let a volume go: what is not in a checkpoint yet is written first.
const LET_GO: Duration = Duration::from_secs(120);
/// How often a person is told that something is still under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said of what a process has left that is gone.
const CLEARED: &str = "detached: the process that served it was gone, and its dead device was removed";
/// Lines of a log that are shown when a process ended without a word.
const TAIL_LINES: usize = 10;

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

/// A volume that is attached, for people and programs.
#[derive(Serialize)]
struct Shown {
    name: String,
    volume: VolumeId,
    device: Option<PathBuf>,
    kind: Kind,
    size_bytes: u64,
    read_only: bool,
    mounted_on: Option<PathBuf>,
    filesystem: Option<Filesystem>,
    epoch: u64,
    pid: u32,
    served: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

impl From<Attachment> for Shown {
    fn from(Attachment { record, served }: Attachment) -> Self {
        let (mounted_on, filesystem) = record.mount.map(|mount| (mount.directory, mount.filesystem)).unzip();
        Self {
            name: record.name,
            volume: record.volume,
            device: record.device,
            kind: record.kind,
            size_bytes: record.size_bytes,
            read_only: record.read_only,
            mounted_on,
            filesystem,
            epoch: record.epoch,
            pid: record.keeper.pid,
            served,
            lost: record.lost,
        }
    }
}

impl Listed for Shown {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "DEVICE", "KIND", "SIZE", "MOUNTED ON", "FS", "PROCESS", "STATE"];

    fn cells(&self, style: Style) -> Vec<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let state = match (&self.lost, self.served) {
            (Some(why), _) => format!("dead: {why}"),
            (None, false) => "dead: its process is gone".into(),
            (None, true) if self.read_only => "read-only".into(),
            (None, true) => "attached".into(),
        };
        vec![
            self.name.clone(),
            path(&self.device),
            self.kind.to_string(),
            style.size(self.size_bytes),
            path(&self.mounted_on),
            self.filesystem.map(|filesystem| filesystem.to_string()).unwrap_or_default(),
            self.pid.to_string(),
            state,
        ]
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

/// What a process in the background says of its start.
#[derive(Serialize, Deserialize)]
enum Report {
    Attached,
    Failed { kind: FailureKind, sentence: String },
}

/// Starts the process that owns the volume, and waits until its device is there. `fence` also where the arguments do not
/// say so: the owner is known to be gone.
async fn start_keeper(attachments: &Attachments, info: &VolumeInfo, fence: bool) -> Result<Record, Failure> {
    let failed = |what: &str, error: &std::io::Error| Failure::because(format!("cannot {what}"), error);
    let place = attachments.records().place(info.id);
    std::fs::create_dir_all(&place).map_err(|error| failed(&format!("make {}", place.display()), &error))?;
    let path = place.join("log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| failed(&format!("open {}", path.display()), &error))?;
    let program = std::env::current_exe().map_err(|error| failed("find this program", &error))?;
    let mut command = tokio::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--keeper");
    if fence && !std::env::args_os().any(|arg| arg == "--fence") {
        command.arg("--fence");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|error| failed("start a process for the volume", &error))?;
    let said = child.stdout.take().expect("stdout was asked to be a pipe");
    let mut line = String::new();
    BufReader::new(said)
        .read_line(&mut line)
        .await
        .map_err(|error| failed("hear from the volume's process", &error))?;
    let report = serde_json::from_str(&line);
    if !matches!(report, Ok(Report::Attached)) {
        // It has ended, or is about to.
        let _ = child.wait().await;
    }
    match report {
        Ok(Report::Attached) => attachments.records().load(info.id)?.ok_or_else(|| NodeError::Ended.into()),
        Ok(Report::Failed { kind, sentence }) => Err(Failure::failed_as(kind, sentence)),
        Err(_) => {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            Err(Failure::failed(format!("the process that was to serve the volume ended. It said:\n{tail}")))
        }
    }
}

/// The process in the background: owns the volume until it is told to let it go, or loses it.
fn keep(global: &Global, args: &Args) -> Result<(), Failure> {
    let started = Keeping::start(global, args);
    let report = match &started {
        Ok(_) => Report::Attached,
        Err(failure) => Report::Failed { kind: failure.kind(), sentence: failure.to_string() },
    };
    let line = serde_json::to_string(&report).map_err(|error| Failure::because("cannot write JSON", &error))?;
    // Who started this may have given up; the volume is attached all the same, and can be detached.
    let _ = writeln!(std::io::stdout(), "{line}");
    started?.serve()
}

struct Keeping {
    control: tokio::runtime::Runtime,
    keeper: Keeper,
    terminate: tokio::signal::unix::Signal,
}

impl Keeping {
    fn start(global: &Global, args: &Args) -> Result<Self, Failure> {
        // It fails where this process leads a session already.
        let _ = nix::unistd::setsid();
        let log = Logging { filter: args.log.clone(), json: false };
        logging::start(&log).map_err(|error| Failure::usage(error.to_string()))?;
        node::prepare();
        let control = control_runtime()?;
        let records = args.state.attachments().records().clone();
        let (keeper, terminate) = control.block_on(async {
            let terminate = signal(SignalKind::terminate());
            let terminate = terminate.map_err(|error| Failure::because("cannot listen for signals", &error))?;
            let store = cluster::open(global).await?;
            let info = metadata::find_volume(store.as_ref(), &args.volume).await?;
            let side = Control::new(tokio::runtime::Handle::current(), store);
            let wish = Wish {
                kind: args.device.kind(),
                dead_time: args.dead_time.map(Duration::from_secs),
                read_only: args.read_only,
                owner: OwnerConfig { force: args.fence, ..OwnerConfig::new() },
                role: Role::Background,
                holder: None,
            };
            Ok::<_, Failure>((Keeper::start(records, side, info, wish).await?, terminate))
        })?;
        // It keeps no directory in use. Until here, paths that were given may have begun in this one.
        let _ = std::env::set_current_dir("/");
        Ok(Self { control, keeper, terminate })
    }

    fn serve(self) -> Result<(), Failure> {
        let Self { control, mut keeper, mut terminate } = self;
        let ended = control.block_on(async {
            loop {
                tokio::select! {
                    why = keeper.lost() => return Err(Failure::failed(why)),
                    _ = terminate.recv() => match keeper.close().await {
                        Err(error @ NodeError::Busy { .. }) => eprintln!("not let go: {error}"),
                        ended => return Ok(ended?),
                    },
                }
            }
        });
        // What is still on its way to the metadata store is a sign of life taken back: worth a moment, no more.
        control.shutdown_timeout(Duration::from_secs(2));
        ended
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
