//! `torusctl volume delete`: marks the volume, has the agents give back what they hold of it, forgets it.
//!
//! It can be interrupted, and run again, at any point. Until every agent has shown that it holds nothing, the volume stays
//! there as `deleting`: nobody can open it, and its name stays taken.

use crate::args::Global;
use crate::cluster::{self, Agents};
use crate::failure::{Failure, Kind};
use crate::output::Printer;
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};
use torus_agent::metadata;
use torus_agent::owner::{DeleteError, delete_volume};
use torus_core::ids::VolumeId;

/// What to delete.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Its name, or its id.
    volume: String,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Delete it although somebody holds it: they are fenced and get nothing more acknowledged.
    #[arg(long)]
    fence: bool,
    /// An agent that will never come back: do not wait for what it holds. May be given several times.
    #[arg(long, value_name = "AGENT")]
    without: Vec<String>,
}

/// What is gone, for programs.
#[derive(Serialize)]
struct Deleted {
    name: String,
    id: VolumeId,
    agents: Vec<Cleaned>,
}

#[derive(Serialize)]
struct Cleaned {
    name: String,
    copies: u64,
}

/// Does it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    let store = cluster::open(global).await?;
    let store = store.as_ref();
    let info = metadata::find_volume(store, &args.volume).await?;
    let name = info.meta.doc.name.clone();
    let agents = Agents::load(store).await?;
    let without = args.without.iter().map(|agent| Ok(agents.find(agent)?.id)).collect::<Result<Vec<_>, Failure>>()?;
    if !args.yes && !info.meta.doc.deleting {
        confirm(&name, printer.size(info.meta.doc.size.0 * torus_core::ids::BLOCK_BYTES))?;
    }
    let removed = delete_volume(store, &info, &without, args.fence).await?;
    let left: Vec<String> =
        removed.iter().filter_map(|agent| Some(format!("agent {:?} {}", agent.name, agent.left.as_ref()?))).collect();
    if let Some(first) = removed.iter().find(|agent| agent.left.is_some()) {
        let sentence = format!("volume {name:?} is marked for deletion, but not gone: {}", left.join("; "));
        return Err(Failure::failed_as(Kind::Failed, sentence).next(format!(
            "When that is mended, run `torusctl volume delete {name}` again; if the agent will never come back, add \
             --without {}",
            first.name
        )));
    }
    let copies: u64 = removed.iter().map(|agent| agent.copies).sum();
    let agents = removed.into_iter().map(|agent| Cleaned { name: agent.name, copies: agent.copies }).collect();
    let sentence = format!("volume {name:?} is deleted: {copies} copies of extents given back");
    printer.done(&sentence, &Deleted { name, id: info.id, agents })
}

impl From<DeleteError> for Failure {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Volume(error) => error.into(),
            DeleteError::Agents(error) => error.into(),
            DeleteError::Cluster(error) => error.into(),
            DeleteError::Thread(_) => Self::of(Kind::Failed, &error),
        }
    }
}

/// Has a person type the name again.
fn confirm(name: &str, size: String) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!("volume {name:?} is not deleted without being asked: pass --yes")));
    }
    let mut typed = String::new();
    let asked = write!(std::io::stderr(), "volume {name:?} ({size}) and all its data will be gone. Type its name: ");
    let answered = asked.and_then(|()| stdin.lock().read_line(&mut typed));
    answered.map_err(|error| Failure::because("cannot ask", &error))?;
    match typed.trim() == name {
        true => Ok(()),
        false => Err(Failure::failed(format!("volume {name:?} is not deleted: that was not its name"))),
    }
}
