//! What must be reached, at replicas 2, relative to what the same machine gave in the same run.

use super::table::{Table, median};
use super::{Floor, NBDKIT, RAW, torus};
use serde::Serialize;

/// One figure and its bound.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    /// What is measured, and against what.
    pub name: &'static str,
    /// What was measured.
    pub got: f64,
    /// What it is compared with.
    pub bound: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Bar {
    /// Whether the bound is kept. A figure that is not a number never is.
    pub fn kept(&self) -> bool {
        if self.at_least { self.got >= self.bound } else { self.got <= self.bound }
    }

    /// One line for people.
    pub fn shown(&self) -> String {
        let (word, sign) = (if self.kept() { "ok    " } else { "MISSED" }, if self.at_least { "≥" } else { "≤" });
        format!("{word} {}: {:.2} (must be {sign} {:.2})", self.name, self.got, self.bound)
    }
}

/// All bars, with what `table` has for them: each figure is the median of what the rounds gave, and what is compared was
/// measured in one round, as machines and disks drift. `None` when the run left out something they need.
pub fn judge(table: &Table, floors: &[Floor]) -> Option<Vec<Bar>> {
    let rounds: Vec<Vec<Bar>> =
        (1..).zip(floors).map(|(round, floor)| judge_round(&table.round(round), floor)).collect::<Option<_>>()?;
    let middle = |(i, bar): (usize, &Bar)| {
        let got = median(rounds.iter().map(|bars| bars[i].got).collect())?;
        Some(Bar { got, ..bar.clone() })
    };
    rounds.first()?.iter().enumerate().map(middle).collect()
}

fn judge_round(table: &Table, floor: &Floor) -> Option<Vec<Bar>> {
    let ours = |job| table.figures(&torus(2), job);
    let nbdkit = |job| table.figures(NBDKIT, job);
    let mut bars = Vec::new();
    let mut at_least = |name, got, bound| bars.push(Bar { name, got, bound, at_least: true });

    let raw_reads = table.figures(RAW, "r4k_q32")?.iops;
    at_least(
        "random writes at depth 32, share of nbdkit memory",
        ours("w4k_q32")?.iops / nbdkit("w4k_q32")?.iops,
        0.40,
    );
    let reads_due = f64::min(0.80 * raw_reads, 0.60 * nbdkit("r4k_q32")?.iops);
    at_least(
        "random reads at depth 32, share of the lower of 0.8 raw reads and 0.6 nbdkit memory",
        ours("r4k_q32")?.iops / reads_due,
        1.0,
    );
    at_least(
        "sequential 1 MiB writes, share of nbdkit memory",
        ours("w1m_q8")?.bytes_per_s / nbdkit("w1m_q8")?.bytes_per_s,
        0.40,
    );
    at_least(
        "sequential 1 MiB reads, share of nbdkit memory",
        ours("r1m_q8")?.bytes_per_s / nbdkit("r1m_q8")?.bytes_per_s,
        0.60,
    );

    let mut at_most = |name, got, bound| bars.push(Bar { name, got, bound, at_least: false });
    let parts_us = floor.raw_frame_us + nbdkit("w4k_q1")?.mean_us() + floor.roundtrip_us;
    at_most(
        "random writes at depth 1, mean latency over raw 8 KiB write and sync + nbdkit memory + round trip",
        ours("w4k_q1")?.mean_us() / parts_us,
        1.6,
    );
    at_most("random writes at depth 1, CPU-seconds per 10,000", ours("w4k_q1")?.cpu_s_per_10k?, 4.0);
    at_most("random writes at depth 32, CPU-seconds per 10,000", ours("w4k_q32")?.cpu_s_per_10k?, 0.5);
    at_most("random reads at depth 1, CPU-seconds per 10,000", ours("r4k_q1")?.cpu_s_per_10k?, 1.5);
    at_most("random reads at depth 32, CPU-seconds per 10,000", ours("r4k_q32")?.cpu_s_per_10k?, 0.5);
    Some(bars)
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::table;
    use super::*;

    const FLOOR: Floor = Floor { raw_frame_us: 300.0, roundtrip_us: 30.0 };

    /// nbdkit at 10,000 everywhere and raw reads at 5,000; ours at `iops` with `cpu`.
    fn judged(iops: f64, cpu: f64) -> Vec<Bar> {
        let mut runs = vec![(RAW, "r4k_q32", 5_000.0, 0.0)];
        let ours = torus(2);
        for job in super::super::fio::JOBS {
            runs.push((NBDKIT, job.name, 10_000.0, 0.1));
            runs.push((&ours, job.name, iops, cpu));
        }
        judge(&table(&runs), &[FLOOR]).unwrap()
    }

    #[test]
    fn good_figures_keep_all_bars_and_bad_ones_miss_them() {
        assert!(judged(7_000.0, 0.4).iter().all(Bar::kept));
        let missed = |bars: Vec<Bar>| bars.iter().filter(|bar| !bar.kept()).map(|bar| bar.name).collect::<Vec<_>>();
        // 1,000 IOPS at depth 1 are 1,000 µs, where 1.6 × (300 + 100 + 30) µs are allowed.
        assert_eq!(missed(judged(1_000.0, 0.4)).len(), 5);
        assert_eq!(missed(judged(7_000.0, 0.6)).len(), 2);
        assert_eq!(missed(judged(7_000.0, 5.0)).len(), 4);
        assert_eq!(missed(judged(f64::NAN, f64::NAN)).len(), 9);
    }

    #[test]
    fn the_lower_of_the_two_bounds_on_reads_counts() {
        // 0.8 × 5,000 raw reads = 4,000 is lower than 0.6 × 10,000.
        let reads = |iops| judged(iops, 0.1).into_iter().find(|bar| bar.name.starts_with("random reads")).unwrap();
        assert!(reads(4_000.0).kept() && !reads(3_999.0).kept());
    }

    #[test]
    fn what_is_compared_is_of_one_round() {
        // Our machine halves its speed from round to round; the share stays what it is.
        let ours = torus(2);
        let mut all = Table::default();
        for (round, speed) in [(1, 4.0), (2, 2.0), (3, 1.0)] {
            let mut runs = vec![(RAW, "r4k_q32", 1e6, 0.0)];
            for job in super::super::fio::JOBS {
                runs.push((NBDKIT, job.name, 1000.0 * speed, 0.1));
                runs.push((&ours, job.name, 500.0 * speed, f64::from(round)));
            }
            all.runs.extend(table(&runs).runs.into_iter().map(|run| super::super::table::Measured { round, ..run }));
        }
        let bars = judge(&all, &[FLOOR, FLOOR, FLOOR]).unwrap();
        let got = |name: &str| bars.iter().find(|bar| bar.name.starts_with(name)).unwrap().got;
        assert_eq!(got("random writes at depth 32, share"), 0.5);
        assert_eq!(got("random reads at depth 1, CPU"), 2.0);
    }

    #[test]
    fn nothing_is_judged_that_was_not_measured() {
        assert!(judge(&table(&[(NBDKIT, "w4k_q1", 1.0, 1.0)]), &[FLOOR]).is_none());
    }
}
