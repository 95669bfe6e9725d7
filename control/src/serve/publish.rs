//! `/api/v1/derpmap`: the map with its state, and publishing another in one change.

use axum::body::Bytes;
use axum::extract::Query;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::api::{Ask, parameters, read_json};
use super::map::{Records, records};
use super::problem::{Code, Problem};
use crate::clock;
use crate::derp_map::publish::plan;
use crate::derp_map::{DerpMap, differences};
use crate::resource::Scope;
use crate::store::{Change, Kind, Revision, StoreFault, Unchanged};

/// What a map is made of.
const MAP_KINDS: &[Kind] = &[Kind::Region, Kind::Node];
/// How often a change is tried of which the caller does not say what it is a change of.
const TRIES: u32 = 5;

/// The map in service.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct MapState {
    /// Its ETag at `/derpmap/default`.
    pub etag: String,
    /// Why it is not what control's records, files and URLs say now; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// URLs that have not said anything yet, and why.
    pub silent: Vec<String>,
    /// Nodes that are not served because they fail.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// The map, with these, in Tailscale's form.
    #[schema(value_type = Object)]
    pub map: Value,
}

/// What publishing a map does, or would do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Published {
    /// A line for each region and node that comes (+), goes (-) or changes (~).
    pub changes: Vec<String>,
    /// The revision after it; for a dry run, the one to name in If-Match, which holds as long as no
    /// region or node changes.
    pub revision: Revision,
}

/// `GET /api/v1/derpmap`.
pub(crate) async fn read(ask: Ask) -> Result<axum::Json<MapState>, Problem> {
    ask.admit(Scope::Read).await?;
    let current = ask.control.board.current(&*ask.control.store).await?;
    Ok(axum::Json(MapState {
        etag: current.etag.clone(),
        fault: current.fault.clone(),
        silent: ask.control.board.silent(),
        left_out: current.left_out.clone(),
        map: current.map.to_value(),
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    #[serde(default)]
    dry_run: bool,
}

/// `PUT /api/v1/derpmap`: makes control's own regions and nodes those of the body, all or none.
pub(crate) async fn publish(
    ask: Ask,
    query: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
    body: Bytes,
) -> Result<axum::Json<Published>, Problem> {
    let caller = ask.admit(Scope::Operate).await?;
    let Parameters { dry_run } = parameters(query)?;
    let expected = ask.expected()?;
    let map = DerpMap::from_value(read_json(&ask.headers, &body)?)
        .map_err(|fault| Problem::new(Code::InvalidField, fault.0))?;
    if let Some(field) = map.fields.keys().next() {
        let why = format!("{field}: is of the whole map; only a file or URL can say it");
        return Err(Problem::new(Code::InvalidField, why));
    }
    let regions: Vec<_> = map.regions.values().map(|region| &region.region).collect();
    let nodes: Vec<_> = map.regions.values().flat_map(|region| &region.nodes).collect();
    ask.control.board.refuse_clash(&regions, &nodes)?;
    let mut tries = if expected.is_some() { 1 } else { TRIES };
    loop {
        let Records { regions, nodes, seen } = records(&*ask.control.store).await?;
        let mut operations = plan(&regions, &nodes, &map);
        let old = DerpMap::of_records(
            regions.into_iter().map(|row| row.resource).collect(),
            nodes.into_iter().map(|row| row.resource).collect(),
        );
        let changes = differences(&old, &map);
        if dry_run {
            operations.clear();
        }
        if operations.is_empty() && expected.is_none() {
            return Ok(axum::Json(Published { changes, revision: seen }));
        }
        let change = Change {
            actor: caller.actor.clone(),
            now: clock::now(),
            operations,
            once: None,
            // What was read page by page is one moment's only if nothing came in between. Whatever
            // else changes is none of the map's business.
            unchanged: Some(Unchanged { since: expected.unwrap_or(seen), kinds: MAP_KINDS }),
        };
        tries -= 1;
        match ask.control.store.apply(change).await {
            Ok(applied) => {
                let revision = applied.records.last().map_or(seen, |last| last.revision);
                return Ok(axum::Json(Published { changes, revision }));
            }
            Err(StoreFault::Stale { .. }) if tries > 0 => {}
            Err(fault) => return Err(fault.into()),
        }
    }
}
