//! What can be typed: one definition gives the parser, the help and the completions.

use crate::commands;
use crate::output::Format;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;
use torus_agent::metadata::MetaArgs;

/// Replicated block volumes out of the disks of your machines.
///
/// Sizes are written as in coreutils: 20GiB and 20G are powers of 1024, 20GB of 1000.
///
/// Exit codes: 0 done; 1 failed; 2 asked for what makes no sense; 3 refused, because data would be at risk or another
/// holds it.
#[derive(Parser, Debug)]
#[command(name = "torusctl", version, max_term_width = 100)]
pub struct Args {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What applies to every command.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// How to print answers
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Show sizes in powers of 1000
    #[arg(long)]
    pub si: bool,
    /// The configuration file [default: ~/.config/torus/config.yaml]
    #[arg(long, env = "TORUS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The profile of the configuration file to use
    #[arg(long, env = "TORUS_PROFILE", value_name = "NAME")]
    pub profile: Option<String>,
    /// Where the cluster is.
    #[command(flatten)]
    pub metadata: MetaArgs,
    /// Whether the key prefix was asked for, or is the default.
    #[arg(skip)]
    pub prefix_given: bool,
}

/// The parser: everything global may stand before and after the command.
pub fn command() -> clap::Command {
    Args::command().mut_args(|arg| arg.global(true))
}

/// What was typed. Ends the process where that makes no sense, or asks for help.
pub fn parse() -> Args {
    let matches = command().get_matches();
    let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    args.global.prefix_given = matches.value_source("etcd_prefix") != Some(ValueSource::DefaultValue);
    args
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a cluster in an empty metadata store
    Init(commands::init::Args),
    /// Make, list, show, grow and delete volumes
    Volume(commands::volume::Args),
    /// The agents of the cluster
    Peer(commands::peer::Args),
    /// Open a volume here and serve it over NBD until stopped
    Serve(commands::serve::Args),
    /// Make a volume a block device of this host, and mount it
    Attach(commands::attach::Args),
    /// List what is attached on this host
    Attached(commands::attach::ListArgs),
    /// Unmount a volume, take its device away, let it go
    Detach(commands::attach::DetachArgs),
    /// The FlexVolume driver of this host
    Flex(commands::flex::Args),
    /// On Kubernetes: say of each node whether Torus can run there
    Preflight(commands::kube::Args),
    /// On Kubernetes: say how the cluster is; with --wait until it is ready
    Status(commands::kube::Args),
    /// On Kubernetes: everything that `kubectl torus` does, such as `kube volume list`
    Kube(commands::kube::Args),
    /// See it work: three agents on this machine, a volume, a failure, a recovery
    Demo(commands::demo::Args),
    /// Where new data goes
    Ring(commands::ring::Args),
    /// The first Torus's spelling of `peer list`
    #[command(hide = true)]
    ListPeers,
    /// The first Torus's spelling of `volume`
    #[command(hide = true)]
    Block(commands::block::Args),
    /// Show or change the profiles that say where clusters are
    Config(commands::config::Args),
    /// Print a completion script for a shell
    Completion(commands::completion::Args),
    /// Print versions
    Version,
}
