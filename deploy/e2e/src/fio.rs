//! fio, writing with checksums and verifying in a run of its own.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Random writes of 4 KiB in one part of a volume, and beside them sequential ones of 1 MiB in another.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes written at random, from the begin of the volume.
    pub random_bytes: u64,
    /// Bytes written in sequence, from [`Load::SEQUENTIAL_AT`].
    pub sequential_bytes: u64,
    /// How long the writing is to take.
    pub time: Duration,
    /// Tells passes apart: another seed writes other bytes in another order.
    pub seed: u64,
}

/// What fio saw.
#[derive(Clone, Copy, Default, Debug)]
pub struct Report {
    /// Writes, or reads when verifying.
    pub ios: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// The longest that one took.
    pub longest: Duration,
}

/// A run of fio.
pub struct Fio {
    /// Its process.
    pub process: Process,
    output: PathBuf,
}

impl Load {
    /// Where the sequential writes begin.
    pub const SEQUENTIAL_AT: u64 = 1 << 30;

    fn command(&self, uri: &str) -> Command {
        let mut fio = Command::new("fio");
        fio.args(["--output-format=json", "--thread", "--group_reporting", "--ioengine=nbd", "--verify=crc32c"]);
        fio.args(["--verify_fatal=1", "--random_generator=tausworthe64"]).arg(format!("--uri={uri}"));
        fio.arg(format!("--randseed={}", self.seed));
        fio
    }

    /// The jobs; options that stand before the first of them hold for all.
    fn jobs(&self, fio: &mut Command, rate: bool) {
        let paced = |bytes: u64| format!("--rate={}k", (bytes >> 10) / self.time.as_secs().max(1));
        fio.args(["--name=random", "--rw=randwrite", "--bs=4k", "--iodepth=16"]);
        fio.arg(format!("--size={}", self.random_bytes));
        if rate {
            fio.arg(paced(self.random_bytes));
        }
        fio.args(["--name=sequential", "--rw=write", "--bs=1m", "--iodepth=4"]);
        fio.arg(format!("--offset={}", Self::SEQUENTIAL_AT)).arg(format!("--size={}", self.sequential_bytes));
        if rate {
            fio.arg(paced(self.sequential_bytes));
        }
    }

    /// Begins to write.
    pub fn write(&self, uri: &str, scratch: &Path) -> Result<Fio> {
        let mut fio = self.command(uri);
        fio.arg("--do_verify=0");
        self.start("fio-write", fio, true, scratch)
    }

    /// Reads everything back and compares.
    pub fn verify(&self, uri: &str, scratch: &Path) -> Result<Report> {
        let mut fio = self.command(uri);
        fio.arg("--verify_only");
        self.start("fio-verify", fio, false, scratch)?.finish()
    }

    fn start(&self, name: &str, mut fio: Command, rate: bool, scratch: &Path) -> Result<Fio> {
        let output = scratch.join(format!("{name}.json"));
        fio.arg(format!("--output={}", output.display()));
        self.jobs(&mut fio, rate);
        fio.current_dir(scratch);
        let process = Process::start(name, fio, scratch).context("`cargo xtask test --only tools` installs fio")?;
        Ok(Fio { process, output })
    }
}

/// Writes `times` the first `bytes` of a volume: in order and by the MiB (`write`), or 4 KiB at random (`randwrite`).
pub fn overwrite(uri: &str, scratch: &Path, name: &str, how: &str, bytes: u64, times: u64) -> Result<Fio> {
    let output = scratch.join(format!("{name}.json"));
    let mut fio = Command::new("fio");
    fio.args(["--output-format=json", "--thread", "--ioengine=nbd", "--iodepth=32", "--norandommap", "--name=job"]);
    let block = if how == "write" { "1m" } else { "4k" };
    fio.arg(format!("--bs={block}")).arg("--randrepeat=0").arg(format!("--rw={how}")).arg(format!("--uri={uri}"));
    fio.arg(format!("--size={bytes}")).arg(format!("--io_size={}", bytes * times));
    fio.arg(format!("--output={}", output.display())).current_dir(scratch);
    let process = Process::start(name, fio, scratch).context("`cargo xtask test --only tools` installs fio")?;
    Ok(Fio { process, output })
}

impl Fio {
    /// Waits for its end.
    ///
    /// # Errors
    /// When it saw any error; what it said is in the text.
    pub fn finish(mut self) -> Result<Report> {
        let status = self.process.wait(Duration::from_secs(300))?;
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        ensure!(status.success(), "fio failed ({status}): {}\n{text}", self.process.log_tail());
        // fio may say other things first.
        let json: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).context("fio prints no JSON")?;
        let mut report = Report::default();
        for job in json["jobs"].as_array().context("fio speaks of no jobs")? {
            ensure!(job["error"] == 0, "fio saw error {}", job["error"]);
            for side in [&job["read"], &job["write"]] {
                let number = |value: &Value| value.as_u64().unwrap_or(0);
                report.ios += number(&side["total_ios"]);
                report.bytes += number(&side["io_bytes"]);
                report.time = report.time.max(Duration::from_millis(number(&side["runtime"])));
                report.longest = report.longest.max(Duration::from_nanos(number(&side["clat_ns"]["max"])));
            }
        }
        ensure!(report.ios > 0, "fio did nothing: {text}");
        Ok(report)
    }
}
