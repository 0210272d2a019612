//! TCP ports that nobody uses.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of the loopback address that was free a moment ago and that this process has not handed out before.
pub fn free() -> Result<u16> {
    // The set stays right even if a thread died holding it: an insertion cannot be half done.
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    // Listeners are held until one is new, so that the kernel cannot offer the same one again and again.
    let mut tried = Vec::new();
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot find a free port on 127.0.0.1")?;
        let port = listener.local_addr().context("cannot tell the port of a listener")?.port();
        if handed_out.insert(port) {
            return Ok(port);
        }
        tried.push(listener);
    }
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
