//! `/metrics`: what the parts of an agent count, in Prometheus's text form. Gathered when asked, kept nowhere twice.

use super::status::Status;
use crate::node::Attachment;
use crate::owner::VolumeMetrics;
use crate::storage::Report;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

pub(crate) type Labels = Vec<(String, String)>;
pub(crate) type Count = Gauge<u64, AtomicU64>;
pub(crate) type Fraction = Gauge<f64, AtomicU64>;

/// For commits: 50 µs to 13 s.
#[must_use]
pub fn commit_seconds() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 18))
}

/// Everything of an agent with storage, as text. Without a report only what needs no data plane.
///
/// # Errors
/// Never for what is registered here.
pub fn text(status: &Status, report: Option<&Report>, volumes: VolumeMetrics) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("torus");
    agent(&mut registry, status, report.is_some());
    process(&mut registry);
    if let Some(report) = report {
        disks(&mut registry, report, &status.commit_seconds);
        member(&mut registry, report);
        tdp(&mut registry, report);
    }
    registry.register_collector(Box::new(volumes));
    encoded(&registry)
}

/// What there is to tell of an owner in a process of its own.
///
/// # Errors
/// Never for what is registered here.
pub(crate) fn owner_text(volumes: VolumeMetrics) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("torus");
    process(&mut registry);
    registry.register_collector(Box::new(volumes));
    encoded(&registry)
}

fn encoded(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

/// What there is to tell of an agent without storage.
///
/// # Errors
/// Never for what is registered here.
pub fn node_text(name: &str, attached: &[Attachment], volumes: VolumeMetrics) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("torus");
    let info = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("name", name.to_owned())]);
    registry.register("agent", "Who this agent is", info);
    process(&mut registry);
    let dead = attached.iter().filter(|one| !one.served || one.record.lost.is_some()).count();
    gauge(&mut registry, "node_volumes_attached_count", "Volumes attached on this host", attached.len() as u64);
    gauge(&mut registry, "node_volumes_dead_count", "Those of them whose device is dead", dead as u64);
    registry.register_collector(Box::new(volumes));
    encoded(&registry)
}

pub(crate) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Count::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

pub(crate) fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn agent(registry: &mut Registry, status: &Status, answers: bool) {
    let who = &status.who;
    let label = |key: &'static str, value: String| (key, value);
    let info = Info::new(vec![
        label("version", env!("CARGO_PKG_VERSION").into()),
        label("cluster", who.cluster.to_string()),
        label("agent", who.agent.to_string()),
        label("name", who.name.clone()),
        label("domain", who.domain.clone()),
    ]);
    registry.register("agent", "Who this agent is", info);
    gauge(registry, "agent_incarnation_count", "Runs of this agent so far", who.incarnation.0);
    let uptime = Fraction::default();
    uptime.set(status.since.elapsed().as_secs_f64());
    registry.register_with_unit("agent_uptime", "Time since this run began", Unit::Seconds, uptime);
    gauge(registry, "agent_data_plane_up", "1 while the data plane answers", u64::from(answers));
    let lost = status.metadata_lost();
    gauge(registry, "metadata_up", "1 while the metadata store answers heartbeats", u64::from(lost.is_none()));
    let seconds = Fraction::default();
    seconds.set(lost.unwrap_or_default().as_secs_f64());
    registry.register_with_unit("metadata_lost", "Time since it last did", Unit::Seconds, seconds);
}

pub(crate) fn process(registry: &mut Registry) {
    let Some((cpu_seconds, resident_bytes)) = own_use() else { return };
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by(cpu_seconds);
    registry.register_with_unit("process_cpu", "CPU time of this process", Unit::Seconds, cpu);
    let resident = Count::default();
    resident.set(resident_bytes);
    registry.register_with_unit("process_resident", "Memory of this process", Unit::Bytes, resident);
}

/// CPU seconds and resident bytes of this process.
fn own_use() -> Option<(f64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let pages: u64 = fields.get(21)?.parse().ok()?;
    let sysconf = |name| nix::unistd::sysconf(name).ok().flatten();
    let (per_second, page) = (sysconf(nix::unistd::SysconfVar::CLK_TCK)?, sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?);
    #[expect(clippy::cast_precision_loss, reason = "ticks of a clock, for people")]
    Some((ticks as f64 / per_second as f64, pages * page.unsigned_abs()))
}

fn disks(registry: &mut Registry, report: &Report, commit_seconds: &Histogram) {
    let family = || Family::<Labels, Count>::default();
    let (slots, free, failed) = (family(), family(), family());
    for disk in &report.disks {
        let labels =
            vec![("disk".to_owned(), disk.id.to_string()), ("path".to_owned(), disk.path.display().to_string())];
        slots.get_or_create(&labels).set(u64::from(disk.space.total));
        free.get_or_create(&labels).set(u64::from(disk.space.free));
        failed.get_or_create(&labels).set(u64::from(disk.failure.is_some()));
    }
    registry.register("disk_slots_count", "Slots of a disk, each for one extent", slots);
    registry.register("disk_slots_free_count", "Slots of a disk that hold nothing", free);
    registry.register("disk_failed", "1 when the disk has failed and is not used any more", failed);
    let help = "Time from the begin of a group commit to its being durable";
    registry.register_with_unit("disk_commit", help, Unit::Seconds, commit_seconds.clone());
    let buffers = Count::default();
    buffers.set(report.buffers_bytes);
    registry.register_with_unit("disk_buffers", "Buffers in use for disk and network", Unit::Bytes, buffers);
}

fn member(registry: &mut Registry, report: &Report) {
    let done = &report.member;
    for (name, help, value) in [
        ("member_appends", "Frames appended", done.appends),
        ("member_append_blocks", "Blocks of these frames", done.append_blocks),
        ("member_append_resends", "Appends that were there already", done.resends),
        ("member_fills", "Pieces taken over from other members", done.fills),
        ("member_seals", "Extents sealed", done.seals),
        ("member_deletes", "Extents deleted", done.deletes),
        ("member_commits", "Group commits", done.commits),
        ("member_commit_writes", "Separate writes in them", done.commit_writes),
        ("member_reads", "Reads asked for", done.reads),
        ("member_read_blocks", "Blocks read", done.read_blocks),
        ("member_reads_damaged", "Reads refused for blocks that fail their checks", done.reads_damaged),
        ("member_footer_reads", "Reads of checksums that were not in memory", done.footer_reads),
    ] {
        counter(registry, name, help, value);
    }
}

fn tdp(registry: &mut Registry, report: &Report) {
    let server = &report.server;
    counter(registry, "tdp_requests", "Requests received", server.requests.load(Relaxed));
    counter(registry, "tdp_refused", "Connections refused or ended for what they said", server.refused.load(Relaxed));
    gauge(registry, "tdp_connections_count", "Connections now", server.connections.load(Relaxed));
    let held = Count::default();
    held.set(server.held_bytes.load(Relaxed));
    registry.register_with_unit("tdp_held", "Open requests, with their answers", Unit::Bytes, held);
}
