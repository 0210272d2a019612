//! What processes used, from `/proc`.

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::time::Duration;

/// What one or several processes used until now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// User and system time of all threads, those that have ended included. Counted in ticks of 10 ms.
    pub cpu: Duration,
    /// Memory in RAM now.
    pub rss_bytes: u64,
    /// The most memory in RAM that there was.
    pub rss_bytes_max: u64,
}

impl Usage {
    /// Of the process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        let status = read("status")?;
        let ticks = cpu_ticks(&stat).with_context(|| format!("cannot make sense of /proc/{pid}/stat: {stat:?}"))?;
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(100);
        Ok(Self {
            cpu: Duration::from_millis(ticks * 1000 / per_second.max(1)),
            // A process that has ended but was not collected has no memory and no such lines.
            rss_bytes: kib(&status, "VmRSS:").unwrap_or(0) * 1024,
            rss_bytes_max: kib(&status, "VmHWM:").unwrap_or(0) * 1024,
        })
    }

    /// Of several processes together.
    pub fn of_all(pids: impl IntoIterator<Item = u32>) -> Result<Self> {
        pids.into_iter().map(Self::of).sum()
    }
}

impl Add for Usage {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            rss_bytes: self.rss_bytes + other.rss_bytes,
            rss_bytes_max: self.rss_bytes_max + other.rss_bytes_max,
        }
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), Add::add)
    }
}

/// CPU time used since an earlier reading.
impl Sub for Usage {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.cpu.saturating_sub(earlier.cpu)
    }
}

/// `utime` + `stime` of a `/proc/PID/stat` line. The name in parentheses may hold anything, so fields are counted after it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first field after the name is the third of the line, utime the fourteenth.
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The number in a line such as `VmRSS:    1234 kB`.
fn kib(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn names_with_spaces_and_parentheses_do_not_confuse_it() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("42 (x) S 1"), None);
    }

    #[test]
    fn work_is_seen() {
        let before = Usage::of(std::process::id()).unwrap();
        let started = Instant::now();
        let mut x = 1u64;
        // On a busy machine hardly any of the time that passes is this thread's: it works until that is seen.
        let after = loop {
            for _ in 0..100_000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
            let now = Usage::of(std::process::id()).unwrap();
            if now - before >= Duration::from_millis(20) {
                break now;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", now - before);
        };
        assert!(after.rss_bytes > 0 && after.rss_bytes_max >= after.rss_bytes);
    }
}
