//! `cargo xtask sim`: the simulator, built optimised but with every assertion on (profile `sim`). For `--mutations` the
//! cores are built with their deliberate defects, which no other build contains.

use crate::workspace;
use anyhow::Result;
use std::ffi::OsString;

/// Everything is passed on.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds the simulator and runs it with the options' arguments.
pub fn run(options: &Options) -> Result<bool> {
    simulate(&options.args)
}

/// Builds the simulator and runs it; `false`: it found something, and said what.
pub fn simulate<S: Into<OsString> + Clone>(args: &[S]) -> Result<bool> {
    let args: Vec<OsString> = args.iter().cloned().map(Into::into).collect();
    let mut words = vec!["run", "--quiet", "--profile", "sim", "--package", "torus-sim"];
    if args.iter().any(|arg| arg == "--mutations") {
        words.extend(["--features", "mutations"]);
    }
    words.push("--");
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    words.extend(args);
    workspace::succeeds(&mut workspace::cargo(words)?)
}
