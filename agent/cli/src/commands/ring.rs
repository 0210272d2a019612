//! `torusctl ring`: where new data goes.

use crate::args::Global;
use crate::blockspec;
use crate::cluster::{self, Agents};
use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
use torus_agent::metadata::{self, RingsError, ring_agent};
use torus_core::ids::AgentId;
use torus_core::ring::{KINDS, Moved, Ring, RingSpec, sample, simulate};

/// Keys that a simulation places.
const SAMPLE_KEYS: u64 = 20_000;

/// What to do with the ring.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show the ring
    Get,
    /// Change how many copies there are of what does not say
    SetReplication {
        /// Copies.
        #[arg(value_parser = blockspec::replicas, value_name = "N")]
        replicas: u8,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Say what the ring is to be
    ManualChange {
        #[command(flatten)]
        wanted: Wanted,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how differently data would be placed if the ring were changed
    Simulate(Wanted),
}

/// What a ring is to be; what is not said stays.
#[derive(clap::Args, Debug)]
struct Wanted {
    /// Its kind.
    #[arg(long = "type", value_parser = KINDS.each_ref().map(|kind| kind.name), value_name = "KIND")]
    kind: Option<String>,
    /// The agents in it, by id or by name.
    #[arg(long, value_delimiter = ',', value_name = "AGENT,…", conflicts_with = "all_peers")]
    uuids: Option<Vec<String>>,
    /// All agents of the cluster are in it.
    #[arg(long)]
    all_peers: bool,
    /// Copies of what does not say how many.
    #[arg(short, long, value_parser = blockspec::replicas, value_name = "N")]
    replicas: Option<u8>,
    /// How many parts of a failure domain's path, from the outermost, must differ between copies; 0: all of them.
    #[arg(long, value_name = "PARTS")]
    spread: Option<u8>,
    /// Weights that differ from what the agents say of themselves.
    #[arg(long, value_delimiter = ',', value_name = "AGENT=WEIGHT,…", value_parser = weight)]
    weights: Vec<(String, u64)>,
    /// A JSON file with the rules of a ring of kind map.
    #[arg(long, value_name = "FILE")]
    options: Option<PathBuf>,
}

fn weight(text: &str) -> Result<(String, u64), String> {
    let parts = text.split_once('=').and_then(|(agent, weight)| Some((agent.to_owned(), weight.parse().ok()?)));
    parts.ok_or_else(|| "expected AGENT=WEIGHT, such as node-7=100".into())
}

impl Wanted {
    /// The ring that is wanted, where `now` is what there is.
    fn applied(&self, now: Option<&RingSpec>, agents: &Agents, replicas: u8) -> Result<RingSpec, Failure> {
        let first = RingSpec {
            kind: metadata::KIND_DEFAULT.into(),
            replicas,
            spread: None,
            agents: Vec::new(),
            options: Value::Null,
        };
        let mut spec = now.cloned().unwrap_or(first);
        if let Some(kind) = &self.kind {
            if *kind != spec.kind {
                spec.options = Value::Null;
            }
            spec.kind.clone_from(kind);
        }
        if spec.kind == "empty" {
            spec.agents.clear();
        }
        if self.all_peers {
            spec.agents = agents.all().map(ring_agent).collect();
        } else if let Some(names) = &self.uuids {
            spec.agents = names.iter().map(|name| agents.find(name).map(ring_agent)).collect::<Result<_, _>>()?;
        }
        spec.replicas = self.replicas.unwrap_or(spec.replicas);
        if let Some(spread) = self.spread {
            spec.spread = Some(spread).filter(|parts| *parts > 0);
        }
        for (name, weight) in &self.weights {
            let id = agents.find(name)?.id;
            let Some(agent) = spec.agents.iter_mut().find(|agent| agent.id == id) else {
                return Err(Failure::usage(format!("agent {name:?} has no weight in a ring that it is not in"))
                    .next("Put it in with --uuids or --all-peers."));
            };
            agent.weight = *weight;
        }
        if let Some(path) = &self.options {
            let failed = |error: &dyn std::error::Error| {
                Failure::because(format!("cannot use the ring's options in {}", path.display()), error)
            };
            let text = std::fs::read(path).map_err(|error| failed(&error))?;
            spec.options = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        }
        Ok(spec)
    }
}

/// The ring, for programs.
#[derive(Serialize)]
struct Shown {
    version: u64,
    kind: String,
    replicas: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<u8>,
    agents: Vec<Member>,
    #[serde(skip_serializing_if = "Value::is_null")]
    options: Value,
}

#[derive(Serialize)]
struct Member {
    name: String,
    id: AgentId,
    domain: String,
    weight: u64,
    share: f64,
}

impl Record for Member {
    const COLUMNS: &'static [&'static str] = &["AGENT", "SHARE", "WEIGHT", "DOMAIN", "ID"];

    fn cells(&self, _: Style) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:.1} %", 100.0 * self.share),
            self.weight.to_string(),
            self.domain.clone(),
            self.id.to_string(),
        ]
    }
}

/// What a change does to one agent.
#[derive(Serialize)]
struct Flow {
    name: String,
    id: AgentId,
    share_before: f64,
    share_after: f64,
    arriving: f64,
    leaving: f64,
}

impl Record for Flow {
    const COLUMNS: &'static [&'static str] = &["AGENT", "BEFORE", "AFTER", "ARRIVING", "LEAVING", "ID"];

    fn cells(&self, _: Style) -> Vec<String> {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        vec![
            self.name.clone(),
            percent(self.share_before),
            percent(self.share_after),
            percent(self.arriving),
            percent(self.leaving),
            self.id.to_string(),
        ]
    }
}

/// A simulation, for programs. Shares are of all copies.
#[derive(Serialize)]
struct Simulated {
    from: RingSpec,
    to: RingSpec,
    copies_moved: f64,
    degraded: f64,
    agents: Vec<Flow>,
}

/// Does it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    let store = cluster::open(global).await?;
    let store = store.as_ref();
    let replicas = metadata::load_cluster(store).await?.replicas;
    let agents = Agents::load(store).await?;
    let now = metadata::load_ring(store).await?.map(|found| found.doc);
    let spec = now.as_ref().map(|doc| &doc.now);
    let (wanted, dry_run) = match &args.command {
        Command::Get => {
            let doc = now.ok_or(RingsError::None)?;
            return show(&Shown::new(doc.version.0, &doc.now, &agents)?, "", printer);
        }
        Command::SetReplication { replicas, dry_run } => {
            (RingSpec { replicas: *replicas, ..spec.cloned().ok_or(RingsError::None)? }, *dry_run)
        }
        Command::ManualChange { wanted, dry_run } => (wanted.applied(spec, &agents, replicas)?, *dry_run),
        Command::Simulate(wanted) => (wanted.applied(spec, &agents, replicas)?, true),
    };
    if dry_run {
        return compare(spec, &wanted, &agents, printer);
    }
    // What somebody else changed meanwhile is not overwritten unseen.
    let seen = spec.cloned();
    let changed =
        metadata::change_ring(
            store,
            |ring| {
                if ring == seen.as_ref() { Ok(wanted.clone()) } else { Err(RingsError::Busy) }
            },
        );
    let doc = changed.await?;
    show(&Shown::new(doc.version.0, &doc.now, &agents)?, "New data follows it; what is stored stays.\n", printer)
}

fn show(shown: &Shown, remark: &str, printer: Printer) -> Result<(), Failure> {
    let spread = shown.spread.map(|parts| format!(", spread over level {parts} of the domains")).unwrap_or_default();
    let title = format!("ring v{}: {}, replicas {}{spread}\n{remark}", shown.version, shown.kind, shown.replicas);
    printer.titled(&title, shown, &shown.agents)
}

/// Tells what would be placed differently.
fn compare(now: Option<&RingSpec>, wanted: &RingSpec, agents: &Agents, printer: Printer) -> Result<(), Failure> {
    let none = RingSpec {
        kind: "empty".into(),
        replicas: wanted.replicas,
        spread: None,
        agents: Vec::new(),
        options: Value::Null,
    };
    let from = now.unwrap_or(&none);
    let (old, new) = (built(from)?, built(wanted)?);
    let moved = simulate(&old, &new, sample(SAMPLE_KEYS));
    let simulated = Simulated {
        from: from.clone(),
        to: wanted.clone(),
        copies_moved: moved.fraction(),
        degraded: share(moved.degraded, moved.extents),
        agents: flows(&moved, agents),
    };
    let mut title = format!(
        "{} → {}, replicas {} → {}: {:.1} % of the copies would have another place\n",
        from.kind,
        wanted.kind,
        from.replicas,
        wanted.replicas,
        100.0 * simulated.copies_moved
    );
    if moved.degraded > 0 {
        let percent = 100.0 * simulated.degraded;
        title += &format!("{percent:.1} % of the extents would have fewer copies, or less spread, than asked\n");
    }
    printer.titled(&title, &simulated, &simulated.agents)
}

fn built(spec: &RingSpec) -> Result<Ring, Failure> {
    Ring::new(spec).map_err(|error| RingsError::Unsound(error).into())
}

fn flows(moved: &Moved, agents: &Agents) -> Vec<Flow> {
    let before: u64 = moved.agents.values().map(|flow| flow.before).sum();
    let flow = |(id, flow): (&AgentId, &torus_core::ring::Flow)| Flow {
        name: agents.name(*id),
        id: *id,
        share_before: share(flow.before, before),
        share_after: share(flow.after, moved.copies),
        arriving: share(flow.arriving, moved.copies),
        leaving: share(flow.leaving, before),
    };
    moved.agents.iter().map(flow).collect()
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Shown {
    fn new(version: u64, spec: &RingSpec, agents: &Agents) -> Result<Self, Failure> {
        let ring = built(spec)?;
        let placed = simulate(&ring, &ring, sample(SAMPLE_KEYS));
        let member = |agent: &torus_core::ring::RingAgent| Member {
            name: agents.name(agent.id),
            id: agent.id,
            domain: agent.domain.clone(),
            weight: agent.weight,
            share: share(placed.agents.get(&agent.id).map_or(0, |flow| flow.after), placed.copies),
        };
        Ok(Self {
            version,
            kind: spec.kind.clone(),
            replicas: spec.replicas,
            spread: spec.spread,
            agents: spec.agents.iter().map(member).collect(),
            options: spec.options.clone(),
        })
    }
}
