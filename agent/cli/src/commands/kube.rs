//! Torus on a Kubernetes cluster: what `kubectl-torus` does, which is a program of its own, as hosts without Kubernetes need no
//! client of it. It is looked for beside this program, then in the path.

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Format;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The program.
const PROGRAM: &str = "kubectl-torus";

/// Arguments that are passed on as they are.
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Passed on to kubectl-torus, which explains them with --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    rest: Vec<OsString>,
}

/// Becomes the other program; `words` come before what was typed. How to print is said once for every command, and passed on.
pub fn run(global: &Global, words: &[&str], args: Args) -> Result<(), Failure> {
    let format: &[&str] = match global.output {
        Format::Table => &[],
        Format::Json => &["-o", "json"],
        Format::Yaml => &["-o", "yaml"],
        Format::Csv => {
            return Err(Failure::usage(format!("{PROGRAM} prints tables, JSON and YAML: ask for one of them with -o")));
        }
    };
    let error = Command::new(program()).args(words).args(format).args(args.rest).exec();
    let advice = "It comes with Torus: put it beside torusctl, or into PATH, where kubectl finds it, too.";
    Err(Failure::because(format!("cannot run {PROGRAM}"), &error).next(advice))
}

fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PROGRAM.into())
}
