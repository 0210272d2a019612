//! `torusctl block`: the first Torus's spelling.

use super::volume;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::Printer;
use clap::Subcommand;

/// What to do.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// The same as `volume create-block`
    Create(volume::Create),
}

/// Does it.
pub async fn run(global: &Global, args: Args, printer: Printer) -> Result<(), Failure> {
    let Command::Create(create) = args.command;
    volume::create(global, create, printer).await
}
