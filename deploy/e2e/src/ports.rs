//! TCP ports that nobody uses.

use anyhow::{Result, bail};
use rand::Rng as _;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Where they are taken from: not where the kernel takes a port for who connects to another (`ip_local_port_range`, from 32,768
/// on). One of those could be in use by the time that a server wants it, above all by a client that tries to reach that server
/// again and again while it is down, and may even reach itself. Nor are Kubernetes' node ports here.
const PORTS: Range<u16> = 10_000..30_000;
/// How many are tried.
const TRIES: usize = 1_000;

static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of the loopback address that was free a moment ago and that this process has not handed out before.
pub fn free() -> Result<u16> {
    // The set stays right even if a thread died holding it: an insertion cannot be half done.
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIES {
        let port = rand::rng().random_range(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && handed_out.insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1: {TRIES} of {PORTS:?} are in use")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports: BTreeSet<u16> = (0..200).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 200);
    }
}
