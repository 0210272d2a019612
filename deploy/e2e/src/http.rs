//! The least of HTTP: what a program says of itself on the loopback address.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What is at `path` of the server at `port`.
///
/// # Errors
/// When nobody listens, or the answer is not 200.
pub fn get(port: u16, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("nobody at port {port}"))?;
    stream.set_read_timeout(Some(ANSWER)).context("cannot limit an answer")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("cannot read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}: {body}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// The sum of a metric of the server at `port` over all its labels.
///
/// # Errors
/// When there is no answer, or no such metric in it.
pub fn metric(port: u16, name: &str) -> Result<f64> {
    sum_of(&get(port, "/metrics")?, name).with_context(|| format!("there is no metric {name}"))
}

/// The sum over all labels of `name` in Prometheus's text form; `None` when it is not there.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let of_line = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.split_once("} ")?.1 } else { rest.strip_prefix(' ')? };
        rest.split(' ').next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(of_line).reduce(|sum, value| sum + value)
}
