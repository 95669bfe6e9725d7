//! Where a node of the DERP map is to be found, by Tailscale's rules.
//!
//! `IPv4` and `IPv6` stand in for what DNS says of `HostName`; anything that is no address of its
//! family, such as `none`, turns the family off (`tailcfg.DERPNode`, netcheck's `nodeAddrPort`,
//! derphttp's `shouldDialProto`). The dialled port is `DERPPort` or 443, with ForceHTTP, too.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::{Family, Fault};
use crate::fault::words;
use crate::resource::Node;

/// Time for an answer of the resolver.
pub(super) const RESOLVE: Duration = Duration::from_secs(3);
const STUN_PORT: u16 = 3478;
const DERP_PORT: u16 = 443;

/// A node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    v4: Result<IpAddr, Fault>,
    v6: Result<IpAddr, Fault>,
}

/// What a node's field says of a family.
enum Said {
    Address(IpAddr),
    Off,
    AskDns,
}

fn said(text: &str, family: Family) -> Said {
    match text.parse::<IpAddr>() {
        Ok(address) if is_of(address, family) => Said::Address(address),
        Err(_) if text.is_empty() => Said::AskDns,
        Ok(_) | Err(_) => Said::Off,
    }
}

fn is_of(address: IpAddr, family: Family) -> bool {
    address.is_ipv4() == (family == Family::V4)
}

impl Place {
    /// Where `node` is, asking DNS if that is needed.
    pub async fn of(node: &Node) -> Self {
        Self::from_fields(&node.ipv4, &node.ipv6, &node.host_name).await
    }

    /// Where STUN of `node` is asked: STUNTestIP is there for that alone.
    pub(super) async fn for_stun(node: &Node, relay: &Self) -> Self {
        match node.stun_test_ip.as_str() {
            "" => relay.clone(),
            test => Self::from_fields(test, test, "").await,
        }
    }

    async fn from_fields(v4: &str, v6: &str, host: &str) -> Self {
        let [v4, v6] = [said(v4, Family::V4), said(v6, Family::V6)];
        let found = match (&v4, &v6) {
            (Said::AskDns, _) | (_, Said::AskDns) => resolve(host, 0).await,
            (Said::Address(_) | Said::Off, Said::Address(_) | Said::Off) => Ok(Vec::new()),
        };
        let one = |said, family| match (said, &found) {
            (Said::Address(address), _) => Ok(address),
            (Said::Off, _) => Err(Fault::failed(format_args!("the map turns {family} off"))),
            (Said::AskDns, Err(fault)) => Err(fault.clone()),
            (Said::AskDns, Ok(found)) => {
                let mut found = found.iter().map(SocketAddr::ip);
                let none = || Fault::failed(format_args!("{host} has no {family} address"));
                found.find(|address| is_of(*address, family)).ok_or_else(none)
            }
        };
        Self { v4: one(v4, Family::V4), v6: one(v6, Family::V6) }
    }

    /// The node's address of `family`.
    pub(super) fn address(&self, family: Family) -> Option<IpAddr> {
        self.in_family(family).as_ref().ok().copied()
    }

    /// Every address, in the order in which they are tried.
    pub(super) fn addresses(&self, port: u16) -> Result<Vec<SocketAddr>, Fault> {
        let known = [Family::V4, Family::V6].into_iter().filter_map(|family| self.address(family));
        let known: Vec<_> = known.map(|address| SocketAddr::new(address, port)).collect();
        match known.is_empty() {
            true => Err(self.why_nowhere()),
            false => Ok(known),
        }
    }

    /// Why there is no address at all.
    pub(super) fn why_nowhere(&self) -> Fault {
        let [v4, v6] = [&self.v4, &self.v6].map(|place| place.as_ref().err());
        match (v4, v6) {
            (Some(v4), Some(v6)) if v4 != v6 => Fault::failed(format_args!("{v4}, and {v6}")),
            (Some(fault), _) | (_, Some(fault)) => fault.clone(),
            (None, None) => Fault::failed("there are addresses"),
        }
    }

    fn in_family(&self, family: Family) -> &Result<IpAddr, Fault> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The port that answers STUN, if one does.
pub(super) fn stun_port(node: &Node) -> Option<u16> {
    match u16::try_from(node.stun_port) {
        Ok(0) => Some(STUN_PORT),
        Ok(port) => Some(port),
        Err(_) => None,
    }
}

/// The port that serves DERP and its latency check, if one does.
pub(super) fn derp_port(node: &Node) -> Option<u16> {
    match (node.stun_only, node.derp_port) {
        (true, _) => None,
        (false, 0) => Some(DERP_PORT),
        (false, port) => Some(port),
    }
}

/// Lookups under way, those included for which nobody waits any more: the system's resolver goes on
/// for half a minute where nobody answers it, each on a thread of those that others need, too.
static LOOKUPS: Semaphore = Semaphore::const_new(64);

/// The addresses of `host`, with `port`.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if let Ok(address) = bare.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let look = async {
        let place = LOOKUPS.acquire().await;
        let found = spawn_blocking(move || {
            let _place = place;
            (bare, port).to_socket_addrs().map(Vec::from_iter)
        });
        found.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    };
    match tokio::time::timeout(RESOLVE, look).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            let text = words(&error);
            let why = text.trim_start_matches("failed to lookup address information: ");
            Err(Fault::failed(format_args!("DNS: {host}: {why}")))
        }
        Err(_) => Err(Fault::failed(format_args!("DNS: {host}: no answer in {RESOLVE:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn place(ipv4: &str, ipv6: &str, host_name: &str) -> Place {
        let [ipv4, ipv6, host_name] = [ipv4, ipv6, host_name].map(str::to_owned);
        Place::of(&Node { ipv4, ipv6, host_name, ..Node::default() }).await
    }

    #[tokio::test]
    async fn fields_of_the_node_go_over_dns_and_turn_families_off() {
        let both = place("192.0.2.1", "2001:db8::1", "nowhere.invalid").await;
        let expected = ["192.0.2.1:443", "[2001:db8::1]:443"];
        let expected = expected.map(|text| text.parse().expect("an address"));
        assert_eq!(both.addresses(443).expect("both are given"), expected);
        let one = place("none", "", "2001:db8::2").await;
        assert_eq!(one.addresses(1).expect("the host is an address").len(), 1);
        assert_eq!(one.address(Family::V4), None);
        let none = place("none", "192.0.2.1", "127.0.0.1").await;
        let why = none.addresses(1).expect_err("both are off").to_string();
        assert_eq!(why, "the map turns IPv4 off, and the map turns IPv6 off");
        let wrong = place("", "none", "::1").await.addresses(1).expect_err("of no use");
        assert!(wrong.to_string().starts_with("::1 has no IPv4 address"), "{wrong}");
    }

    #[tokio::test]
    async fn the_test_address_is_for_stun_alone() {
        let mut node = Node { host_name: "127.0.0.1".into(), ..Node::default() };
        node.stun_test_ip = "192.0.2.7".into();
        let relay = Place::of(&node).await;
        let stun = Place::for_stun(&node, &relay).await;
        assert_eq!(stun.address(Family::V4), "192.0.2.7".parse().ok());
        assert_eq!(stun.address(Family::V6), None);
        assert_eq!(relay.address(Family::V4), "127.0.0.1".parse().ok());
    }

    #[test]
    fn ports_left_out_are_the_usual_ones() {
        let mut node = Node::default();
        assert_eq!((stun_port(&node), derp_port(&node)), (Some(3478), Some(443)));
        (node.stun_port, node.derp_port) = (-1, 8443);
        assert_eq!((stun_port(&node), derp_port(&node)), (None, Some(8443)));
        node.stun_only = true;
        assert_eq!(derp_port(&node), None);
    }
}
