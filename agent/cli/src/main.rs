//! `torusctl`: the command line of Torus.
//!
//! A thin layer: a command decodes its arguments, makes one call into `torus_agent`, and prints what came back. What
//! every command shares is in one place each: sizes in [`units`], tables and JSON in [`output`], where the cluster is
//! in [`profile`], sentences and exit codes in [`failure`].
//!
//! Invariants:
//! 1. Nothing is printed on stdout but what was asked for, so that `-o json` can always be parsed; the rest is stderr.
//! 2. A command that did not do what it was asked to exits with the code of its [`failure::Kind`], never with 0.

mod args;
mod blockspec;
mod cluster;
mod commands;
mod failure;
mod output;
mod profile;
mod serving;

use std::process::ExitCode;
use torus_agent::units;

fn main() -> ExitCode {
    let args = args::parse();
    match commands::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}
