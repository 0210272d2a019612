//! `torusctl peer`: the agents of the cluster.

use crate::args::Global;
use crate::cluster::{self, Agents};
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use clap::Subcommand;
use serde::Serialize;
use torus_agent::metadata::{self, AgentInfo, Wish, ring_agent};
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
    /// Put agents into the ring, so that they get data
    Add {
        /// Their names, or their ids.
        #[arg(value_name = "AGENT", required_unless_present = "all_peers", conflicts_with = "all_peers")]
        agents: Vec<String>,
        /// All agents of the cluster.
        #[arg(long)]
        all_peers: bool,
    },
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
        Command::Add { agents, all_peers } => add(global, &agents, all_peers, printer).await,
    }
}

/// Lists all agents.
pub async fn list(global: &Global, printer: Printer) -> Result<(), Failure> {
    let store = cluster::connect(global).await?;
    let extent_bytes = u64::from(metadata::load_cluster(store.as_ref()).await?.extent_blocks) * BLOCK_BYTES;
    let agents = metadata::list_agents(store.as_ref()).await?;
    printer.list(&agents.into_iter().map(|info| Shown::new(info, extent_bytes)).collect::<Vec<_>>())
}

/// Puts agents into the ring.
async fn add(global: &Global, names: &[String], all: bool, printer: Printer) -> Result<(), Failure> {
    let store = cluster::open(global).await?;
    let known = Agents::load(store.as_ref()).await?;
    let wanted: Vec<&AgentInfo> = match all {
        true => known.all().collect(),
        false => names.iter().map(|name| known.find(name)).collect::<Result<_, _>>()?,
    };
    if wanted.is_empty() {
        return Err(Failure::failed("there is no agent to add").next("Start one: torus-agent --help."));
    }
    let agents: Vec<_> = wanted.iter().map(|info| ring_agent(info)).collect();
    let replicas = metadata::load_cluster(store.as_ref()).await?.replicas;
    let ring = metadata::join_ring(store.as_ref(), &agents, replicas, Wish::Person).await?;
    let named: Vec<_> = wanted.iter().map(|info| info.doc.doc.name.as_str()).collect();
    let sentence = format!(
        "in the ring: {}. It is at version {} and has {} agents now",
        named.join(", "),
        ring.version,
        ring.now.agents.len()
    );
    printer.done(&sentence, &ring)
}
