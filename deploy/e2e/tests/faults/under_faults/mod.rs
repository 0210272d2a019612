//! See the file above.

mod agents;
mod clients;
mod disk;
mod idle;
mod input;
mod owners;
mod removal;
mod waste;

use anyhow::Result;
use std::thread;
use std::time::{Duration, Instant};
use torus_e2e::cluster::{Cluster, Options};
use torus_e2e::fio::{Load, Report};

/// The longest that I/O may stall when an agent dies.
const STALL_MAX: Duration = Duration::from_millis(500);

/// Three agents with direct I/O, and the programs as they are released.
fn cluster(options: Options) -> Result<Cluster> {
    let flags = ["--fill", "reserve"].map(str::to_owned).into();
    Cluster::start(Options { agent_flags: flags, ..options })
}

/// Prints what happened, and when.
struct Story(Instant);

impl Story {
    fn begin(what: &str) -> Story {
        println!("--- {what}");
        Story(Instant::now())
    }

    fn tell(&self, what: impl std::fmt::Display) {
        println!("{:7.2} s  {what}", self.0.elapsed().as_secs_f64());
    }

    /// Waits until `seconds` have passed since the begin.
    fn wait_until(&self, seconds: f64) {
        thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(self.0.elapsed()));
    }
}

fn told(report: &Report) -> String {
    let seconds = report.time.as_secs_f64();
    let mib = report.bytes >> 20;
    format!("{} I/Os, {mib} MiB in {seconds:.1} s, no error, longest {:.0?}", report.ios, report.longest)
}

const LOAD: Load = Load { random_bytes: 256 << 20, sequential_bytes: 1 << 30, time: Duration::from_secs(30), seed: 1 };
