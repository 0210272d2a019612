//! `cargo xtask sim`: the simulator, built optimised but with every assertion on (profile `sim`).

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
    let mut words: Vec<OsString> =
        ["run", "--quiet", "--profile", "sim", "--package", "torus-sim", "--"].map(OsString::from).into();
    words.extend(args.iter().cloned().map(Into::into));
    workspace::succeeds(&mut workspace::cargo(words)?)
}
