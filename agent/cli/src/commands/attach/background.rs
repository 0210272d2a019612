//! The process in the background that owns a volume while it is attached: how it is started, and what it does.

use super::Args;
use crate::args::Global;
use crate::cluster;
use crate::failure::{Failure, Kind as FailureKind};
use crate::serving::control_runtime;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use torus_agent::metadata::{self, VolumeInfo};
use torus_agent::node::{self, Attachments, Keeper, NodeError, Record, Role, Wish};
use torus_agent::owner::{Control, OwnerConfig};
use torus_agent::process::{Logging, logging};

/// Lines of a log that are shown when a process ended without a word.
const TAIL_LINES: usize = 10;

/// What a process in the background says of its start.
#[derive(Serialize, Deserialize)]
enum Report {
    Attached,
    Failed { kind: FailureKind, sentence: String },
}

/// Starts the process that owns the volume, and waits until its device is there. `fence` also where the arguments do not
/// say so: the owner is known to be gone.
pub async fn start_keeper(attachments: &Attachments, info: &VolumeInfo, fence: bool) -> Result<Record, Failure> {
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
pub fn keep(global: &Global, args: &Args) -> Result<(), Failure> {
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
