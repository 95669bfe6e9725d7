//! A relay node, asked in every way its clients use: STUN over both families, HTTPS, DERP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::derp::{Identity, Session};
use super::latency::{Latencies, milliseconds};
use super::link::{Dial, Line};
use super::place::{Place, derp_port, stun_port};
use super::trust::{Expected, Trust};
use super::{Family, Fault, ROUNDS, stun};
use crate::resource::Node;

/// Where a relay answers latency checks (Tailscale's netcheck, Coder's agents).
const LATENCY_CHECK: &str = "/derp/latency-check";
/// Time for the answer to a further STUN request.
const STUN_AGAIN: Duration = Duration::from_secs(1);

/// Nothing where there was nothing to ask.
type Timed = Option<Result<Duration, Fault>>;

/// What a visit of a node has found. A way that the map says the node has not is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// STUN over IPv4.
    pub stun_v4: Option<Result<stun::Seen, Fault>>,
    /// STUN over IPv6.
    pub stun_v6: Option<Result<stun::Seen, Fault>>,
    /// A latency check over an open connection, the best of a few.
    pub https: Timed,
    /// A ping in an open DERP session, the best of a few.
    pub derp: Timed,
}

impl Visit {
    /// How fast it answered.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        let timed = |asked: &Timed| asked.as_ref()?.as_ref().ok().copied().map(milliseconds);
        let seen = |asked: &Option<Result<stun::Seen, Fault>>| {
            asked.as_ref()?.as_ref().ok().map(|seen| milliseconds(seen.round_trip))
        };
        Latencies {
            stun_v4: seen(&self.stun_v4),
            stun_v6: seen(&self.stun_v6),
            https: timed(&self.https),
            derp: timed(&self.derp),
        }
    }

    /// What did not answer as the map says it should, and why. Of STUN one family is enough: many
    /// nodes, and many who ask, have no other.
    #[must_use]
    pub fn faults(&self) -> Vec<(&'static str, Fault)> {
        let stun: Vec<_> = [&self.stun_v4, &self.stun_v6].into_iter().flatten().collect();
        let silent = stun.iter().all(|asked| asked.is_err());
        let stun: Vec<_> = stun.into_iter().filter_map(|asked| asked.as_ref().err()).collect();
        // What the node does not is said before what this host cannot.
        let told = stun.iter().find(|fault| !matches!(fault, Fault::NoFamily(_)));
        let stun = told.or(stun.first()).map(|fault| (*fault).clone());
        let fault = |asked: &Timed| asked.as_ref()?.as_ref().err().cloned();
        let faults = (stun.filter(|_| silent), fault(&self.https), fault(&self.derp));
        let one = |what, fault: Option<Fault>| fault.map(|fault| (what, fault));
        let found = match faults {
            // What has one cause is said once.
            (Some(stun), Some(https), Some(derp)) if stun == https && https == derp => {
                [one("STUN, HTTPS and DERP", Some(derp)), None, None]
            }
            (stun, Some(https), Some(derp)) if https == derp => {
                [one("STUN", stun), one("HTTPS and DERP", Some(derp)), None]
            }
            (stun, https, derp) => [one("STUN", stun), one("HTTPS", https), one("DERP", derp)],
        };
        found.into_iter().flatten().collect()
    }

    /// Whether there was anything to ask.
    #[must_use]
    pub fn asked(&self) -> bool {
        let stun = self.stun_v4.is_some() || self.stun_v6.is_some();
        stun || self.https.is_some() || self.derp.is_some()
    }
}

/// Visits `node` once, and logs in as `identity`.
pub async fn visit(node: &Node, trust: &Trust, identity: &Identity) -> Visit {
    let relay = Place::of(node).await;
    let stun = Place::for_stun(node, &relay).await;
    let (stun_v4, stun_v6, (https, derp)) = tokio::join!(
        ask_stun(node, &stun, Family::V4),
        ask_stun(node, &stun, Family::V6),
        ask_relay(node, &relay, trust, identity),
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
    let ask = async {
        let mut client = stun::Client::connect(server).await?;
        let mut best = client.ask().await?;
        for _ in 1..ROUNDS {
            let again = client.ask_once(STUN_AGAIN).await?;
            best = again.filter(|seen| seen.round_trip < best.round_trip).unwrap_or(best);
        }
        Ok(best)
    };
    Some(ask.await)
}

async fn ask_relay(
    node: &Node,
    place: &Place,
    trust: &Trust,
    identity: &Identity,
) -> (Timed, Timed) {
    if derp_port(node).is_none() {
        return (None, None);
    }
    let mut relay = match Relay::connect(node, place, trust).await {
        Ok(relay) => relay,
        // Whoever cannot be dialled for one need not be dialled for the other.
        Err(fault) => return (Some(Err(fault.clone())), Some(Err(fault))),
    };
    let https = async {
        let mut best = relay.check_latency().await?;
        for _ in 1..ROUNDS {
            best = best.min(relay.check_latency().await?);
        }
        Ok(best)
    };
    let https = https.await;
    let derp = async {
        let mut session = relay.log_in(identity).await?;
        let mut best = session.ping().await?;
        for _ in 1..ROUNDS {
            best = best.min(session.ping().await?);
        }
        Ok(best)
    };
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
    pub async fn log_in(&mut self, identity: &Identity) -> Result<Session, Fault> {
        Session::start(self.line.take().await?, identity).await
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
