//! Measurements collected: every run is kept, figures are medians over the rounds.

use super::fio::{Job, Run, Side};
use serde::Serialize;

/// One run of one job on one target.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The target's name.
    pub target: String,
    /// The job's name.
    pub job: &'static str,
    /// Which round, from 1.
    pub round: u32,
    /// What fio says.
    pub run: Run,
    /// CPU time of the target's processes for each 10,000 operations; `None` where it has no process.
    pub cpu_s_per_10k: Option<f64>,
    /// Memory of those processes after the run.
    pub rss_bytes: Option<u64>,
}

/// All runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    /// In the order they were made.
    pub runs: Vec<Measured>,
}

/// A job's figures on a target: medians.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Figures {
    /// Operations in a second.
    pub iops: f64,
    /// Bytes in a second.
    pub bytes_per_s: f64,
    /// Median and 99th percentile of writes.
    pub write_us: Option<(f64, f64)>,
    /// Median and 99th percentile of reads.
    pub read_us: Option<(f64, f64)>,
    /// CPU time of the target's processes for each 10,000 operations.
    pub cpu_s_per_10k: Option<f64>,
    /// Their memory.
    pub rss_bytes: Option<f64>,
}

impl Figures {
    /// 1 / IOPS, in µs: the mean latency of a job at depth 1, submission included.
    pub fn mean_us(&self) -> f64 {
        1e6 / self.iops
    }
}

impl Table {
    /// The names of all targets, in the order they came.
    pub fn targets(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !names.contains(&run.target.as_str()) {
                names.push(&run.target);
            }
        }
        names
    }

    /// The runs of one round.
    pub fn round(&self, round: u32) -> Table {
        Table { runs: self.runs.iter().filter(|run| run.round == round).cloned().collect() }
    }

    /// The figures of `job` on `target`; `None` if it was not run.
    pub fn figures(&self, target: &str, job: &str) -> Option<Figures> {
        let runs: Vec<&Measured> = self.runs.iter().filter(|run| run.target == target && run.job == job).collect();
        let all =
            |figure: &dyn Fn(&Measured) -> Option<f64>| median(runs.iter().filter_map(|run| figure(run)).collect());
        let side = |side: fn(&Run) -> Option<Side>| {
            let p50 = all(&|m| side(&m.run).map(|side| side.p50_us))?;
            Some((p50, all(&|m| side(&m.run).map(|side| side.p99_us))?))
        };
        Some(Figures {
            iops: all(&|m| Some(m.run.iops()))?,
            bytes_per_s: all(&|m| Some(m.run.bytes_per_s()))?,
            write_us: side(|run| run.write),
            read_us: side(|run| run.read),
            cpu_s_per_10k: all(&|m| m.cpu_s_per_10k),
            #[expect(clippy::cast_precision_loss, reason = "shown in MiB")]
            rss_bytes: all(&|m| m.rss_bytes.map(|bytes| bytes as f64)),
        })
    }

    /// As markdown, a table for each of `jobs`.
    pub fn markdown(&self, jobs: &[Job]) -> String {
        let mut text = String::new();
        for job in jobs {
            let beside = |name: &str, figures: &Figures| match self.figures(name, job.name) {
                Some(other) => format!("{:.2}", figures.iops / other.iops),
                None => "-".into(),
            };
            text += &format!(
                "\n### {}: {}\n\n| target | IOPS | MB/s | p50 / p99 µs | CPU-s per 10,000 | RSS MiB | of nbdkit | of raw |\n\
                 |---|---:|---:|---:|---:|---:|---:|---:|\n",
                job.name, job.about
            );
            for target in self.targets() {
                let Some(figures) = self.figures(target, job.name) else { continue };
                text += &format!(
                    "| {target} | {:.0} | {:.0} | {} | {} | {} | {} | {} |\n",
                    figures.iops,
                    figures.bytes_per_s / 1e6,
                    latencies(&figures),
                    figures.cpu_s_per_10k.map_or("-".into(), |cpu| format!("{cpu:.2}")),
                    figures.rss_bytes.map_or("-".into(), |rss| format!("{:.0}", rss / f64::from(1 << 20))),
                    beside(super::NBDKIT, &figures),
                    beside(super::RAW, &figures),
                );
            }
        }
        text
    }
}

/// `p50 / p99`, of writes and then of reads where there are both.
fn latencies(figures: &Figures) -> String {
    let shown = |(p50, p99): (f64, f64)| format!("{p50:.0} / {p99:.0}");
    figures.write_us.into_iter().chain(figures.read_us).map(shown).collect::<Vec<_>>().join("; ")
}

/// The value in the middle, or the mean of the two there.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A table in which `target` reached `iops` in `job`, once for each, using `cpu` seconds per 10,000.
    pub fn table(runs: &[(&str, &'static str, f64, f64)]) -> Table {
        let measured = |&(target, job, iops, cpu): &(&str, &'static str, f64, f64)| {
            let side = Side { ios: 1000, iops, bytes_per_s: iops * 4096.0, p50_us: 10.0, p99_us: 20.0 };
            Measured {
                target: target.into(),
                job,
                round: 1,
                run: Run { read: None, write: Some(side) },
                cpu_s_per_10k: Some(cpu),
                rss_bytes: None,
            }
        };
        Table { runs: runs.iter().map(measured).collect() }
    }

    #[test]
    fn figures_are_medians() {
        let table = table(&[("a", "j", 10.0, 1.0), ("a", "j", 50.0, 2.0), ("a", "j", 20.0, 9.0), ("b", "j", 7.0, 1.0)]);
        let figures = table.figures("a", "j").unwrap();
        assert_eq!((figures.iops, figures.cpu_s_per_10k), (20.0, Some(2.0)));
        assert_eq!(figures.mean_us(), 50_000.0);
        assert_eq!(table.figures("a", "other"), None);
        assert_eq!(table.targets(), ["a", "b"]);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn ratios_stand_beside_the_figures() {
        let table = table(&[(super::super::NBDKIT, "w4k_q1", 200.0, 1.0), ("torus r2", "w4k_q1", 50.0, 1.0)]);
        let text = table.markdown(&super::super::fio::JOBS);
        assert!(text.contains("| torus r2 | 50 | 0 | 10 / 20 | 1.00 | - | 0.25 | - |"), "{text}");
    }
}
