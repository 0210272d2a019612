//! `torusctl version`.

use crate::failure::Failure;
use crate::output::{Printer, Record, Style};
use serde::Serialize;
use torus_core::meta::docs;

#[derive(Serialize)]
struct Versions {
    torusctl: &'static str,
    metadata_format: u32,
}

impl Record for Versions {
    const COLUMNS: &'static [&'static str] = &["TORUSCTL", "METADATA FORMAT"];

    fn cells(&self, _: Style) -> Vec<String> {
        vec![self.torusctl.into(), self.metadata_format.to_string()]
    }
}

/// Prints the program's version and the newest format of metadata it can work with.
pub fn run(printer: Printer) -> Result<(), Failure> {
    printer.item(&Versions { torusctl: env!("CARGO_PKG_VERSION"), metadata_format: docs::FORMAT })
}
