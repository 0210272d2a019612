//! A volume that is overwritten at random, again and again, in a pool that it nearly fills.

use super::{Story, told};
use anyhow::{Context, Result, ensure};
use std::thread;
use std::time::Duration;
use torus_e2e::cluster::{Cluster, Options, Owner};
use torus_e2e::fio::overwrite;
use torus_e2e::process::until;
use torus_e2e::writer::{Lane, Writing};

const REPLICAS: u64 = 2;
/// Of the pool that the volume's data fills.
const FILL: f64 = 0.7;
/// How often it is overwritten.
const TIMES: u64 = 10;
/// Bytes written to each copy for each byte that a client wrote, at most.
const AMPLIFICATION_MAX: f64 = 3.0;
const EXTENT: u64 = 4 << 20;
const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

#[test]
fn overwriting_ten_times_in_a_pool_that_is_70_percent_full() -> Result<()> {
    let story = Story::begin("a volume that fills 70 % of the pool is overwritten at random ten times");
    let options = Options {
        disk_size: "512MiB".into(),
        extent_size: "4MiB".into(),
        agent_flags: ["--fill", "reserve", "--buffered-io"].map(str::to_owned).into(),
        ..Options::default()
    };
    let cluster = Cluster::start(options)?;
    let pool = slots(&cluster, "torus_disk_slots_count")? as u64 * EXTENT;
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes")]
    let size = ((pool as f64 * FILL) as u64 / REPLICAS / MIB) * MIB;
    cluster.torusctl(["volume", "create", "db", &size.to_string(), "--replicas", "2"])?;
    let owner = cluster.serve("owner", "db", false)?;
    story.tell(format_args!("a pool of {} MiB, a volume of {} MiB with {REPLICAS} copies", pool / MIB, size / MIB));

    let random = size - MIB;
    let filled = overwrite(&owner.uri(), cluster.path(), "fill", "write", random, 1)?.finish()?;
    story.tell(format_args!("filled: {}", told(&filled)));
    until("the owner gives its figures", SOON, || Ok(Written::of(&cluster, &owner).is_ok()))?;
    let before = Written::of(&cluster, &owner)?;

    // Its last MiB is written by a writer that knows what has to be there.
    let known = Writing::start(&owner, [Lane::slow(1, random / 4096, 256)])?;
    let mut fio = overwrite(&owner.uri(), cluster.path(), "overwrite", "randwrite", random, TIMES)?;
    let (mut most, mut said) = (0.0_f64, 0.0);
    while fio.process.ended()?.is_none() {
        thread::sleep(Duration::from_millis(250));
        most = most.max(used(&cluster)?);
        // An owner that has much to do may not answer in time.
        let Ok(now) = Written::of(&cluster, &owner) else { continue };
        let now = now.since(&before);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let times = now.user / size as f64;
        if times >= said + 1.0 {
            said = times.floor();
            story.tell(format_args!(
                "overwritten {times:.1} times: pool {:.0} % full, write amplification {:.2}",
                used(&cluster)? * 100.0,
                now.amplification()
            ));
        }
    }
    let overwritten = fio.finish()?;
    story.tell(format_args!("overwritten: {}", told(&overwritten)));
    let (mut lanes, seen) = known.finish()?;
    lanes.iter_mut().try_for_each(|lane| lane.check(&owner, true).map(drop))?;
    until("the owner gives its figures", SOON, || Ok(Written::of(&cluster, &owner).is_ok()))?;
    let all = Written::of(&cluster, &owner)?.since(&before);
    story.tell(format_args!(
        "{} writes beside it exact; agents wrote {:.0} MiB for {:.0} MiB of clients: write amplification {:.2} ({:.2} by the \
         owner's count), the pool at most {:.0} % full",
        seen.writes,
        all.agents / MIB as f64,
        all.user / MIB as f64,
        all.amplification(),
        owner.metric("torus_volume_write_amplification_ratio")?,
        most * 100.0
    ));
    ensure!(all.amplification() <= AMPLIFICATION_MAX, "write amplification is {:.2}", all.amplification());
    ensure!(most < 0.99, "the pool was {:.0} % full", most * 100.0);
    let settled = || Ok(used(&cluster)? < 0.97);
    until("garbage is given back", Duration::from_secs(60), settled)?;
    owner.stop()
}

/// Bytes, as the metrics count them.
struct Written {
    /// By agents, all copies together.
    agents: f64,
    /// By clients.
    user: f64,
}

impl Written {
    fn of(cluster: &Cluster, owner: &Owner) -> Result<Written> {
        let blocks = slots(cluster, "torus_member_append_blocks_total")?;
        Ok(Written { agents: blocks * 4096.0, user: owner.metric("torus_volume_user_bytes_total")? })
    }

    fn since(&self, before: &Written) -> Written {
        Written { agents: self.agents - before.agents, user: self.user - before.user }
    }

    #[expect(clippy::cast_precision_loss, reason = "two, or three")]
    fn amplification(&self) -> f64 {
        self.agents / REPLICAS as f64 / self.user.max(1.0)
    }
}

/// A metric of all agents together.
fn slots(cluster: &Cluster, name: &str) -> Result<f64> {
    (0..cluster.agents.len()).map(|agent| cluster.metric(agent, name)).sum::<Result<f64>>().context("no figures")
}

/// Which part of the pool is in use.
fn used(cluster: &Cluster) -> Result<f64> {
    Ok(1.0 - slots(cluster, "torus_disk_slots_free_count")? / slots(cluster, "torus_disk_slots_count")?)
}
