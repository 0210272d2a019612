//! A bridge that nodes hang on, with addresses that nobody else on this machine has.
//!
//! All addresses of a run are in one `10.N.0.0/16`: nodes in `10.N.0.0/24` with this machine as `.254`, the pods of node *i* in
//! `10.N.i.0/24`, services in `10.N.240.0/20`.

use super::control_plane::Place;
use super::run::{self, Run};
use super::shell::{must, said};
use anyhow::{Context, Result};
use std::net::Ipv4Addr;

/// Ranges are looked for from here to there.
const SECOND: std::ops::Range<u8> = 64..128;

/// The network of a run.
#[derive(Clone, Debug)]
pub struct Network {
    bridge: String,
    second: u8,
}

impl Network {
    /// Makes the bridge. It goes with the run.
    ///
    /// # Errors
    /// Without root, or when all ranges are taken.
    pub fn make(run: &Run) -> Result<Self> {
        let _alone = run::alone("network")?;
        let taken = said("ip", ["-4", "-o", "address"])? + &said("ip", ["-4", "route"])?;
        let free = SECOND.into_iter().find(|second| !is_in_use(&taken, *second));
        let second = free.context("all of 10.64.0.0/10 is in use here: remove what uses it")?;
        let network = Self { bridge: run.name().to_owned(), second };
        let address = format!("{}/24", network.host());
        must("ip", ["link", "add", &network.bridge, "type", "bridge"])?;
        must("ip", ["address", "add", &address, "dev", &network.bridge])?;
        must("ip", ["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// The address of this machine.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.second, 0, 254)
    }

    /// The address of a node. The first is 1.
    #[must_use]
    pub fn node(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.second, 0, node)
    }

    /// The addresses of a node's pods.
    #[must_use]
    pub fn pods(&self, node: u8) -> String {
        format!("10.{}.{node}.0/24", self.second)
    }

    /// The addresses of nodes and pods, without those of services.
    #[must_use]
    pub fn cluster(&self) -> String {
        format!("10.{}.0.0/17", self.second)
    }

    /// Where its control plane is.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            address: self.host(),
            services: format!("10.{}.240.0/20", self.second),
            first_service: Ipv4Addr::new(10, self.second, 240, 1),
            has_nodes: true,
        }
    }

    /// Hangs a new namespace, that of process `pid`, on the bridge as a node, and lets all other nodes' pods and its own know the
    /// way. `nodes`: how many there will be.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, node: u8, nodes: u8, pid: u32) -> Result<()> {
        let outer = format!("{}-{node}", self.bridge);
        let pid = pid.to_string();
        must("ip", ["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
        must("ip", ["link", "set", &outer, "master", &self.bridge, "up"])?;
        let inside = |args: &[&str]| must("nsenter", ["--target", &pid, "--net", "ip"].iter().chain(args));
        inside(&["link", "set", "lo", "up"])?;
        inside(&["address", "add", &format!("{}/24", self.node(node)), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "default", "via", &self.host().to_string()])?;
        for other in (1..=nodes).filter(|other| *other != node) {
            inside(&["route", "add", &self.pods(other), "via", &self.node(other).to_string()])?;
        }
        // Pods reach the apiserver, which answers to their own addresses.
        must("ip", ["route", "replace", &self.pods(node), "via", &self.node(node).to_string()])
    }

    /// Cuts a node off, or connects it again.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn cut(&self, node: u8, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        must("ip", ["link", "set", &format!("{}-{node}", self.bridge), state])
    }
}

/// Whether `ip` has told of an address in `10.second.0.0/16`.
fn is_in_use(told: &str, second: u8) -> bool {
    let start = format!("10.{second}.");
    told.split_ascii_whitespace().any(|word| word.starts_with(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_use_are_seen() {
        let told = "7: tk1    inet 10.65.0.254/24 scope global tk1\n10.66.1.0/24 via 10.66.0.1 dev x";
        assert!(is_in_use(told, 65) && is_in_use(told, 66));
        assert!(!is_in_use(told, 6) && !is_in_use(told, 67));
    }

    #[test]
    fn addresses_are_apart() {
        let network = Network { bridge: "b".into(), second: 70 };
        assert_eq!(network.pods(3), "10.70.3.0/24");
        assert_eq!(network.place().first_service.to_string(), "10.70.240.1");
        assert_eq!(
            (network.host().to_string(), network.node(2).to_string()),
            ("10.70.0.254".into(), "10.70.0.2".into())
        );
    }
}
