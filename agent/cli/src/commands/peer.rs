//! `torusctl peer`: the agents of the cluster.

use crate::args::Global;
use crate::cluster;
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use clap::Subcommand;
use serde::Serialize;
use torus_agent::metadata::{self, AgentInfo};
use torus_core::ids::{AgentId, BLOCK_BYTES, DiskId};

/// What to do with agents.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List agents: where they are, whether they run, their space
    #[command(visible_alias = "ls")]
    List,
}

/// An agent, for people and programs.
#[derive(Serialize)]
struct Shown {
    name: String,
    id: AgentId,
    domain: String,
    weight: u64,
    up: bool,
    disks: Vec<DiskId>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    alive: Option<Alive>,
}

/// What a running agent says of itself.
#[derive(Serialize)]
struct Alive {
    incarnation: u64,
    data_address: String,
    control_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_address: Option<String>,
    version: String,
    total_bytes: u64,
    free_bytes: u64,
    failed_disks: Vec<DiskId>,
}

impl Shown {
    /// `extent_bytes`: what one slot holds.
    fn new(info: AgentInfo, extent_bytes: u64) -> Self {
        let agent = info.doc.doc;
        let alive = info.alive.map(|alive| Alive {
            incarnation: alive.incarnation.0,
            data_address: alive.data,
            control_address: alive.control,
            http_address: alive.http,
            version: alive.version,
            total_bytes: u64::from(alive.space.total) * extent_bytes,
            free_bytes: u64::from(alive.space.free) * extent_bytes,
            failed_disks: alive.failed_disks,
        });
        Self {
            name: agent.name,
            id: info.id,
            domain: agent.domain,
            weight: agent.weight,
            up: alive.is_some(),
            disks: agent.disks,
            alive,
        }
    }
}

impl Record for Shown {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "STATE", "FREE", "SIZE", "DISKS", "DOMAIN", "ADDRESS", "VERSION", "ID"];

    fn cells(&self, style: Style) -> Vec<String> {
        let alive = self.alive.as_ref();
        let failed = alive.map_or(0, |alive| alive.failed_disks.len());
        vec![
            self.name.clone(),
            if self.up { "up".into() } else { "down".into() },
            alive.map(|alive| style.size(alive.free_bytes)).unwrap_or_default(),
            alive.map(|alive| style.size(alive.total_bytes)).unwrap_or_default(),
            if failed == 0 { self.disks.len().to_string() } else { format!("{} ({failed} failed)", self.disks.len()) },
            self.domain.clone(),
            alive.map(|alive| alive.data_address.clone()).unwrap_or_default(),
            alive.map(|alive| alive.version.clone()).unwrap_or_default(),
            self.id.to_string(),
        ]
    }
}

/// Does it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    match args.command {
        Command::List => list(global, printer).await,
    }
}

/// Lists all agents.
pub async fn list(global: &Global, printer: Printer) -> Result<(), Failure> {
    let store = cluster::connect(global).await?;
    let extent_bytes = u64::from(metadata::load_cluster(store.as_ref()).await?.extent_blocks) * BLOCK_BYTES;
    let agents = metadata::list_agents(store.as_ref()).await?;
    printer.list(&agents.into_iter().map(|info| Shown::new(info, extent_bytes)).collect::<Vec<_>>())
}
