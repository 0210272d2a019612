//! Answers, as a table for people or as JSON, YAML or CSV for programs.
//!
//! A record is one serializable struct; its table row is made from the same struct, so the forms cannot disagree.
//! Sizes are rounded in tables only: programs get bytes.

use crate::failure::Failure;
use crate::units::Size;
use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, Write};

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
    /// A header line and a line for each record.
    Csv,
}

/// How cells are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// Sizes as plain bytes.
    exact: bool,
    /// Sizes in powers of 1000.
    si: bool,
}

impl Style {
    /// A size in this style.
    pub fn size(self, bytes: u64) -> String {
        if self.exact { bytes.to_string() } else { Size(bytes).shown(self.si) }
    }
}

/// Something that a list has many of.
pub trait Record: Serialize {
    /// Column names, in capitals.
    const COLUMNS: &'static [&'static str];

    /// One cell for each column.
    fn cells(&self, style: Style) -> Vec<String>;
}

/// Prints answers in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Format,
    si: bool,
}

impl Printer {
    /// A printer of `format`; `si`: tables show powers of 1000.
    pub fn new(format: Format, si: bool) -> Self {
        Self { format, si }
    }

    /// A size as sentences and tables show it.
    pub fn size(self, bytes: u64) -> String {
        Size(bytes).shown(self.si)
    }

    /// Prints records, one to a line.
    pub fn list<R: Record>(self, records: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.print(&table(R::COLUMNS, &self.rows(records))),
            Format::Csv => self.print(&csv(R::COLUMNS, &self.rows(records))),
            Format::Json | Format::Yaml => self.document(&records),
        }
    }

    /// Prints records under a title: for programs the whole `document`, of which they are part.
    pub fn titled<T: Serialize, R: Record>(self, title: &str, document: &T, records: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.print(&format!("{title}{}", table(R::COLUMNS, &self.rows(records)))),
            Format::Csv => self.list(records),
            Format::Json | Format::Yaml => self.document(document),
        }
    }

    /// Prints one record: for people, a line for each of its columns.
    pub fn item<R: Record>(self, record: &R) -> Result<(), Failure> {
        match self.format {
            Format::Table => {
                let width = R::COLUMNS.iter().map(|column| column.len()).max().unwrap_or(0) + 1;
                let rows = self.rows(std::slice::from_ref(record));
                let lines = R::COLUMNS.iter().zip(rows.iter().flatten()).map(|(column, cell)| {
                    format!("{:<width$} {cell}", format!("{}:", column.to_lowercase())).trim_end().to_owned() + "\n"
                });
                self.print(&lines.collect::<String>())
            }
            Format::Csv => self.print(&csv(R::COLUMNS, &self.rows(std::slice::from_ref(record)))),
            Format::Json | Format::Yaml => self.document(record),
        }
    }

    /// Says what was done: a sentence for people, the document for programs.
    pub fn done<T: Serialize>(self, sentence: &str, document: &T) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Csv => self.print(&format!("{sentence}\n")),
            Format::Json | Format::Yaml => self.document(document),
        }
    }

    /// Says something on the way, to people only.
    pub fn remark(self, line: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Csv => self.print(&format!("{line}\n")),
            Format::Json | Format::Yaml => Ok(()),
        }
    }

    fn rows<R: Record>(self, records: &[R]) -> Vec<Vec<String>> {
        let style = Style { exact: self.format == Format::Csv, si: self.si };
        records.iter().map(|record| record.cells(style)).collect()
    }

    fn document<T: Serialize>(self, document: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Yaml => serde_yaml::to_string(document).map_err(|e| Failure::because("cannot write YAML", &e))?,
            _ => serde_json::to_string_pretty(document).map_err(|e| Failure::because("cannot write JSON", &e))? + "\n",
        };
        self.print(&text)
    }

    fn print(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::print(&error))
    }
}

/// Columns, two spaces apart, as wide as their widest cell.
fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| lines.iter().filter_map(|line| line.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// RFC 4180, with bare line feeds.
fn csv(columns: &[&str], rows: &[Vec<String>]) -> String {
    let quoted = |cell: &str| {
        if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.into() }
    };
    let header = columns.iter().map(|column| column.to_lowercase().replace(' ', "_")).collect::<Vec<_>>().join(",");
    let lines = rows.iter().map(|row| row.iter().map(|cell| quoted(cell)).collect::<Vec<String>>().join(","));
    std::iter::once(header).chain(lines).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = vec![vec!["db-0".into(), "20.0 GiB".into()], vec!["a-long-name".into(), "1 B".into()]];
        assert_eq!(table(&["NAME", "SIZE"], &rows), "NAME         SIZE\ndb-0         20.0 GiB\na-long-name  1 B\n");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(table(&["NAME", "SIZE"], &[]), "NAME  SIZE\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let rows = vec![vec!["a,b".into(), "say \"x\"".into()]];
        assert_eq!(csv(&["NAME", "ACK MODE"], &rows), "name,ack_mode\n\"a,b\",\"say \"\"x\"\"\"\n");
    }
}
