//! A relay node, asked in every way its clients use: STUN over both families, HTTPS, DERP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::derp::Session;
use super::link::{Dial, Line};
use super::place::{Place, derp_port, stun_port};
use super::trust::{Expected, Trust};
use super::{Family, Fault, stun};
use crate::resource::Node;

/// Where a relay answers latency checks (Tailscale's netcheck, Coder's agents).
const LATENCY_CHECK: &str = "/derp/latency-check";

/// What a visit of a node has found. A way that the map says the node has not is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// STUN over IPv4.
    pub stun_v4: Option<Result<stun::Seen, Fault>>,
    /// STUN over IPv6.
    pub stun_v6: Option<Result<stun::Seen, Fault>>,
    /// A latency check over an open connection.
    pub https: Option<Result<Duration, Fault>>,
    /// A ping in an open DERP session.
    pub derp: Option<Result<Duration, Fault>>,
}

/// Visits `node` once.
pub async fn visit(node: &Node, trust: &Trust) -> Visit {
    let relay = Place::of(node).await;
    let stun = Place::for_stun(node, &relay).await;
    let (stun_v4, stun_v6, (https, derp)) = tokio::join!(
        ask_stun(node, &stun, Family::V4),
        ask_stun(node, &stun, Family::V6),
        ask_relay(node, &relay, trust),
    );
    // A node with a STUN port that is nowhere at all has one fault, not none.
    let nowhere = || Some(Err(stun.why_nowhere()));
    let stun_v4 = match (stun_port(node), &stun_v4, &stun_v6) {
        (Some(_), None, None) => nowhere(),
        _ => stun_v4,
    };
    Visit { stun_v4, stun_v6, https, derp }
}

async fn ask_stun(node: &Node, place: &Place, family: Family) -> Option<Result<stun::Seen, Fault>> {
    let server = SocketAddr::new(place.address(family)?, stun_port(node)?);
    let ask = async { stun::Client::connect(server).await?.ask().await };
    Some(ask.await)
}

type Timed = Option<Result<Duration, Fault>>;

async fn ask_relay(node: &Node, place: &Place, trust: &Trust) -> (Timed, Timed) {
    if derp_port(node).is_none() {
        return (None, None);
    }
    let mut relay = match Relay::connect(node, place, trust).await {
        Ok(relay) => relay,
        // Whoever cannot be dialled for one need not be dialled for the other.
        Err(fault) => return (Some(Err(fault.clone())), Some(Err(fault))),
    };
    let https = relay.check_latency().await;
    let derp = async { relay.log_in().await?.ping().await };
    (Some(https), Some(derp.await))
}

/// The relaying half of a node.
#[derive(Debug)]
pub struct Relay {
    line: Line,
}

impl Relay {
    /// Connects to the relay of `node`.
    ///
    /// # Errors
    /// When it is not to be reached, or shows another certificate than the map says.
    pub(super) async fn connect(node: &Node, place: &Place, trust: &Trust) -> Result<Self, Fault> {
        Ok(Self { line: Line::open(dial(node, place, trust).await?).await? })
    }

    /// How long a latency check takes.
    ///
    /// # Errors
    /// When nothing, or no success, is answered.
    pub async fn check_latency(&mut self) -> Result<Duration, Fault> {
        let answer = self.line.get(LATENCY_CHECK).await?;
        match answer.status.is_success() {
            true => Ok(answer.round_trip),
            false => Err(Fault::failed(format_args!("{LATENCY_CHECK}: {}", answer.status))),
        }
    }

    /// Logs in to DERP, over the same connection if it is still open.
    ///
    /// # Errors
    /// When the relay does not upgrade, or does not take the login.
    pub async fn log_in(&mut self) -> Result<Session, Fault> {
        Session::start(self.line.take().await?).await
    }
}

/// A relay to talk to for longer than a visit.
///
/// # Errors
/// When it is not to be reached, or `node` relays nothing.
pub async fn connect(node: &Node, trust: &Trust) -> Result<Relay, Fault> {
    Relay::connect(node, &Place::of(node).await, trust).await
}

/// Where STUN of `node` is asked over each family that it has.
pub async fn stun_servers(node: &Node) -> Vec<SocketAddr> {
    let place = Place::for_stun(node, &Place::of(node).await).await;
    let port = stun_port(node);
    port.and_then(|port| place.addresses(port).ok()).unwrap_or_default()
}

async fn dial(node: &Node, place: &Place, trust: &Trust) -> Result<Dial, Fault> {
    let none = || Fault::failed("the map says that it relays nothing");
    let port = derp_port(node).ok_or_else(none)?;
    let addresses = place.addresses(port)?;
    let host = format!("{}:{port}", bracketed(&node.host_name));
    if node.force_http {
        return Ok(Dial { addresses, host, tls: None });
    }
    let name = ServerName::try_from(node.host_name.clone())
        .map_err(|_| Fault::failed(format_args!("HostName: {}: is no host", node.host_name)))?;
    let settings = trust.settings(Expected::of(node)?).await?;
    Ok(Dial { addresses, host, tls: Some((Arc::clone(&settings), name)) })
}

/// A host as URLs have it.
fn bracketed(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(_) => format!("[{host}]"),
        Err(_) => host.to_owned(),
    }
}
