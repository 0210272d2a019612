//! `torusctl volume`: volumes as they are asked for.

mod delete;

use crate::args::Global;
use crate::blockspec;
use crate::cluster;
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use crate::units::Size;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use torus_agent::metadata::{self, NewVolume, VolumeInfo};
use torus_core::ids::{BLOCK_BYTES, Lba, VolumeId};
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::AckMode;

/// What to do with volumes.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a block volume. It takes no space until it is written to
    #[command(name = "create-block", visible_alias = "create")]
    Create(Create),
    /// List volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show all there is to know about a volume
    Info {
        /// Its name, or its id.
        volume: String,
    },
    /// Grow a volume, open or not
    Resize {
        /// Its name, or its id.
        volume: String,
        /// Its new size; it cannot shrink.
        size: Size,
    },
    /// Delete a volume, and what the agents hold of it
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
}

/// A volume to be.
#[derive(clap::Args, Debug)]
pub struct Create {
    /// Its name: 1 to 63 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or a digit.
    name: String,
    /// Its size, such as 20GiB; rounded up to whole blocks of 4 KiB.
    size: Size,
    /// Copies of its data [default: what the ring says].
    #[arg(long, short, value_parser = blockspec::replicas, value_name = "N")]
    replicas: Option<u8>,
    /// Copies without which no write is acknowledged [default: one less than --replicas, at least 1].
    #[arg(long, value_parser = blockspec::replicas, value_name = "N")]
    min_replicas: Option<u8>,
    /// When a write is acknowledged.
    #[arg(long, value_enum, value_name = "MODE", conflicts_with = "write_level")]
    ack_mode: Option<Ack>,
    /// The first Torus's word for --ack-mode: `all` is durable, `one` and `local` are received.
    #[arg(long, value_enum, value_name = "LEVEL")]
    write_level: Option<WriteLevel>,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Ack {
    /// When it is on stable storage on all copies.
    Durable,
    /// When all copies have received it; a flush waits for stable storage.
    Received,
}

/// The first Torus's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum WriteLevel {
    All,
    One,
    Local,
}

impl Create {
    fn ack_mode(&self) -> AckMode {
        match (self.ack_mode, self.write_level) {
            (Some(Ack::Received), _) | (None, Some(WriteLevel::One | WriteLevel::Local)) => AckMode::Received,
            (Some(Ack::Durable), _) | (None, Some(WriteLevel::All) | None) => AckMode::Durable,
        }
    }
}

/// A volume, for people and programs.
#[derive(Serialize)]
struct Shown {
    name: String,
    id: VolumeId,
    size_bytes: u64,
    replicas: u8,
    min_replicas: u8,
    ack_mode: AckMode,
    state: State,
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    extents_since_checkpoint: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Checkpoint>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum State {
    Open,
    Closed,
    Deleting,
}

#[derive(Serialize)]
struct Owner {
    host: String,
    pid: u32,
    serves: String,
}

#[derive(Serialize)]
struct Checkpoint {
    vseq: u64,
    bytes: u64,
}

impl From<VolumeInfo> for Shown {
    fn from(info: VolumeInfo) -> Self {
        let volume = info.meta.doc;
        let state = match (&info.owner, volume.deleting) {
            (_, true) => State::Deleting,
            (Some(_), false) => State::Open,
            (None, false) => State::Closed,
        };
        let owner = info.owner.map(|owner| owner.holder);
        Self {
            name: volume.name,
            id: info.id,
            size_bytes: volume.size.0 * BLOCK_BYTES,
            replicas: volume.replicas,
            min_replicas: volume.min_replicas,
            ack_mode: volume.ack_mode,
            state,
            epoch: info.epoch.map_or(0, |epoch| epoch.doc.epoch.0),
            owner: owner.map(|holder| Owner { host: holder.host, pid: holder.pid, serves: holder.serves }),
            extents_since_checkpoint: info.extents,
            checkpoint: info.head.map(|head| Checkpoint { vseq: head.vseq.0, bytes: head.bytes }),
        }
    }
}

impl Shown {
    fn ack_word(&self) -> &'static str {
        match self.ack_mode {
            AckMode::Durable => "durable",
            AckMode::Received => "received",
        }
    }

    fn state_word(&self) -> &'static str {
        match self.state {
            State::Open => "open",
            State::Closed => "closed",
            State::Deleting => "deleting",
        }
    }

    fn owner_words(&self) -> String {
        self.owner.as_ref().map(|owner| format!("{} (process {})", owner.host, owner.pid)).unwrap_or_default()
    }
}

impl Record for Shown {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "ID",
        "SIZE",
        "REPLICAS",
        "MIN REPLICAS",
        "ACK MODE",
        "STATE",
        "EPOCH",
        "OWNER",
        "SERVES",
        "NEW EXTENTS",
        "CHECKPOINT",
    ];

    fn cells(&self, style: Style) -> Vec<String> {
        let checkpoint = self.checkpoint.as_ref();
        vec![
            self.name.clone(),
            self.id.to_string(),
            style.size(self.size_bytes),
            self.replicas.to_string(),
            self.min_replicas.to_string(),
            self.ack_word().into(),
            self.state_word().into(),
            self.epoch.to_string(),
            self.owner_words(),
            self.owner.as_ref().map(|owner| owner.serves.clone()).unwrap_or_default(),
            self.extents_since_checkpoint.to_string(),
            checkpoint.map(|c| format!("up to record {}, {}", c.vseq, style.size(c.bytes))).unwrap_or_default(),
        ]
    }
}

/// The same, in one short line.
#[derive(Serialize)]
#[serde(transparent)]
struct Line(Shown);

impl Record for Line {
    const COLUMNS: &'static [&'static str] = &["NAME", "SIZE", "REPLICAS", "STATE", "OWNER", "ID"];

    fn cells(&self, style: Style) -> Vec<String> {
        let Self(volume) = self;
        vec![
            volume.name.clone(),
            style.size(volume.size_bytes),
            volume.replicas.to_string(),
            volume.state_word().into(),
            volume.owner_words(),
            volume.id.to_string(),
        ]
    }
}

/// Does it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    match args.command {
        Command::Create(create) => self::create(global, create, printer).await,
        Command::List => {
            let store = cluster::open(global).await?;
            let (volumes, _) = metadata::list_volumes(store.as_ref()).await?;
            printer.list(&volumes.into_iter().map(|info| Line(info.into())).collect::<Vec<_>>())
        }
        Command::Info { volume } => {
            let store = cluster::open(global).await?;
            printer.item(&shown(store.as_ref(), &volume).await?)
        }
        Command::Resize { volume, size } => {
            let store = cluster::open(global).await?;
            let found = metadata::find_volume(store.as_ref(), &volume).await?;
            metadata::resize_volume(store.as_ref(), found.id, blocks(size)).await?;
            let shown = shown(store.as_ref(), &volume).await?;
            printer.done(&format!("volume {:?} has {} now", shown.name, printer.size(shown.size_bytes)), &shown)
        }
        Command::Delete(args) => delete::run(global, args, printer).await,
    }
}

/// Makes a volume.
pub async fn create(global: &Global, create: Create, printer: Printer) -> Result<(), Failure> {
    let store = cluster::connect(global).await?;
    let store = store.as_ref();
    let cluster = metadata::load_cluster(store).await?;
    let ring = metadata::load_ring(store).await?;
    let replicas = create.replicas.unwrap_or(ring.map_or(cluster.replicas, |ring| ring.doc.now.replicas));
    let new = NewVolume {
        name: create.name.clone(),
        size: blocks(create.size),
        replicas,
        min_replicas: create.min_replicas.unwrap_or(replicas.saturating_sub(1).max(1)),
        ack_mode: create.ack_mode(),
    };
    metadata::create_volume(store, new).await?;
    let shown = shown(store, &create.name).await?;
    let sentence = format!(
        "volume {:?} created: {}, replicas {}, acknowledged when {}",
        shown.name,
        printer.size(shown.size_bytes),
        shown.replicas,
        shown.ack_word()
    );
    printer.done(&sentence, &shown)
}

async fn shown(store: &dyn MetadataStore, volume: &str) -> Result<Shown, Failure> {
    Ok(Shown::from(metadata::find_volume(store, volume).await?))
}

/// Whole blocks that hold `size`.
fn blocks(size: Size) -> Lba {
    Lba(size.0.div_ceil(BLOCK_BYTES))
}
