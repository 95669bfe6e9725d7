//! `control netcheck`: how this host reaches every region of a DERP map.
//!
//! Every node is visited once, some at a time. The requirements are checked at the nearest region,
//! which is the one that clients here would make their home.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::Client;
use super::output::{Cell, Output, say_authorities};
use super::progress::Progress;
use super::requirements::Requirements;
use crate::derp_map::{DerpMap, load};
use crate::fault::{OperatorFault, harmless};
use crate::probe::latency::Latencies;
use crate::probe::{Fault, Identity, Trust, node, stun};
use crate::resource::Node;
use crate::serve::MapState;

/// Visits under way at a time.
const VISITS_MAX: usize = 64;
/// Requests by which loss is counted: one lost is as much as may be.
const LOSS_REQUESTS: u32 = 200;
/// Between two of them; so the count takes two seconds.
const LOSS_EVERY: Duration = Duration::from_millis(10);
/// Why there is no way to talk to anybody.
const UNUSABLE: &str = "no relay of the map can be used";

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether any STUN server answered.
    udp: bool,
    ipv4: Reach,
    ipv6: Reach,
    /// The region with the least latency of those that can be used.
    nearest: Option<String>,
    /// The nearest first.
    regions: Vec<RegionReport>,
    requirements: Requirements,
}

/// How the world is reached by one address family.
#[derive(Debug, Default, Serialize)]
struct Reach {
    /// Nothing if the map has nobody to ask.
    works: Option<bool>,
    /// Where a server saw us.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_as: Option<String>,
}

#[derive(Debug, Serialize)]
struct RegionReport {
    region: String,
    region_id: u32,
    title: String,
    /// The least of its nodes.
    latency_ms: Latencies,
    nodes: Vec<NodeReport>,
    /// Whether a relay of it lets somebody in; where the map names no relay, all there is is STUN.
    #[serde(skip)]
    is_usable: bool,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    name: String,
    latency_ms: Latencies,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The map in this file or at this address; without either that of the running control, with the
/// nodes that it does not serve.
pub(super) async fn map(named: Option<&str>, client: &Client) -> Result<DerpMap, OperatorFault> {
    let Some(named) = named else {
        let state: MapState = client.get(&["derpmap"], &[]).await?;
        return DerpMap::from_value(state.map)
            .map_err(|fault| OperatorFault::failed(format!("the map in service: {fault}")));
    };
    if !named.starts_with("http://") && !named.starts_with("https://") {
        return Ok(load::file(Path::new(named))?.map);
    }
    let http = reqwest::Client::builder().build();
    let http = http.map_err(|error| OperatorFault::failed(format!("no HTTP client: {error}")))?;
    Ok(load::url(&http, named).await.map_err(OperatorFault::failed)?.map)
}

/// Carries out `control netcheck`.
pub(super) async fn run(
    named: Option<&str>,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let progress = Progress::start("fetching the DERP map", output);
    let map = map(named, client).await?;
    if map.nodes() == 0 {
        return Err(OperatorFault::failed("the map has no nodes to ask"));
    }
    let identity = Identity::fresh().map_err(OperatorFault::failed)?;
    let visits = visit_all(&map, identity, &progress).await;
    let relays = Relays::new(&visits);
    let report = Report::new(&map, visits, &progress).await;
    drop(progress);
    output.show_painted(&report, &report.text(output))?;
    let nodes = report.regions.iter().flat_map(|region| &region.nodes);
    say_authorities(nodes.filter_map(|node| node.why.as_ref()));
    match relays {
        Relays::Silent => Err(OperatorFault::failed(UNUSABLE)),
        Relays::None | Relays::Serve => report.requirements.judge(),
    }
}

/// Whether there is a relay to fall back on.
enum Relays {
    /// The map names none.
    None,
    /// None of them lets anybody in.
    Silent,
    /// One at least does, if only clients that it knows.
    Serve,
}

impl Relays {
    fn new(visits: &[node::Visit]) -> Self {
        let asked: Vec<_> = visits.iter().filter_map(|visit| visit.derp.as_ref()).collect();
        match (asked.is_empty(), asked.into_iter().any(serves)) {
            (true, _) => Self::None,
            (false, true) => Self::Serve,
            (false, false) => Self::Silent,
        }
    }
}

/// Whether a relay lets somebody in.
pub(super) fn serves(derp: &Result<Duration, Fault>) -> bool {
    matches!(derp, Ok(_) | Err(Fault::NotAdmitted))
}

/// A visit of every node, in the order of the map.
async fn visit_all(map: &DerpMap, identity: Identity, progress: &Progress) -> Vec<node::Visit> {
    let steps = progress.count("visiting nodes", map.nodes() as u64);
    let (trust, places) = (Trust::default(), Semaphore::new(VISITS_MAX));
    let shared = Arc::new((trust, identity, places));
    let mut tasks = JoinSet::new();
    let nodes = map.regions.values().flat_map(|region| &region.nodes);
    for (number, node) in nodes.cloned().enumerate() {
        let (shared, steps) = (Arc::clone(&shared), steps.clone());
        tasks.spawn(async move {
            let (trust, identity, places) = &*shared;
            let _place = places.acquire().await;
            let visit = node::visit(&node, trust, identity).await;
            steps.step();
            (number, visit)
        });
    }
    let mut visits = tasks.join_all().await;
    visits.sort_by_key(|(number, _)| *number);
    visits.into_iter().map(|(_, visit)| visit).collect()
}

impl Report {
    /// The report of `visits`, which are those of all nodes of `map`; counts losses.
    async fn new(map: &DerpMap, visits: Vec<node::Visit>, progress: &Progress) -> Self {
        let v4: Vec<_> = visits.iter().filter_map(|visit| visit.stun_v4.as_ref()).collect();
        let v6: Vec<_> = visits.iter().filter_map(|visit| visit.stun_v6.as_ref()).collect();
        let [ipv4, ipv6] = [Reach::new(&v4), Reach::new(&v6)];
        let only_stun = matches!(Relays::new(&visits), Relays::None);
        let mut visits = visits.iter();
        let mut regions: Vec<_> = map
            .regions
            .values()
            .map(|of| {
                let visits: Vec<_> = visits.by_ref().take(of.nodes.len()).collect();
                let relays = visits.iter().filter_map(|visit| visit.derp.as_ref());
                let is_usable = only_stun || relays.into_iter().any(serves);
                let nodes = of.nodes.iter().zip(visits);
                let nodes: Vec<_> =
                    nodes.map(|(node, visit)| NodeReport::new(node, visit)).collect();
                let latencies = nodes.iter().map(|node| node.latency_ms);
                RegionReport {
                    region: of.region.name.clone(),
                    region_id: of.region.region_id,
                    title: of.region.title.clone(),
                    latency_ms: latencies.reduce(Latencies::least).unwrap_or_default(),
                    nodes,
                    is_usable,
                }
            })
            .collect();
        let latency = |region: &RegionReport| region.latency_ms.shown().unwrap_or(f64::INFINITY);
        regions.sort_by(|one, other| latency(one).total_cmp(&latency(other)));
        let usable = |region: &&RegionReport| region.is_usable && latency(region).is_finite();
        let nearest = regions.iter().find(usable);
        let loss = match nearest.and_then(|near| map.regions.get(&near.region_id)) {
            Some(region) => count_loss(&region.nodes, progress).await,
            None => stun::Loss::default(),
        };
        let round_trip = nearest.and_then(|near| near.latency_ms.shown());
        Self {
            udp: ipv4.works == Some(true) || ipv6.works == Some(true),
            ipv4,
            ipv6,
            nearest: nearest.map(|near| near.region.clone()),
            requirements: Requirements::new(round_trip, loss.sent, loss.lost),
            regions,
        }
    }

    fn text(&self, output: &Output) -> String {
        let yes = |works| if works { "yes" } else { "no" };
        let reach = |reach: &Reach| match (reach.works, &reach.seen_as) {
            (Some(works), Some(address)) => format!("{}, seen as {address}", yes(works)),
            (Some(works), None) => yes(works).to_owned(),
            (None, _) => "not asked".to_owned(),
        };
        let none = || match self.regions.iter().any(|region| region.is_usable) {
            true => "none".to_owned(),
            false => format!("none, as {UNUSABLE}"),
        };
        let nearest = self.nearest.clone().unwrap_or_else(none);
        let head = format!(
            "UDP:     {}\nIPv4:    {}\nIPv6:    {}\nNearest: {nearest}",
            yes(self.udp),
            reach(&self.ipv4),
            reach(&self.ipv6),
        );
        let headings = ["REGION", "NAME", "DERP", "STUN", "HTTPS", "NODES"];
        let rows: Vec<_> = self.regions.iter().map(RegionReport::cells).collect();
        let nodes = self.regions.iter().flat_map(|region| &region.nodes);
        let fault = |why: &str, node: &NodeReport| harmless(&format!("{}: {why}", node.name), &[]);
        let faults = nodes.filter_map(|node| Some(fault(node.why.as_ref()?, node)));
        let faults = faults.collect::<Vec<_>>().join("\n");
        let table = output.rows(&headings, &rows);
        let parts = [head, table, faults, self.requirements.text(output)];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("\n\n")
    }
}

impl Reach {
    fn new(asked: &[&Result<stun::Seen, Fault>]) -> Self {
        let seen = asked.iter().find_map(|asked| asked.as_ref().ok());
        Self {
            works: (!asked.is_empty()).then_some(seen.is_some()),
            seen_as: seen.map(|seen| seen.address.to_string()),
        }
    }
}

impl RegionReport {
    fn cells(&self) -> Vec<Cell> {
        let title = if self.title.is_empty() { "-" } else { &self.title };
        let well = self.nodes.iter().filter(|node| node.why.is_none()).count();
        let Latencies { https, derp, .. } = self.latency_ms;
        vec![
            Cell::from(self.region.clone()),
            Cell::from(title.to_owned()),
            Cell::latency(derp),
            Cell::latency(self.latency_ms.stun()),
            Cell::latency(https),
            Cell::from(format!("{well} of {}", self.nodes.len())),
        ]
    }
}

impl NodeReport {
    fn new(node: &Node, visit: &node::Visit) -> Self {
        let faults = visit.faults();
        let words: Vec<_> = faults.iter().map(|(what, why)| format!("{what}: {why}")).collect();
        let why = (!words.is_empty()).then(|| words.join("; "));
        Self { name: node.name.clone(), latency_ms: visit.latencies(), why }
    }
}

/// The loss on the way to the first of `nodes` that answers STUN: all, if none does that could be asked.
async fn count_loss(nodes: &[Node], progress: &Progress) -> stun::Loss {
    let mut asked = 0;
    for node in nodes {
        for server in node::stun_servers(node).await {
            let Ok(mut client) = stun::Client::connect(server).await else { continue };
            asked += stun::TRIES;
            let count = async {
                client.ask().await?;
                let what = format!("counting losses at {}", node.name);
                let steps = progress.count(what, LOSS_REQUESTS.into());
                client.count(LOSS_REQUESTS, LOSS_EVERY, || steps.step()).await
            };
            let counted: Result<_, Fault> = count.await;
            if let Ok(loss) = counted {
                return loss;
            }
        }
    }
    stun::Loss { sent: asked, lost: asked, ..stun::Loss::default() }
}
