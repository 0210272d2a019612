//! The Torus operator: makes Kubernetes run what `TorusCluster` and `TorusVolume` objects ask for.
//!
//! watch → plan → apply → status. All decisions are `torus-plan`'s; what is here reads, carries out, and writes. It looks at the
//! whole world in one pass rather than at one object at a time: a pass plans from one picture, needs no queue of its own, and
//! a lost event costs seconds.
//!
//! Not here: rights. Service accounts and what they may do come with the chart, so that the operator needs no right to give any.

mod apply;
mod delays;
pub mod guard;
mod http;
mod leader;
mod metadata;
mod pass;
mod patch;
#[cfg(test)]
mod stub;
mod teller;
mod watched;

pub use pass::Settings;

use http::Health;
use kube::Client;
use leader::Leader;
use pass::Passes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use torus_plan::lease::PERIOD;
use watched::Watched;

/// The longest pause between two passes: agents and owners change in etcd, which is not watched.
const PERIOD_OF_PASSES: Duration = Duration::from_secs(3);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(100);

/// Runs until `stop` says so.
///
/// # Errors
/// When the address for metrics cannot be used.
pub async fn run(
    client: Client,
    settings: Settings,
    http_address: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let health = Arc::new(Health::default());
    http::serve(http_address, health.clone()).await?;
    let leader = Leader::begin(client.clone(), &settings, health.clone());
    let watched = Arc::new(Watched::begin(&client, &settings.namespace));
    tokio::select! {
        () = watched.ready() => {}
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    }
    health.watches_are_ready();
    let mut passes = Passes::new(client, settings, watched.clone());
    while !*stop.borrow() {
        if leader.leads() {
            let begun = Instant::now();
            let tally = passes.pass().await;
            health.passed(tally, begun.elapsed());
            // What was done may have changed etcd, and something else may have waited for that.
            let pause = if tally.actions > 0 { GATHER } else { PERIOD_OF_PASSES };
            tokio::select! {
                // Changed, or not: look again.
                _ = timeout(pause, watched.changed.notified()) => sleep(GATHER).await,
                _ = stop.wait_for(|stop| *stop) => {}
            }
        } else {
            passes.stand_by().await;
            tokio::select! {
                () = sleep(PERIOD) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }
    passes.farewell().await;
    leader.give_back().await;
    Ok(())
}
