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
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
