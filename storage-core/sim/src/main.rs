//! `torus-sim`: runs seeds, prints what broke and how to see it again.

use clap::{Parser, ValueEnum};
#[cfg(feature = "mutations")]
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use torus_sim::batch::{Batch, Outcome};
use torus_sim::{Kind, Options, run};

/// Simulate clusters from seeds and check every promise.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many seeds to run; at most so many for each defect with `--mutations`, where it is 2,000 unless given.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Worlds at a time; as many as there are processors unless given.
    #[arg(long)]
    threads: Option<usize>,
    /// Which owner drives the agents.
    #[arg(long, value_enum, default_value_t = OwnerArg::Volume)]
    owner: OwnerArg,
    /// Print everything that happens; one seed at a time.
    #[arg(long)]
    trace: bool,
    /// Run each seed twice and compare.
    #[arg(long)]
    twice: bool,
    /// Go on after a failure. With `--mutations`: count what sees each defect first.
    #[arg(long)]
    keep_going: bool,
    /// Give the cores one deliberate defect after the other until the checker of the invariant that it breaks is the first to
    /// see it; a checker that sees none has not been shown to work.
    #[arg(long)]
    mutations: bool,
    /// With `--mutations`: this defect alone.
    #[arg(long, value_name = "DEFECT")]
    only: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OwnerArg {
    /// The block volume.
    Volume,
    /// A small owner for the member core by itself.
    Scripted,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let kind = match args.owner {
        OwnerArg::Volume => Kind::Volume,
        OwnerArg::Scripted => Kind::Scripted,
    };
    if args.mutations {
        return mutations(&args);
    }
    if args.trace {
        return trace(&args, kind);
    }
    if args.twice {
        return twice(&args, kind);
    }
    seeds(&args, kind)
}

impl Args {
    fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.mutations { 2_000 } else { 200 })
    }
}

fn threads(args: &Args) -> usize {
    args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

#[allow(clippy::disallowed_methods, reason = "how long the run itself takes")]
fn seeds(args: &Args, kind: Kind) -> ExitCode {
    let begun = Instant::now();
    let done = AtomicU64::new(0);
    let batch = Batch {
        from: args.from,
        seeds: args.seeds(),
        threads: threads(args),
        kind,
        mutation: None,
        stop: !args.keep_going,
    };
    quiet_panics();
    let outcome = batch.run(|_, failure| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(failure) = failure {
            eprintln!("\r{failure}");
        } else if done.is_multiple_of(50) {
            eprint!("\r{done} of {} seeds, {:.0} a second ", args.seeds(), done as f64 / begun.elapsed().as_secs_f64());
            let _ = std::io::stderr().flush();
        }
    });
    report(&outcome, begun);
    if outcome.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(outcome: &Outcome, begun: Instant) {
    let (totals, took) = (outcome.totals, begun.elapsed().as_secs_f64());
    let Outcome { passed, failures, .. } = outcome;
    println!("\r{passed} seeds passed, {} failed, in {took:.1} s", failures.len());
    println!(
        "{} operations acknowledged over {} openings, {} faults and {} corrupted blocks; {} slots given back; \
         {} events in {:.1} h of world time",
        totals.acked,
        totals.opens,
        totals.faults,
        totals.corruptions,
        totals.deletes,
        totals.events,
        totals.world_ms as f64 / 3.6e6
    );
    for failure in failures {
        println!("  seed {}: {} {}", failure.seed, failure.invariant, failure.what);
    }
}

fn trace(args: &Args, kind: Kind) -> ExitCode {
    for seed in args.from..args.from + args.seeds() {
        let options = Options::draw(seed, kind);
        println!("seed {seed}: {options}");
        match run(seed, options, None, true) {
            Ok(report) => println!("{report:#?}"),
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn twice(args: &Args, kind: Kind) -> ExitCode {
    for seed in args.from..args.from + args.seeds() {
        let first = run(seed, Options::draw(seed, kind), None, false);
        let second = run(seed, Options::draw(seed, kind), None, false);
        match (first, second) {
            (Ok(first), Ok(second)) if first == second => {}
            (first, second) => {
                println!("seed {seed} differs from itself or fails:\n{first:?}\n{second:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} seeds ran twice alike", args.seeds());
    ExitCode::SUCCESS
}

/// Failures are reported as such, not as a thread's last words.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[cfg(not(feature = "mutations"))]
fn mutations(_: &Args) -> ExitCode {
    eprintln!("torus-sim: the cores were built without their defects: build with `--features mutations`");
    ExitCode::FAILURE
}

#[cfg(feature = "mutations")]
fn mutations(args: &Args) -> ExitCode {
    quiet_panics();
    let mut defects = torus_sim::mutation::all();
    defects.retain(|defect| args.only.as_ref().is_none_or(|name| *name == defect.mutation.name()));
    println!("{:<26} {:<9} {:>6} {:>6}  first seen by", "defect", "owner", "seed", "");
    let mut proven = BTreeMap::new();
    let mut escaped = 0;
    for defect in &defects {
        let (name, owner) = (defect.mutation.name(), format!("{:?}", defect.owner).to_lowercase());
        if args.keep_going {
            println!("{name:<26} {owner:<9} {:>6} {:>6}  {}", "", defect.breaks, tally(args, defect));
            continue;
        }
        match catch(args, defect) {
            Some(failure) => {
                proven.entry(defect.breaks).or_insert_with(Vec::new).push(name.clone());
                let what: String = failure.what.chars().take(110).collect();
                println!("{name:<26} {owner:<9} {:>6} {:>6}  {what}", failure.seed, failure.invariant);
            }
            None => {
                escaped += 1;
                println!("{name:<26} {owner:<9} {:>6} {:>6}  NOT SEEN in {} seeds", "-", defect.breaks, args.seeds());
            }
        }
    }
    if args.keep_going {
        return ExitCode::SUCCESS;
    }
    if args.only.is_some() {
        return if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    println!("\n{:<9}  defects that its checker is the first to see", "invariant");
    for invariant in torus_sim::mutation::CHECKED {
        let by = proven.get(invariant).map_or_else(|| "NONE".to_owned(), |names| names.join(", "));
        println!("{invariant:<9}  {by}");
    }
    let dead = torus_sim::mutation::CHECKED.iter().any(|invariant| !proven.contains_key(invariant));
    if escaped == 0 && !dead { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What sees a defect first, over all seeds, and how often.
#[cfg(feature = "mutations")]
fn tally(args: &Args, defect: &torus_sim::mutation::Defect) -> String {
    let (kind, mutation) = (defect.owner, Some(defect.mutation));
    let batch = Batch { from: args.from, seeds: args.seeds(), threads: threads(args), kind, mutation, stop: false };
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for failure in batch.run(|_, _| {}).failures {
        *seen.entry(failure.invariant).or_default() += 1;
    }
    format!("{seen:?}")
}

/// The first seed in which the checker of the defect's invariant is the first to see it, and nothing is seen without it.
#[cfg(feature = "mutations")]
fn catch(args: &Args, defect: &torus_sim::mutation::Defect) -> Option<torus_sim::Failure> {
    let (end, kind) = (args.from + args.seeds(), defect.owner);
    let mut from = args.from;
    while from < end {
        let mutation = Some(defect.mutation);
        let batch = Batch { from, seeds: end - from, threads: threads(args), kind, mutation, stop: true };
        let failures = batch.run(|_, _| {}).failures;
        from = failures.last()?.seed + 1;
        let due = failures.into_iter().find(|failure| failure.invariant == defect.breaks);
        if let Some(failure) = due
            && run(failure.seed, Options::draw(failure.seed, kind), None, false).is_ok()
        {
            return Some(failure);
        }
    }
    None
}
