//! `control ping`: one target, several times, over connections that stay open.
//!
//! A node is asked by DERP, STUN and a latency check in turn; a region is its first node that relays,
//! as for clients; a satellite or URL has the latency check alone.

use std::time::Duration;

use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::client::Client;
use super::netcheck::{map, serves};
use super::output::{Output, print_on, say_authorities};
use super::requirements::Requirements;
use crate::derp_map::DerpMap;
use crate::fault::{ExitCode, OperatorFault, harmless};
use crate::probe::derp::Session;
use crate::probe::latency::{Latencies, milliseconds};
use crate::probe::node::{self, Relay};
use crate::probe::satellite::Satellite;
use crate::probe::{Fault, Identity, Trust, stun};
use crate::resource::{Node, Resource, Row, Satellite as Registered};

/// Rounds, at most.
pub(super) const ROUNDS_MAX: u32 = 10_000;
/// Between two rounds.
const EVERY: Duration = Duration::from_millis(200);
/// Time for a STUN answer; later it is lost.
const STUN: Duration = Duration::from_secs(1);

/// Whom to ping.
enum Target {
    Node(Box<Node>),
    Url(String),
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    target: String,
    rounds: Vec<Round>,
    requirements: Requirements,
}

#[derive(Debug, Default, Serialize)]
struct Round {
    latency_ms: Latencies,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Carries out `control ping`.
pub(super) async fn run(
    word: &str,
    count: u32,
    named: Option<&str>,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let (name, mut pinger) = match find(word, named, client).await? {
        Target::Node(node) => (node.name.clone(), Pinger::of_node(*node)),
        Target::Url(url) => (word.to_owned(), Pinger::of_url(url)),
    };
    let mut ticks = tokio::time::interval(EVERY);
    // Rounds that were late are not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rounds = Vec::new();
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    for _ in 0..count {
        let round = async {
            ticks.tick().await;
            pinger.round().await
        };
        // Whoever has seen enough gets the summary of what there was.
        let round = tokio::select! {
            _ = &mut interrupt => break,
            round = round => round,
        };
        let is_read = output.is_json() || print_on(&line(&name, &round, output))?;
        rounds.push(round);
        if !is_read {
            break;
        }
    }
    let typical = typical(&rounds);
    let requirements = Requirements::new(typical, pinger.sent, pinger.lost);
    let report = Report { target: name, rounds, requirements };
    output.show_painted(&report, &format!("\n{}", report.requirements.text(output)))?;
    say_authorities(report.rounds.iter().filter_map(|round| round.why.as_ref()));
    match pinger.serves {
        Some(false) => Err(OperatorFault::failed("the relay cannot be used")),
        Some(true) | None => report.requirements.judge(),
    }
}

/// The round trip in the middle, as a single slow one says little, of the question that users ask most
/// of those that were answered at all.
fn typical(rounds: &[Round]) -> Option<f64> {
    let all = |question: fn(&Latencies) -> Option<f64>| -> Vec<f64> {
        rounds.iter().filter_map(|round| question(&round.latency_ms)).collect()
    };
    let answered = [all(|times| times.derp), all(|times| times.https), all(Latencies::stun)];
    let mut times = answered.into_iter().find(|times| !times.is_empty())?;
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

fn line(name: &str, round: &Round, output: &Output) -> String {
    let Latencies { https, derp, .. } = round.latency_ms;
    let timed = [("DERP", derp), ("STUN", round.latency_ms.stun()), ("HTTPS", https)];
    let timed =
        timed.into_iter().filter_map(|(what, ms)| Some(format!("{what} {}", output.latency(ms?))));
    let why = round.why.as_deref().map(|why| harmless(why, &[]));
    let parts = timed.chain(why).collect::<Vec<_>>().join("  ");
    format!("{name}  {parts}")
}

/// What `word` names: a URL, else a node, a region by code or id, or a satellite, in this order.
async fn find(word: &str, named: Option<&str>, client: &Client) -> Result<Target, OperatorFault> {
    if word.starts_with("http://") || word.starts_with("https://") {
        return Ok(Target::Url(word.to_owned()));
    }
    if let Some(node) = node_of(&map(named, client).await?, word)? {
        return Ok(Target::Node(Box::new(node)));
    }
    let none = || {
        let why = format!("no node, region or satellite is called {word:?}");
        OperatorFault::new(ExitCode::NotFound, why)
    };
    if named.is_some() {
        return Err(none());
    }
    let found = client.get::<Row<Registered>>(&[Registered::PLURAL, word], &[]).await;
    let satellite = match found {
        Ok(row) => row.resource,
        Err(fault) if fault.code() == ExitCode::NotFound => return Err(none()),
        Err(fault) => return Err(fault),
    };
    match satellite.access_url.is_empty() {
        true => Err(OperatorFault::failed(format!("satellite {word} has no access URL"))),
        false => Ok(Target::Url(satellite.access_url)),
    }
}

fn node_of(map: &DerpMap, word: &str) -> Result<Option<Node>, OperatorFault> {
    let mut nodes = map.regions.values().flat_map(|region| &region.nodes);
    if let Some(node) = nodes.find(|node| node.name == word) {
        return Ok(Some(node.clone()));
    }
    let mut regions = map.regions.values();
    let region =
        regions.find(|of| of.region.name == word || of.region.region_id.to_string() == word);
    let Some(region) = region else { return Ok(None) };
    let relay = region.nodes.iter().find(|node| !node.stun_only);
    let none = || OperatorFault::failed(format!("region {word} has no node that relays"));
    relay.cloned().map(Some).ok_or_else(none)
}

/// Asks one target again and again. What fails is opened anew in the next round.
struct Pinger {
    target: Open,
    trust: Trust,
    /// Questions that count for the loss: STUN where there is STUN, else rounds.
    sent: u32,
    lost: u32,
    /// Whether a relay has let somebody in, if only clients that it knows; `None` where none is asked.
    serves: Option<bool>,
}

enum Open {
    Node { node: Box<Node>, talk: Box<Talk>, stun: Option<stun::Client> },
    Url { url: String, satellite: Option<Satellite> },
}

/// What is open to a relay.
#[derive(Default)]
struct Talk {
    relay: Option<Relay>,
    session: Option<Session>,
}

impl Pinger {
    fn of_node(node: Node) -> Self {
        Self::of(Open::Node { node: Box::new(node), talk: Box::default(), stun: None })
    }

    fn of_url(url: String) -> Self {
        Self::of(Open::Url { url, satellite: None })
    }

    fn of(target: Open) -> Self {
        let serves = match &target {
            Open::Node { node, .. } if !node.stun_only => Some(false),
            Open::Node { .. } | Open::Url { .. } => None,
        };
        Self { target, trust: Trust::default(), sent: 0, lost: 0, serves }
    }

    async fn round(&mut self) -> Round {
        let mut round = Round::default();
        let mut faults = Vec::new();
        let trust = &self.trust;
        let asked = match &mut self.target {
            Open::Url { url, satellite } => {
                let https = check(url, satellite, trust).await;
                round.latency_ms.https = timed("HTTPS", https, &mut faults);
                round.latency_ms.https.is_some()
            }
            Open::Node { node, talk: open, stun } => {
                let mut answered = true;
                if !node.stun_only {
                    let [https, derp] = talk(node, open, trust).await;
                    if serves(&derp) {
                        self.serves = Some(true);
                    }
                    round.latency_ms.https = timed("HTTPS", https, &mut faults);
                    round.latency_ms.derp = timed("DERP", derp, &mut faults);
                    answered = round.latency_ms.derp.is_some();
                }
                match ask(node, stun).await {
                    Some(seen) => {
                        let v6 = matches!(&seen, Ok(seen) if seen.address.is_ipv6());
                        let seen = timed("STUN", seen.map(|seen| seen.round_trip), &mut faults);
                        let slot = &mut round.latency_ms;
                        *(if v6 { &mut slot.stun_v6 } else { &mut slot.stun_v4 }) = seen;
                        seen.is_some()
                    }
                    None => answered,
                }
            }
        };
        self.sent += 1;
        self.lost += u32::from(!asked);
        round.why = (!faults.is_empty()).then(|| faults.join("; "));
        round
    }
}

fn timed(what: &str, asked: Result<Duration, Fault>, faults: &mut Vec<String>) -> Option<f64> {
    match asked {
        Ok(time) => Some(milliseconds(time)),
        Err(fault) => {
            faults.push(format!("{what}: {fault}"));
            None
        }
    }
}

async fn check(
    url: &str,
    satellite: &mut Option<Satellite>,
    trust: &Trust,
) -> Result<Duration, Fault> {
    let mut open = match satellite.take() {
        Some(open) => open,
        None => Satellite::connect(url, trust).await?,
    };
    let time = open.check_latency().await?;
    *satellite = Some(open);
    Ok(time)
}

/// A latency check, and a ping in an open session.
async fn talk(node: &Node, open: &mut Talk, trust: &Trust) -> [Result<Duration, Fault>; 2] {
    let relay = match open.relay.take() {
        Some(relay) => Ok(relay),
        None => node::connect(node, trust).await,
    };
    let mut relay = match relay {
        Ok(relay) => relay,
        Err(fault) => return [Err(fault.clone()), Err(fault)],
    };
    let https = relay.check_latency().await;
    let derp = async {
        let mut session = match open.session.take() {
            Some(session) => session,
            None => relay.log_in(&Identity::fresh()?).await?,
        };
        let time = session.ping().await?;
        open.session = Some(session);
        Ok(time)
    };
    let derp = derp.await;
    if https.is_ok() {
        open.relay = Some(relay);
    }
    [https, derp]
}

/// A STUN question; `None` if the node has no STUN.
async fn ask(node: &Node, open: &mut Option<stun::Client>) -> Option<Result<stun::Seen, Fault>> {
    let mut client = match open.take() {
        Some(client) => client,
        None => {
            let mut connected = None;
            for server in node::stun_servers(node).await {
                // Of a family that this host has not, there is nothing to lose.
                if !matches!(connected, Some(Ok(_))) {
                    connected = Some(stun::Client::connect(server).await);
                }
            }
            match connected? {
                Ok(client) => client,
                Err(fault) => return Some(Err(fault)),
            }
        }
    };
    let seen = client.ask_once(STUN).await;
    let lost = || Fault::Failed(format!("no answer in {STUN:?}"));
    let seen = seen.and_then(|seen| seen.ok_or_else(lost));
    *open = Some(client);
    Some(seen)
}
