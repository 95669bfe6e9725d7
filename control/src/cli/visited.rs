//! Lists of what is probed: the records of a kind, each with how it is.

use std::collections::HashMap;

use serde::Serialize;

use super::client::Client;
use super::output::{Cell, Colour, Output};
use crate::fault::OperatorFault;
use crate::resource::{Node, Resource, Row, Satellite};
use crate::serve::prober::{Health, HealthListing, State, TargetKind};
use crate::store::Revision;

/// A kind that is probed.
pub(super) trait Visited: Resource {
    const TARGET: TargetKind;
    const HEADINGS: &'static [&'static str];
    fn cells(&self, health: Option<&Health>) -> Vec<Cell>;
}

/// A record and how it is.
#[derive(Serialize)]
struct Entry<R> {
    #[serde(flatten)]
    row: Row<R>,
    /// Nothing where it is not probed.
    health: Option<Health>,
}

#[derive(Serialize)]
struct Entries<R> {
    items: Vec<Entry<R>>,
    revision: Revision,
}

/// Prints every record of a kind.
pub(super) async fn list<R: Visited>(
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let listing = client.all::<R>().await?;
    let kind = match R::TARGET {
        TargetKind::Node => "node",
        TargetKind::Satellite => "satellite",
    };
    let found: HealthListing = client.get(&["health"], &[("kind", kind.to_owned())]).await?;
    let mut found: HashMap<_, _> =
        found.items.into_iter().map(|health| (health.name.clone(), health)).collect();
    let entry = |row: Row<R>| Entry { health: found.remove(&row.resource.name()), row };
    let items: Vec<_> = listing.items.into_iter().map(entry).collect();
    let cells: Vec<_> =
        items.iter().map(|entry| entry.row.resource.cells(entry.health.as_ref())).collect();
    // The last column says what is wrong; where nothing is, there is none.
    let wrong = items.iter().any(|entry| why(entry.health.as_ref()) != Cell::from(String::new()));
    let headings = match R::HEADINGS.split_last() {
        Some((_, rest)) if !wrong => rest,
        Some(_) | None => R::HEADINGS,
    };
    output.coloured(&Entries { items, revision: listing.revision }, headings, &cells)
}

fn state(health: Option<&Health>) -> Cell {
    let Some(health) = health else { return Cell::from("unknown".to_owned()) };
    match (health.state, health.left_out) {
        (State::Unknown, _) => Cell::from("unknown".to_owned()),
        (State::Healthy, _) => Cell::new("healthy", Colour::Green),
        (State::Unhealthy, false) => Cell::new("unhealthy", Colour::Red),
        (State::Unhealthy, true) => Cell::new("left out", Colour::Red),
    }
}

fn latency(health: Option<&Health>) -> Cell {
    Cell::latency(health.and_then(|health| health.latency_ms.shown()))
}

/// What is wrong, in full; the last column, as it may be long.
fn why(health: Option<&Health>) -> Cell {
    Cell::from(health.and_then(|health| health.why.clone()).unwrap_or_default())
}

fn or_dash(text: &str) -> Cell {
    Cell::from(if text.is_empty() { "-".to_owned() } else { text.to_owned() })
}

impl Visited for Satellite {
    const TARGET: TargetKind = TargetKind::Satellite;
    const HEADINGS: &'static [&'static str] =
        &["NAME", "URL", "STATE", "VERSION", "LATENCY", "WHY"];

    fn cells(&self, health: Option<&Health>) -> Vec<Cell> {
        let own = self.status.clone().unwrap_or_default();
        let version = health.and_then(|health| health.version.clone()).or(own.version);
        vec![
            Cell::from(self.name.clone()),
            or_dash(&self.access_url),
            // Where nothing is visited its own word is all there is.
            match (health.map(|health| health.state), own.state) {
                (None | Some(State::Unknown), said) => Cell::from(said.word().to_owned()),
                (Some(_), _) => state(health),
            },
            or_dash(&version.unwrap_or_default()),
            latency(health),
            why(health),
        ]
    }
}

impl Visited for Node {
    const TARGET: TargetKind = TargetKind::Node;
    const HEADINGS: &'static [&'static str] =
        &["NAME", "REGION", "HOST", "DERP", "STUN", "DRAINS", "STATE", "LATENCY", "WHY"];

    fn cells(&self, health: Option<&Health>) -> Vec<Cell> {
        let derp = match (self.stun_only, self.derp_port) {
            (true, _) => "off".to_owned(),
            (false, 0) => "443".to_owned(),
            (false, port) => port.to_string(),
        };
        let stun = match self.stun_port {
            -1 => "off".to_owned(),
            0 => "3478".to_owned(),
            port => port.to_string(),
        };
        let drains = if self.drain { "yes" } else { "no" }.to_owned();
        let own =
            [self.name.clone(), self.region.clone(), self.host_name.clone(), derp, stun, drains];
        let found = [state(health), latency(health), why(health)];
        own.map(Cell::from).into_iter().chain(found).collect()
    }
}
