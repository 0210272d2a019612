//! Runs scenarios one after the other, and counts.

use super::diagnostics;
use super::world::World;
use super::{ALL, Scenario};
use crate::kube::residue::Residue;
use crate::kube::{Cluster, Options as ClusterOptions, Progress, run::Run};
use anyhow::{Context, Result, bail};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What is run, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only those of these names; all if none is given.
    pub only: Vec<String>,
    /// Leave the cluster running after a failure.
    pub keep: bool,
    /// How the cluster is made.
    pub cluster: ClusterOptions,
    /// Where what is collected after failures goes.
    pub failures: PathBuf,
}

/// How many passed and failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Those that held.
    pub passed: u64,
    /// Those that did not, or could not be tried.
    pub failed: u64,
}

impl Outcome {
    /// Counts what came of a check beside the scenarios, and tells.
    fn count(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n{error:#}");
            }
        }
    }
}

/// Brings up a cluster and runs the scenarios. The last line printed is a count as cargo's test harness has it.
///
/// # Errors
/// When there is no scenario of a name, or no cluster comes up.
pub fn run(options: &Options) -> Result<Outcome> {
    let chosen = choose(&options.only)?;
    let started = Instant::now();
    let residue = Residue::before()?;
    println!("\nrunning {} scenarios", chosen.len());
    let cluster = Cluster::start(&options.cluster, Progress::default())?;
    end_in_order(cluster.run());
    let mut world = World::new(cluster);
    let mut outcome = Outcome::default();
    let mut usable = Ok(());
    for scenario in &chosen {
        let begun = Instant::now();
        let result = match &usable {
            Ok(()) => attempt(&mut world, scenario),
            Err(error) => Err(anyhow::anyhow!("not tried: {error:#}")),
        };
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                outcome.passed += 1;
                println!("test {} ... ok ({seconds:.1} s)", scenario.name);
            }
            Err(error) => {
                wait_if_ending();
                outcome.failed += 1;
                println!("test {} ... FAILED ({seconds:.1} s)\n{error:#}", scenario.name);
                if usable.is_ok() {
                    collect(&world, options, scenario.name);
                    world.end_scenario_after_failure();
                    usable = world.until_nodes_are_ready().context("nodes are not ready after an earlier failure");
                }
            }
        }
    }
    if options.keep && outcome.failed > 0 {
        println!("kept: {}", world.leave()?.display());
    } else {
        let directory = world.cluster().run().directory().to_path_buf();
        drop(world);
        outcome.count("nothing-left", residue.check(&directory));
    }
    let word = if outcome.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s",
        outcome.passed,
        outcome.failed,
        ALL.len() - chosen.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(outcome)
}

/// One scenario, in a namespace of its own; a panic in it is its failure.
fn attempt(world: &mut World, scenario: &Scenario) -> Result<()> {
    println!("test {}: {}", scenario.name, scenario.about);
    world.prepare(scenario.needs).context("what it needs could not be made")?;
    world.begin_scenario(scenario.name)?;
    let run = AssertUnwindSafe(|| (scenario.run)(world));
    match catch_unwind(run) {
        Ok(result) => result?,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            bail!("it panicked: {}", said.unwrap_or("for a reason that is no text"));
        }
    }
    world.end_scenario()
}

fn collect(world: &World, options: &Options, name: &str) {
    let directory = options.failures.join(name);
    match diagnostics::collect(world.cluster(), &directory) {
        Ok(()) => println!("what there is to see is in {}", directory.display()),
        Err(error) => println!("cannot collect what there is to see: {error:#}"),
    }
}

fn choose(only: &[String]) -> Result<Vec<&'static Scenario>> {
    if let Some(unknown) = only.iter().find(|name| ALL.iter().all(|scenario| scenario.name != **name)) {
        let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!("there is no scenario {unknown:?}; there are: {}", known.join(", "));
    }
    Ok(ALL.iter().filter(|scenario| only.is_empty() || only.iter().any(|name| name == scenario.name)).collect())
}

/// Whether a signal is ending us.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What fails while everything is removed has not failed; the thread that removes it ends the process.
fn wait_if_ending() {
    while ENDING.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Removes everything when a person or CI ends us. What they end harder than that, the next run removes.
pub fn end_in_order(run: &Run) {
    use nix::sys::signal::{SigSet, Signal};
    let directory = run.directory().to_path_buf();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Threads that come later have this mask; programs are started without one.
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            ENDING.store(true, Ordering::Relaxed);
            println!("{signal}: removing the cluster");
            if let Err(error) = crate::kube::run::remove(&directory) {
                println!("{error:#}");
            }
            std::process::exit(130);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name_and_keep_their_order() {
        let names = |only: &[&str]| -> Vec<_> {
            let only: Vec<_> = only.iter().map(ToString::to_string).collect();
            choose(&only).unwrap().iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(names(&["pod-moves", "install"]), ["install", "pod-moves"]);
        assert_eq!(names(&[]).len(), ALL.len());
        assert!(choose(&["nonsense".into()]).unwrap_err().to_string().contains("pod-moves"));
    }

    #[test]
    fn no_two_scenarios_have_one_name_and_all_can_be_namespaces() {
        for (index, scenario) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != scenario.name), "{}", scenario.name);
            assert!(scenario.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
        }
    }
}
