//! The demo's filesystem: made on a volume, written to while an agent dies, and read back from another attachment.
//!
//! The volume is owned by this very process, so all that touches its files is done by children: a process that waits for
//! I/O on its own device could not be killed.

use super::world::World;
use crate::failure::{Failure, Kind};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use tokio::runtime::Runtime;
use torus_agent::metadata::VolumeInfo;
use torus_agent::node::filesystem::{self, Wanted};
use torus_agent::node::{self, Attachments, Filesystem, Keeper, Record, Role, Wish};
use torus_agent::owner::OwnerConfig;

const VOLUME: &str = "files";
const VOLUME_BYTES: u64 = 512 << 20;
/// The agent that is killed under it.
const VICTIM: usize = 2;
/// How long files are written before that.
const LOAD_BEFORE: Duration = Duration::from_millis(300);
const FILES: u32 = 24;
const FILE_BYTES: u32 = 4 << 20;
/// Writes files and their digests, and has everything on stable storage before it ends.
const WRITE: &str = r#"cd "$1" && for i in $(seq "$2"); do
    head -c "$3" /dev/urandom > "file-$i" && sha256sum "file-$i" >> digests || exit 1
done && sync -f ."#;
/// Compares files with their digests.
const CHECK: &str = r#"cd "$1" && sha256sum --quiet --check digests && test "$(wc -l < digests)" = "$2""#;

/// What was seen.
#[derive(Serialize)]
pub struct Seen {
    device: PathBuf,
    kind: node::Kind,
    filesystem: Filesystem,
    directory: PathBuf,
    files: u32,
    file_bytes: u32,
}

/// A filesystem that is mounted. Dropped, it is unmounted even if somebody uses it.
pub struct Mounted<'a> {
    runtime: &'a Runtime,
    attachments: Attachments,
    /// `None` once it is closed.
    keeper: Option<Keeper>,
    record: Record,
}

/// Shows it; what is mounted stays so until it is closed.
pub fn show<'a>(
    runtime: &'a Runtime,
    world: &mut World,
    dir: &Path,
    say: &dyn Fn(String) -> Result<(), Failure>,
) -> Result<(Mounted<'a>, Seen), Failure> {
    let volume = world.volume(VOLUME, VOLUME_BYTES)?;
    let directory = dir.join("mnt");
    std::fs::create_dir(&directory)
        .map_err(|error| Failure::because(format!("cannot make {}", directory.display()), &error))?;
    let (_, second_best) = node::choose(None).map_err(|error| Failure::of(Kind::Failed, &error))?;
    second_best.map_or(Ok(()), |why| say(format!("no kernel NBD: {why}")))?;

    let mounted = Mounted::attach(runtime, world, &volume, dir, &directory)?;
    let Record { kind, device, mount, .. } = mounted.record.clone();
    let (Some(device), Some(mount)) = (device, mount) else { return Err(Failure::failed("nothing was mounted")) };
    say(format!(
        "volume {VOLUME}  {} ({kind})   {} on {}",
        device.display(),
        mount.filesystem,
        mount.directory.display()
    ))?;

    let writing = script(WRITE, &directory, &[FILES, FILE_BYTES])?;
    thread::sleep(LOAD_BEFORE);
    world.kill_agent(VICTIM);
    ended(writing, "writing files while an agent was killed")?;
    world.start_agent(VICTIM)?;
    mounted.close()?;
    let mounted = Mounted::attach(runtime, world, &volume, dir, &directory)?;
    ended(script(CHECK, &directory, &[FILES])?, "reading the files again")?;
    say(format!(
        "writing {FILES} files while agent {} is killed ... no error; unmounted, attached and mounted again: all read as written",
        VICTIM + 1
    ))?;
    let seen = Seen {
        device,
        kind,
        filesystem: mount.filesystem,
        directory: mount.directory,
        files: FILES,
        file_bytes: FILE_BYTES,
    };
    Ok((mounted, seen))
}

impl<'a> Mounted<'a> {
    fn attach(
        runtime: &'a Runtime,
        world: &World,
        volume: &VolumeInfo,
        dir: &Path,
        directory: &Path,
    ) -> Result<Self, Failure> {
        let attachments = Attachments::at(dir.join("attached"));
        let wish = Wish {
            kind: None,
            dead_time: None,
            read_only: false,
            owner: OwnerConfig::new(),
            role: Role::Agent,
            holder: None,
        };
        runtime.block_on(async {
            let _right = attachments.lock(volume.id).await?;
            let records = attachments.records().clone();
            let keeper = Keeper::start(records, world.side(), volume.clone(), wish).await?;
            let record = keeper.record().clone();
            let mut mounted = Self { runtime, attachments, keeper: Some(keeper), record };
            let mut wanted = Wanted {
                directory: directory.to_owned(),
                filesystem: None,
                read_only: false,
                options: Vec::new(),
                pinned: None,
            };
            wanted.check(mounted.record.device.as_deref())?;
            mounted.attachments.mount(&mut mounted.record, &wanted).await?;
            Ok(mounted)
        })
    }

    /// Unmounts it, takes its device away, lets its volume go.
    pub fn close(mut self) -> Result<(), Failure> {
        self.runtime.block_on(async {
            let _right = self.attachments.lock(self.record.volume).await?;
            self.attachments.unmount(&self.record).await?;
            if let Some(keeper) = &mut self.keeper {
                keeper.close().await?;
            }
            self.keeper = None;
            Ok(())
        })
    }
}

/// After a failure that is told.
impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let (Some(mut keeper), Some(device)) = (self.keeper.take(), self.record.device.clone()) else { return };
        // Where it is dropped inside of the runtime, that cannot be waited for there.
        thread::scope(|scope| {
            let cleaned = scope.spawn(|| {
                self.runtime.block_on(async {
                    filesystem::abandon(&device).await;
                    keeper.close().await.map_err(|error| crate::failure::told(&error))
                })
            });
            if let Ok(Err(error)) = cleaned.join() {
                eprintln!("{error}");
            }
        });
    }
}

fn script(text: &str, directory: &Path, numbers: &[u32]) -> Result<Child, Failure> {
    let mut shell = Command::new("sh");
    shell.args(["-c", text, "sh"]).arg(directory).args(numbers.iter().map(u32::to_string)).stdin(Stdio::null());
    shell.stdout(Stdio::null()).spawn().map_err(|error| Failure::because("cannot run a shell", &error))
}

fn ended(mut child: Child, what: &str) -> Result<(), Failure> {
    let status = child.wait().map_err(|error| Failure::because(format!("cannot wait for {what}"), &error))?;
    if status.success() { Ok(()) } else { Err(Failure::failed(format!("{what} failed ({status})"))) }
}
