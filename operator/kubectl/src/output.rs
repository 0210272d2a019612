//! Answers, as a table for people or as JSON or YAML for programs, from the same records.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;

/// The forms an answer can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Something that a list has many of.
pub trait Record: Serialize {
    /// Column names, in capitals.
    const COLUMNS: &'static [&'static str];

    /// One cell for each column.
    fn cells(&self) -> Vec<String>;
}

/// Prints records.
pub fn list<R: Record>(records: &[R], format: Format) -> Result<()> {
    match format {
        Format::Table => print(&table(R::COLUMNS, &records.iter().map(Record::cells).collect::<Vec<_>>())),
        Format::Json | Format::Yaml => document(&records, format),
    }
}

/// Prints one document, in YAML where that is asked for.
pub fn document(document: &impl Serialize, format: Format) -> Result<()> {
    match format {
        Format::Yaml => print(&serde_yaml::to_string(document).context("cannot write YAML")?),
        Format::Table | Format::Json => {
            print(&format!("{}\n", serde_json::to_string_pretty(document).context("cannot write JSON")?))
        }
    }
}

/// Prints text. A reader that went away is no failure.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// Columns as wide as their widest cell; the last one as it is.
fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let width = |at: usize| {
        std::iter::once(&head).chain(rows).map(|row| row.get(at).map_or(0, |cell| cell.chars().count())).max()
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(at, cell)| format!("{cell:<0$}", width(at).unwrap_or(0)));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    std::iter::once(&head).chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = [vec!["a".into(), "long".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     long\nlong\n");
    }
}
