//! A map without the nodes that fail.
//!
//! A region all of whose relays fail goes with them, so that clients make another their home at once
//! instead of finding out: stock Tailscale takes one for its home by STUN alone, whether or not a node of
//! it relays. But if no node that relays were left, nothing is left out: then it is
//! likelier that whoever probes is cut off, and clients can still try.

use std::collections::BTreeSet;

use super::{DerpMap, MapRegion};
use crate::resource::Node;

impl DerpMap {
    /// This map without the nodes named in `failing`, as far as it may go.
    #[must_use]
    pub fn without(&self, failing: &BTreeSet<String>) -> Self {
        if !self.relays_without(failing) {
            return self.clone();
        }
        let stays = |node: &&Node| !failing.contains(&node.name);
        let relays = |nodes: &[Node]| nodes.iter().any(|node| !node.stun_only);
        let regions = self.regions.iter().filter_map(|(id, MapRegion { region, nodes: all })| {
            let nodes: Vec<_> = all.iter().filter(stays).cloned().collect();
            let is_of_use = !nodes.is_empty() && (relays(&nodes) || !relays(all));
            is_of_use.then(|| (*id, MapRegion { region: region.clone(), nodes }))
        });
        Self { regions: regions.collect(), fields: self.fields.clone() }
    }

    /// The names of this map's nodes that are not in `served`.
    #[must_use]
    pub fn missing_in(&self, served: &Self) -> Vec<String> {
        let served: BTreeSet<_> = served.names().collect();
        self.names().filter(|name| !served.contains(name)).map(str::to_owned).collect()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.regions.values().flat_map(|region| &region.nodes).map(|node| node.name.as_str())
    }

    /// Whether a node that relays would be left without those named in `failing`.
    #[must_use]
    pub fn relays_without(&self, failing: &BTreeSet<String>) -> bool {
        let mut nodes = self.regions.values().flat_map(|region| &region.nodes);
        nodes.any(|node| !node.stun_only && !failing.contains(&node.name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map() -> DerpMap {
        let node = |name: &str, region: u32, stun_only: bool| json!({"Name": name, "RegionID": region, "HostName": "h", "STUNOnly": stun_only});
        let region = |id: u32, code: &str, nodes: serde_json::Value| json!({"RegionID": id, "RegionCode": code, "Nodes": nodes});
        DerpMap::from_value(json!({"Regions": {
            "1": region(1, "fra", json!([node("1a", 1, false), node("1b", 1, false)])),
            "2": region(2, "syd", json!([node("2a", 2, false), node("2s", 2, true)])),
            "3": region(3, "stun", json!([node("3s", 3, true)])),
        }}))
        .expect("a map")
    }

    fn left_out(failing: &[&str]) -> Vec<String> {
        let failing = failing.iter().map(|name| (*name).to_owned()).collect();
        let map = map();
        map.missing_in(&map.without(&failing))
    }

    #[test]
    fn failing_nodes_go_and_regions_without_nodes_go_with_them() {
        assert_eq!(left_out(&[]), [""; 0]);
        assert_eq!(left_out(&["1a", "no such"]), ["1a"]);
        assert_eq!(left_out(&["2a"]), ["2a", "2s"], "2s relays nothing");
        assert_eq!(left_out(&["2s"]), ["2s"]);
        assert_eq!(left_out(&["2a", "2s"]), ["2a", "2s"]);
        assert_eq!(left_out(&["3s"]), ["3s"]);
        assert_eq!(left_out(&["1a"]), ["1a"], "3s stays: its region never had a relay");
        let failing = ["2a", "2s"].map(str::to_owned).into();
        assert!(!map().without(&failing).regions.contains_key(&2));
    }

    #[test]
    fn the_last_relay_never_goes() {
        assert_eq!(left_out(&["1a", "1b"]), ["1a", "1b"]);
        assert_eq!(left_out(&["1a", "1b", "2a"]), [""; 0], "2s relays nothing");
        assert_eq!(left_out(&["1a", "1b", "2a", "2s"]), [""; 0]);
    }
}
