//! `torusctl completion`: a script that a shell loads.

use crate::args;
use crate::failure::Failure;
use clap::ValueEnum;
use clap_complete::Shell;
use std::io::{self, Write};

/// Which shell.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell; `source <(torusctl completion bash)` loads it.
    shell: Known,
}

/// The shells there are scripts for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub fn run(args: &Args) -> Result<(), Failure> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "torusctl", &mut script);
    io::stdout().lock().write_all(&script).map_err(|error| Failure::print(&error))
}
