//! From a map to the changes that make the store's regions and nodes those of the map.

use std::collections::{HashMap, HashSet};

use super::DerpMap;
use crate::resource::{Node, Region, Resource, Row};
use crate::store::{Kind, Operation, Revision};
use crate::token::new_id;

/// The operations, in an order in which each can be done. A region that keeps code and id, and a
/// node that keeps name and region, keep their record; what is the same already is not touched.
#[must_use]
pub fn plan(regions: &[Row<Region>], nodes: &[Row<Node>], map: &DerpMap) -> Vec<Operation> {
    let wanted: HashMap<&str, &Region> =
        map.regions.values().map(|region| (region.region.name.as_str(), &region.region)).collect();
    let wanted_nodes: HashMap<&str, &Node> = map
        .regions
        .values()
        .flat_map(|region| &region.nodes)
        .map(|node| (node.name.as_str(), node))
        .collect();
    let region_stays = |region: &Region| {
        wanted.get(region.name.as_str()).is_some_and(|new| new.region_id == region.region_id)
    };
    let staying: HashMap<&str, &Row<Region>> = regions
        .iter()
        .filter(|row| region_stays(&row.resource))
        .map(|row| (row.resource.name.as_str(), row))
        .collect();
    let node_stays = |node: &Node| {
        staying.contains_key(node.region.as_str())
            && wanted_nodes.get(node.name.as_str()).is_some_and(|new| new.region == node.region)
    };
    let staying_nodes: HashMap<&str, &Row<Node>> = nodes
        .iter()
        .filter(|row| node_stays(&row.resource))
        .map(|row| (row.resource.name.as_str(), row))
        .collect();

    let gone_nodes = nodes.iter().filter(|row| !node_stays(&row.resource)).map(remove);
    let gone = regions.iter().filter(|row| !region_stays(&row.resource)).map(remove);
    let mut operations: Vec<_> = gone_nodes.chain(gone).collect();
    for region in map.regions.values() {
        let new = &region.region;
        operations.extend(put(staying.get(new.name.as_str()).copied(), new));
    }
    let draining: HashSet<&str> = nodes
        .iter()
        .filter(|row| row.resource.drain)
        .map(|row| row.resource.name.as_str())
        .collect();
    for node in map.regions.values().flat_map(|region| &region.nodes) {
        let old = staying_nodes.get(node.name.as_str()).copied();
        // A map does not say whether a node drains, so it does not end that either, wherever it moves.
        let drain = draining.contains(node.name.as_str());
        operations.extend(put(old, &Node { drain, ..node.clone() }));
    }
    operations
}

fn remove<R: Resource>(row: &Row<R>) -> Operation {
    Operation::Remove { kind: R::KIND, id: row.id.clone(), expected: Some(row.revision) }
}

fn put<R: Resource + PartialEq>(old: Option<&Row<R>>, new: &R) -> Option<Operation> {
    let (kind, draft): (Kind, _) = (R::KIND, new.draft());
    match old {
        Some(row) if row.resource == *new => None,
        Some(row) => {
            let expected: Option<Revision> = Some(row.revision);
            Some(Operation::Replace { kind, id: row.id.clone(), expected, draft })
        }
        None => Some(Operation::Create { kind, id: new_id(), draft, mark: None }),
    }
}
