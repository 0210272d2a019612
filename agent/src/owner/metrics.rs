//! What `/metrics` tells of volumes that a process owns, each by its name in the label `volume`.

use super::driver::OwnerStats;
use super::status::Figures;
use crate::process::metrics::Labels;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use std::fmt;
use torus_core::block::VolumeState;
use torus_core::ids::BLOCK_BYTES;
use torus_core::log::Blocked;

/// Of several volumes, gathered at one time.
#[derive(Debug)]
pub struct VolumeMetrics(pub(super) Vec<Figures>);

/// A name, what it is, and its value.
type Row<T> = (&'static str, &'static str, fn(&OwnerStats) -> T);

const COUNTERS: [Row<u64>; 5] = [
    ("volume_user_bytes", "Bytes that clients wrote", |s| s.counters.user_blocks * BLOCK_BYTES),
    ("volume_log_bytes", "Bytes of the log, for one copy: headers and moved blocks included", |s| {
        s.counters.log_blocks * BLOCK_BYTES
    }),
    ("volume_moved_bytes", "Bytes that garbage collection moved, for one copy", |s| {
        s.counters.moved_blocks * BLOCK_BYTES
    }),
    ("volume_checkpoint_bytes", "Bytes of checkpoints, for one copy", |s| s.counters.checkpoint_blocks * BLOCK_BYTES),
    ("volume_checkpoints", "Checkpoints committed", |s| s.counters.checkpoints),
];

const BYTES: [Row<u64>; 4] = [
    ("volume_mapped", "Bytes of the volume that hold data", |s| s.mapped_blocks * BLOCK_BYTES),
    ("volume_map_memory", "Memory of the address map", |s| s.map_bytes),
    ("volume_sealed", "Bytes in sealed extents, for one copy", |s| s.usage.sealed * BLOCK_BYTES),
    ("volume_garbage", "Bytes in them that nothing refers to", |s| s.usage.garbage() * BLOCK_BYTES),
];

const GAUGES: [Row<u64>; 5] = [
    ("volume_gc_running", "1 while garbage is collected", |s| u64::from(s.collecting)),
    ("volume_extents_degraded_count", "Extents with fewer sound copies than asked for", |s| s.under_replicated),
    ("volume_pool_slots_count", "Slots of the agents that its owner reaches", |s| s.space.total.into()),
    ("volume_pool_slots_free_count", "Slots of them that hold nothing", |s| s.space.free.into()),
    ("volume_requests_underway_count", "Requests that are not answered", |s| s.underway),
];

const AMPLIFICATION: Row<f64> = (
    "volume_write_amplification_ratio",
    "Bytes written to each copy for each byte that a client wrote, since it was opened",
    |s| s.counters.write_amplification(),
);

const OLDEST: Row<f64> = ("volume_oldest_request", "For how long the oldest request is not answered", |s| {
    s.oldest.unwrap_or_default().as_secs_f64()
});

impl VolumeMetrics {
    /// One metric, for all volumes that have it.
    fn tell<M: EncodeMetric>(
        &self,
        to: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        unit: Option<&Unit>,
        of: impl Fn(&Figures) -> Option<M>,
    ) -> fmt::Result {
        let metrics: Vec<_> = self.0.iter().filter_map(|one| Some((label(one), of(one)?))).collect();
        // Without one there is no kind to be told.
        let Some((_, first)) = metrics.first() else { return Ok(()) };
        let mut family = to.encode_descriptor(name, help, unit, first.metric_type())?;
        metrics.iter().try_for_each(|(label, metric)| metric.encode(family.encode_family(label)?))
    }

    /// The same for what an owner has answered.
    fn tell_row<T, M: EncodeMetric>(
        &self,
        to: &mut DescriptorEncoder<'_>,
        unit: Option<&Unit>,
        &(name, help, value): &Row<T>,
        metric: impl Fn(T) -> M,
    ) -> fmt::Result {
        self.tell(to, (name, help), unit, |one| one.stats.as_ref().map(|stats| metric(value(stats))))
    }

    fn tell_waits(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = |is| ConstGauge::new(u64::from(is));
        let help = "1 while I/O waits for this reason";
        let mut family = to.encode_descriptor("volume_waits", help, None, gauge(false).metric_type())?;
        for one in &self.0 {
            let Some(stats) = &one.stats else { continue };
            for reason in [Blocked::NoSpace, Blocked::TooFewAgents, Blocked::Metadata] {
                let mut labels = label(one);
                labels.push(("reason".into(), word(reason).into()));
                gauge(stats.blocked == Some(reason)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn label(one: &Figures) -> Labels {
    vec![("volume".into(), one.name.clone())]
}

fn word(reason: Blocked) -> &'static str {
    match reason {
        Blocked::NoSpace => "no-space",
        Blocked::TooFewAgents => "too-few-agents",
        Blocked::Metadata => "metadata",
    }
}

impl Collector for VolumeMetrics {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let to = &mut to;
        let about = ("volume", "A volume that this process owns");
        self.tell(to, about, None, |_| Some(Info::new(vec![("version", env!("CARGO_PKG_VERSION"))])))?;
        self.tell(to, ("volume_serving", "1 while it is served here"), None, |one| {
            Some(ConstGauge::new(u64::from(matches!(one.state, VolumeState::Serving(_)))))
        })?;
        self.tell(to, ("volume_epoch_count", "Its epoch: how often it was opened"), None, |one| {
            Some(ConstGauge::new(match one.state {
                VolumeState::Serving(epoch) | VolumeState::Fenced(epoch) => epoch.0,
                _ => 0,
            }))
        })?;
        COUNTERS.iter().try_for_each(|row| self.tell_row(to, None, row, ConstCounter::<u64>::new))?;
        BYTES.iter().try_for_each(|row| self.tell_row(to, Some(&Unit::Bytes), row, ConstGauge::<u64>::new))?;
        GAUGES.iter().try_for_each(|row| self.tell_row(to, None, row, ConstGauge::<u64>::new))?;
        self.tell_row(to, None, &AMPLIFICATION, ConstGauge::<f64>::new)?;
        self.tell_row(to, Some(&Unit::Seconds), &OLDEST, ConstGauge::<f64>::new)?;
        self.tell_waits(to)?;
        for (at, kind) in ["volume_read", "volume_write", "volume_flush"].into_iter().enumerate() {
            let about = (kind, "Time from a request to its answer");
            self.tell(to, about, Some(&Unit::Seconds), |one| Some(one.latencies.0[at].clone()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::Latencies;
    use super::*;
    use crate::process::metrics::owner_text;
    use torus_core::ids::Epoch;

    fn figures(name: &str, stats: Option<OwnerStats>) -> Figures {
        Figures { name: name.into(), state: VolumeState::Serving(Epoch(3)), stats, latencies: Latencies::new() }
    }

    #[test]
    fn each_metric_is_told_once_with_a_line_for_each_volume() {
        let busy = OwnerStats { blocked: Some(Blocked::NoSpace), mapped_blocks: 5, ..OwnerStats::default() };
        let text = owner_text(VolumeMetrics(vec![figures("db", Some(busy)), figures("logs", None)])).unwrap();
        let mut kinds: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE torus_volume")).collect();
        let count = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), count, "{text}");
        for line in [
            concat!("torus_volume_info{version=\"", env!("CARGO_PKG_VERSION"), "\",volume=\"db\"} 1"),
            "torus_volume_serving{volume=\"db\"} 1",
            "torus_volume_serving{volume=\"logs\"} 1",
            "torus_volume_epoch_count{volume=\"logs\"} 3",
            "torus_volume_user_bytes_total{volume=\"db\"} 0",
            "torus_volume_mapped_bytes{volume=\"db\"} 20480",
            "torus_volume_oldest_request_seconds{volume=\"db\"} 0.0",
            "torus_volume_waits{volume=\"db\",reason=\"no-space\"} 1",
            "torus_volume_waits{volume=\"db\",reason=\"metadata\"} 0",
            "torus_volume_read_seconds_count{volume=\"logs\"} 0",
        ] {
            assert!(text.lines().any(|there| there == line), "no {line} in {text}");
        }
        // Whoever does not answer has no figures.
        assert!(!text.contains("user_bytes_total{volume=\"logs\"}"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn nothing_is_told_of_no_volume() {
        let text = owner_text(VolumeMetrics(Vec::new())).unwrap();
        assert!(!text.contains("torus_volume"), "{text}");
    }
}
