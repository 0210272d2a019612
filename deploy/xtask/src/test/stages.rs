//! The stages themselves.

use super::tally::Tally;
use super::{Options, Outcome, Stage};
use crate::{e2e, manifests, sim, tools, workspace};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Instant;

/// All stages, in the order they run.
pub const ALL: &[Stage] = &[
    Stage { name: "fmt", about: "every file is formatted", slow: false, run: fmt },
    Stage { name: "tools", about: "programs that the tests drive are installed", slow: false, run: install },
    Stage { name: "clippy", about: "no warning in any target", slow: false, run: clippy },
    Stage { name: "chart", about: "the chart is sound, and deploy/manifests is made from it", slow: false, run: chart },
    Stage { name: "cargo", about: "cargo test of the whole workspace", slow: false, run: cargo_test },
    Stage { name: "sim", about: "simulated clusters keep every promise", slow: false, run: simulated },
    Stage {
        name: "mutations",
        about: "every deliberate defect is caught by a simulated cluster",
        slow: true,
        run: mutated,
    },
    Stage { name: "faults", about: "real processes are killed, stopped and cut off", slow: true, run: faults },
    Stage { name: "e2e", about: "Torus on a real Kubernetes, scenario by scenario", slow: true, run: kubernetes },
    Stage { name: "demo", about: "torusctl demo --once, as the README has it", slow: true, run: demo },
];

fn fmt(_: &Options) -> Result<Outcome> {
    component("fmt", "rustfmt", &["fmt", "--all", "--check"])
}

fn clippy(_: &Options) -> Result<Outcome> {
    component("clippy", "clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// Runs a cargo subcommand that comes as a component of its own: a minimal toolchain lacks it.
fn component(subcommand: &str, component: &str, args: &[&str]) -> Result<Outcome> {
    if !workspace::works("cargo", &[subcommand, "--version"]) {
        return Ok(Outcome::Skipped(format!("{component} is not here: `rustup component add {component}` gets it")));
    }
    Ok(Outcome::Checked(workspace::succeeds(&mut workspace::cargo(args)?)?))
}

/// Worlds of the real owner, those of another for the members by themselves, and a few of both twice to see that a seed is a
/// world; fewer when in a hurry.
fn simulated(options: &Options) -> Result<Outcome> {
    let (volume, scripted) = if options.quick { ("200", "200") } else { ("2000", "2000") };
    let clean = sim::simulate(&["--seeds", volume])?
        && sim::simulate(&["--owner", "scripted", "--seeds", scripted])?
        && sim::simulate(&["--seeds", "20", "--twice"])?
        && sim::simulate(&["--owner", "scripted", "--seeds", "20", "--twice"])?;
    Ok(Outcome::Checked(clean))
}

/// What shows that the simulator bites: each defect is given to the cores until the checker of what it breaks sees it first.
fn mutated(_: &Options) -> Result<Outcome> {
    Ok(Outcome::Checked(sim::simulate(&["--mutations"])?))
}

fn demo(_: &Options) -> Result<Outcome> {
    let args = ["run", "--quiet", "--release", "--bin", "torusctl", "--", "demo", "--once"];
    let mut command = workspace::cargo(args)?;
    if nix::unistd::Uid::effective().is_root() {
        command.arg("--mount");
    }
    Ok(Outcome::Checked(workspace::succeeds(&mut command)?))
}

fn kubernetes(_: &Options) -> Result<Outcome> {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(Outcome::Skipped("nodes need root, for mounts and namespaces".into()));
    }
    let outcome = e2e::tally(Vec::new(), false)?;
    Ok(Outcome::Tests(Tally { passed: outcome.passed, failed: outcome.failed }))
}

fn chart(_: &Options) -> Result<Outcome> {
    if manifests::helm().is_none() {
        return Ok(Outcome::Skipped("helm is not here, and there is no Go to build it".into()));
    }
    Ok(Outcome::Checked(manifests::run(&manifests::Options { check: true })?))
}

fn install(_: &Options) -> Result<Outcome> {
    tools::ensure().map(|()| Outcome::Checked(true))
}

/// What has a stage of its own is left out.
fn cargo_test(_: &Options) -> Result<Outcome> {
    tests(&["--workspace", "--no-fail-fast"], &["--skip", UNDER_FAULTS])
}

/// One at a time, as they measure; what they saw is printed.
fn faults(_: &Options) -> Result<Outcome> {
    tests(&["-p", "torus-e2e", "--test", "faults"], &["--nocapture", "--test-threads=1", UNDER_FAULTS])
}

/// The module that holds the tests of the stage `faults`.
const UNDER_FAULTS: &str = "under_faults::";

/// `cargo test` with arguments of its own and some for the tests, its output passed on line by line and counted on the way.
///
/// Everything is built and on the disk before the first test runs: what tests measure is not to be the compiler's writes.
fn tests(of_cargo: &[&str], of_tests: &[&str]) -> Result<Outcome> {
    let mut build = workspace::cargo(["test", "--no-run"].iter().chain(of_cargo))?;
    println!("$ {}", workspace::shown(&build));
    if !workspace::succeeds(&mut build)? {
        return Ok(Outcome::Tests(Tally::ONE_FAILED));
    }
    let started = Instant::now();
    workspace::settle()?;
    println!("what was built is on the disk, after {:.1} s", started.elapsed().as_secs_f64());
    let mut command = workspace::cargo(["test"].iter().chain(of_cargo).chain(&["--"]).chain(of_tests))?;
    println!("$ {}", workspace::shown(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut total = Tally::default();
    for line in BufReader::new(child.stdout.take().expect("stdout was asked to be a pipe")).split(b'\n') {
        let line = line.context("cannot read what cargo test prints")?;
        let text = String::from_utf8_lossy(&line);
        if let Some(tally) = Tally::of_line(&text) {
            total += tally;
        }
        writeln!(std::io::stdout(), "{text}").context("cannot print")?;
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    // A test in a document that did not build, or a harness that died, has no line of its own.
    if !status.success() && total.failed == 0 {
        total += Tally::ONE_FAILED;
    }
    Ok(Outcome::Tests(total))
}
