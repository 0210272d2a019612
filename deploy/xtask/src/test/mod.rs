//! `cargo xtask test`: the suite, as stages that run in order, cheap ones first.
//!
//! A failed stage does not stop those after it: one run shows everything that is wrong. The last line printed is
//! `N passed, N failed`: every test that cargo's harness ran counts as one, and so does every other stage.

mod stages;
mod tally;

use anyhow::{Result, bail};
use std::time::{Duration, Instant};
use tally::Tally;

/// Which stages to run.
#[derive(clap::Args)]
pub struct Options {
    /// Leave out the stages that take minutes, and simulate fewer seeds.
    #[arg(long)]
    quick: bool,
    /// Run only this stage; may be given several times.
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Show the stages and run none.
    #[arg(long)]
    list: bool,
}

/// One part of the suite.
struct Stage {
    name: &'static str,
    about: &'static str,
    /// Takes minutes: left out by `--quick`.
    slow: bool,
    run: fn(&Options) -> Result<Outcome>,
}

/// How a stage ended, if it ended by itself.
enum Outcome {
    /// A stage that is one check.
    Checked(bool),
    /// A stage of many tests.
    Tests(Tally),
    /// Not run here, and why; neither passed nor failed.
    Skipped(String),
}

/// Runs the chosen stages; `false` when anything failed.
pub fn run(options: &Options) -> Result<bool> {
    if options.list {
        for stage in stages::ALL {
            println!("{:<10} {}{}", stage.name, stage.about, if stage.slow { " (not with --quick)" } else { "" });
        }
        return Ok(true);
    }
    let chosen = choose(options)?;
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for stage in chosen {
        println!("\n=== {}: {}", stage.name, stage.about);
        let started = Instant::now();
        let (counted, word) = match (stage.run)(options) {
            Ok(Outcome::Checked(true)) => (Tally::ONE_PASSED, "ok".to_owned()),
            Ok(Outcome::Checked(false)) => (Tally::ONE_FAILED, "FAILED".to_owned()),
            Ok(Outcome::Tests(tally)) => (tally, if tally.failed == 0 { "ok".into() } else { "FAILED".into() }),
            Ok(Outcome::Skipped(why)) => (Tally::default(), format!("skipped: {why}")),
            Err(error) => (Tally::ONE_FAILED, format!("FAILED: {error:#}")),
        };
        total += counted;
        println!("=== {}: {word} ({})", stage.name, seconds(started.elapsed()));
        lines.push(format!("{:<10} {:>8}  {word}", stage.name, seconds(started.elapsed())));
    }
    println!("\n{}\n{total}", lines.join("\n"));
    Ok(total.failed == 0)
}

fn choose(options: &Options) -> Result<Vec<&'static Stage>> {
    if options.only.is_empty() {
        return Ok(stages::ALL.iter().filter(|stage| !(options.quick && stage.slow)).collect());
    }
    if let Some(unknown) = options.only.iter().find(|name| stages::ALL.iter().all(|stage| stage.name != **name)) {
        let known: Vec<_> = stages::ALL.iter().map(|stage| stage.name).collect();
        bail!("there is no stage {unknown:?}; the stages are: {}", known.join(", "));
    }
    Ok(stages::ALL.iter().filter(|stage| options.only.iter().any(|name| name == stage.name)).collect())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
