//! The DERP map node by which clients find this relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use super::HostName;

/// Region of a node that no operator has numbered yet; 900 to 999 are kept for custom regions.
const CUSTOM_REGION_ID: u16 = 900;
/// The ports a client uses when a node names none.
const DERP_PORT_DEFAULT: u16 = 443;
const STUN_PORT_DEFAULT: u16 = 3478;
/// The port of captive-portal checks.
const HTTP_PORT: u16 = 80;
/// The port number by which a node says that it serves no STUN.
const STUN_OFF: i32 = -1;

/// The addresses this relay listens on, as bound.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// DERP over TLS.
    pub derp: Vec<SocketAddr>,
    /// STUN; empty when off.
    pub stun: Vec<SocketAddr>,
    /// Plain HTTP; empty when off.
    pub http: Vec<SocketAddr>,
}

/// A node of Tailscale's DERP map (`tailcfg.DERPNode`); fields at their default are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DerpNode {
    /// Name, unique in the map.
    pub name: String,
    /// Region the node belongs to.
    #[serde(rename = "RegionID")]
    pub region_id: u16,
    /// Host name that clients dial.
    pub host_name: String,
    /// Pin of a self-signed certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_name: Option<String>,
    /// Address to dial without DNS.
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Address to dial without DNS.
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// UDP port of STUN; 0 stands for 3478, -1 for none.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    /// TCP port of DERP; 0 stands for 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_zero")]
    pub derp_port: i32,
    /// Whether port 80 answers captive-portal checks.
    #[serde(rename = "CanPort80", skip_serializing_if = "std::ops::Not::not")]
    pub can_port80: bool,
}

impl DerpNode {
    /// The node of a relay called `hostname` that listens as `reach` says and presents `pin`.
    #[must_use]
    pub fn new(hostname: &HostName, reach: &Reach, pin: Option<String>) -> Self {
        let port = |listen: &[SocketAddr]| listen.first().map(|address| i32::from(address.port()));
        let unless = |default: u16, port: i32| if port == i32::from(default) { 0 } else { port };
        let (ipv4, ipv6) = addresses(hostname, &reach.derp);
        Self {
            name: "custom".into(),
            region_id: CUSTOM_REGION_ID,
            host_name: hostname.to_string(),
            cert_name: pin,
            ipv4,
            ipv6,
            stun_port: port(&reach.stun).map_or(STUN_OFF, |port| unless(STUN_PORT_DEFAULT, port)),
            derp_port: port(&reach.derp).map_or(0, |port| unless(DERP_PORT_DEFAULT, port)),
            can_port80: reach.http.iter().any(|address| address.port() == HTTP_PORT),
        }
    }

    /// One line of JSON, as a map holds it.
    #[must_use]
    pub fn json(&self) -> String {
        // Strings and numbers always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The addresses that a name which is one stands for. A loopback relay has both families if it
/// listens on both, because probers ask each of them.
fn addresses(hostname: &HostName, listen: &[SocketAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let six = listen.iter().any(|address| address.ip().is_unspecified() && address.is_ipv6());
    let four =
        six || listen.iter().any(|address| address.ip().is_unspecified() && address.is_ipv4());
    match hostname.ip() {
        Some(IpAddr::V4(address)) => {
            (Some(address), (address.is_loopback() && six).then_some(Ipv6Addr::LOCALHOST))
        }
        Some(IpAddr::V6(address)) => {
            ((address.is_loopback() && four).then_some(Ipv4Addr::LOCALHOST), Some(address))
        }
        None => (None, None),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(port: &i32) -> bool {
    *port == 0
}
