//! Logs: to standard error, as text for people or JSON for machines.

use super::config::Logging;
use std::io::{IsTerminal as _, stderr};
use tracing_subscriber::EnvFilter;

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{filter:?} is not a log filter: {source}. Write a level, or target=level pairs such as info,torus_agent=debug"
)]
pub struct BadFilter {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Begins to log. Call it once.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(logging: &Logging) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(&logging.filter);
    let filter = filter.map_err(|source| BadFilter { filter: logging.filter.clone(), source })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    if logging.json {
        log.json().flatten_event(true).init();
    } else {
        log.with_ansi(stderr().is_terminal()).init();
    }
    Ok(())
}
