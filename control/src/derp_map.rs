//! The DERP map: read from files in Tailscale's form, merged, compared, and written again.
//!
//! Owns [`DerpMap`] and the way from JSON or YAML to it and back (`tailcfg.DERPMap`, and Coder's
//! additions to it). Names of fields may be of any case, as Go takes them and as headscale writes
//! them; fields we do not know are kept. It reads no file itself: `load` does, `publish` turns a map
//! into changes of the store.

mod leave_out;
pub mod load;
pub mod publish;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::Hash;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::fault::harmless;
use crate::json;
use crate::resource::{FieldFault, MapFields, Node, Region, Resource};

/// Bytes of a map as text, at most: some thousand nodes.
pub const MAP_BYTES_MAX: usize = 4 * 1024 * 1024;

const MAP_FIELDS: &[&str] = &["Regions", "HomeParams", "omitDefaultRegions"];
const REGION_FIELDS: &[&str] = &["RegionID", "RegionCode", "RegionName", "Avoid", "Nodes"];
const NODE_FIELDS: &[&str] = &[
    "Name",
    "RegionID",
    "HostName",
    "CertName",
    "IPv4",
    "IPv6",
    "STUNPort",
    "STUNOnly",
    "DERPPort",
    "InsecureForTests",
    "ForceHTTP",
    "STUNTestIP",
    "CanPort80",
];

/// Fields of numbers that stock code reads and we do not: `tailcfg.DERPRegion` of Tailscale 1.102.
const NUMBERS: [&str; 2] = ["Latitude", "Longitude"];
/// Fields that are true or false, from there and from Coder's fork.
const BOOLEANS: [&str; 2] = ["NoMeasureNoHome", "EmbeddedRelay"];

/// Levels that a further field may have: more than anybody writes, and far from where parsers stop.
const FIELD_DEPTH_MAX: usize = 16;

/// A region with its nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapRegion {
    /// The region.
    pub region: Region,
    /// Its nodes, in the order in which clients try them; each names this region.
    pub nodes: Vec<Node>,
}

/// A DERP map whose ids, codes and node names are distinct.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DerpMap {
    /// The regions by id.
    pub regions: BTreeMap<u32, MapRegion>,
    /// What else the map says, such as HomeParams.
    pub fields: MapFields,
}

/// What is wrong with a map, in one line that names the place within it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MapFault(pub String);

impl MapFault {
    /// What is wrong, in words in which strangers' names may stand: they stay one line, and nothing
    /// that a terminal obeys.
    fn new(words: impl AsRef<str>) -> Self {
        Self(harmless(words.as_ref(), &[]))
    }
}

/// A map and where it came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// A path, a URL, or the store.
    pub place: String,
    /// What it says.
    pub map: DerpMap,
}

#[derive(Deserialize, Serialize)]
struct WireRegion {
    #[serde(rename = "RegionID")]
    region_id: u32,
    #[serde(rename = "RegionCode")]
    code: String,
    #[serde(rename = "RegionName", default)]
    title: String,
    #[serde(rename = "Avoid", default, skip_serializing_if = "is_default")]
    avoid: bool,
    #[serde(flatten)]
    fields: MapFields,
    #[serde(rename = "Nodes", default)]
    nodes: Vec<Value>,
}

#[derive(Deserialize, Serialize)]
struct WireNode {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "RegionID")]
    region_id: u32,
    #[serde(rename = "HostName")]
    host_name: String,
    #[serde(rename = "CertName", default, skip_serializing_if = "is_default")]
    cert_name: String,
    #[serde(rename = "IPv4", default, skip_serializing_if = "is_default")]
    ipv4: String,
    #[serde(rename = "IPv6", default, skip_serializing_if = "is_default")]
    ipv6: String,
    #[serde(rename = "STUNPort", default, skip_serializing_if = "is_default")]
    stun_port: i32,
    #[serde(rename = "STUNOnly", default, skip_serializing_if = "is_default")]
    stun_only: bool,
    #[serde(rename = "DERPPort", default, skip_serializing_if = "is_default")]
    derp_port: u16,
    #[serde(rename = "InsecureForTests", default, skip_serializing_if = "is_default")]
    insecure_for_tests: bool,
    #[serde(rename = "ForceHTTP", default, skip_serializing_if = "is_default")]
    force_http: bool,
    #[serde(rename = "STUNTestIP", default, skip_serializing_if = "is_default")]
    stun_test_ip: String,
    #[serde(rename = "CanPort80", default, skip_serializing_if = "is_default")]
    can_port80: bool,
    #[serde(flatten)]
    fields: MapFields,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl DerpMap {
    /// The map that `value` is in Tailscale's form.
    ///
    /// # Errors
    /// Names the region, the node and the field that cannot be taken.
    pub fn from_value(value: Value) -> Result<Self, MapFault> {
        let mut fields = object(value, MAP_FIELDS).map_err(MapFault::new)?;
        let Some(Value::Object(regions)) = fields.remove("Regions") else {
            return Err(MapFault::new("has no Regions; write {\"Regions\": {\"ID\": {...}}}"));
        };
        check_map_fields(&fields).map_err(MapFault::new)?;
        let mut map = Self { regions: BTreeMap::new(), fields };
        for (key, region) in regions {
            let within = |why: String| MapFault::new(format!("region {key}: {why}"));
            let region = read_region(region).map_err(within)?;
            let id = region.region.region_id;
            if key != id.to_string() {
                return Err(within(format!("RegionID is {id}; make it the region's key")));
            }
            map.regions.insert(id, region);
        }
        merge(vec![Source { place: String::new(), map }])
    }

    /// The map of these regions and nodes of the store. Nodes of a region are in the order of their
    /// names; a region without nodes is left out, as clients could not use it.
    #[must_use]
    pub fn from_store(regions: Vec<Region>, nodes: Vec<Node>) -> Self {
        let mut map = Self::of_records(regions, nodes);
        map.regions.retain(|_, region| !region.nodes.is_empty());
        map
    }

    /// The same with the regions without nodes.
    #[must_use]
    pub fn of_records(regions: Vec<Region>, mut nodes: Vec<Node>) -> Self {
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        let mut of: HashMap<String, Vec<Node>> = HashMap::new();
        for node in nodes {
            of.entry(node.region.clone()).or_default().push(node);
        }
        let regions = regions.into_iter().map(|region| {
            let nodes = of.remove(&region.name).unwrap_or_default();
            (region.region_id, MapRegion { region, nodes })
        });
        Self { regions: regions.collect(), fields: Map::new() }
    }

    /// The map in Tailscale's form, regions in the order of their ids.
    ///
    /// # Panics
    /// Never: a map is plain data.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("plain data has a JSON form")
    }

    /// [`DerpMap::to_value`] as text.
    ///
    /// # Panics
    /// Never: a map is plain data.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has a JSON form")
    }

    /// Nodes of all regions.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.regions.values().map(|region| region.nodes.len()).sum()
    }
}

/// In Tailscale's form. One region at a time is made ready: a tree of all of a large map would take
/// ten times the text's memory.
impl Serialize for DerpMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Regions<'a>(&'a BTreeMap<u32, MapRegion>);
        impl Serialize for Regions<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(id, region)| (id, write_region(region))))
            }
        }
        let mut whole = serializer.serialize_map(Some(self.fields.len() + 1))?;
        for (name, value) in &self.fields {
            whole.serialize_entry(name, value)?;
        }
        whole.serialize_entry("Regions", &Regions(&self.regions))?;
        whole.end()
    }
}

fn read_region(value: Value) -> Result<MapRegion, String> {
    let fields = object(value, REGION_FIELDS)?;
    let wire: WireRegion = json::read(Value::Object(fields))?;
    let mut region = Region {
        name: wire.code,
        region_id: wire.region_id,
        title: wire.title,
        avoid: wire.avoid,
        map_fields: wire.fields,
    };
    region.check().map_err(|fault| in_the_maps_words(&fault))?;
    let read = |value| read_node(value, &region);
    let nodes = wire.nodes.into_iter().map(read).collect::<Result<_, _>>()?;
    Ok(MapRegion { region, nodes })
}

fn read_node(value: Value, region: &Region) -> Result<Node, String> {
    let fields = object(value, NODE_FIELDS)?;
    let name = fields.get("Name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
    let within = |why: String| format!("node {name}: {why}");
    let wire: WireNode = json::read(Value::Object(fields)).map_err(within)?;
    if wire.region_id != region.region_id {
        let why = format!("RegionID is {}; make it {}", wire.region_id, region.region_id);
        return Err(within(why));
    }
    let mut node = Node {
        name: wire.name,
        region: region.name.clone(),
        host_name: wire.host_name,
        cert_name: wire.cert_name,
        ipv4: wire.ipv4,
        ipv6: wire.ipv6,
        stun_port: wire.stun_port,
        stun_only: wire.stun_only,
        derp_port: wire.derp_port,
        insecure_for_tests: wire.insecure_for_tests,
        force_http: wire.force_http,
        stun_test_ip: wire.stun_test_ip,
        can_port80: wire.can_port80,
        drain: false,
        map_fields: wire.fields,
    };
    node.check().map_err(|fault| within(in_the_maps_words(&fault)))?;
    Ok(node)
}

/// Our fields' names as the map calls them.
fn in_the_maps_words(fault: &FieldFault) -> String {
    let field = match fault.field {
        "name" => "name or code",
        "region_id" => "RegionID",
        "title" => "RegionName",
        "host_name" => "HostName",
        "cert_name" => "CertName",
        "ipv4" => "IPv4",
        "ipv6" => "IPv6",
        "stun_port" => "STUNPort",
        "stun_test_ip" => "STUNTestIP",
        // Its words begin with the field's name.
        "map_fields" => return fault.why.clone(),
        other => other,
    };
    format!("{field}: {}", fault.why)
}

fn write_region(region: &MapRegion) -> Value {
    let MapRegion { region, nodes } = region;
    let title = if region.title.is_empty() { &region.name } else { &region.title };
    plain(&WireRegion {
        region_id: region.region_id,
        code: region.name.clone(),
        title: title.clone(),
        avoid: region.avoid,
        fields: region.map_fields.clone(),
        nodes: nodes.iter().map(|node| write_node(node, region.region_id)).collect(),
    })
}

/// A node in Tailscale's form.
fn write_node(node: &Node, region_id: u32) -> Value {
    plain(&WireNode {
        name: node.name.clone(),
        region_id,
        host_name: node.host_name.clone(),
        cert_name: node.cert_name.clone(),
        ipv4: node.ipv4.clone(),
        ipv6: node.ipv6.clone(),
        stun_port: node.stun_port,
        stun_only: node.stun_only,
        derp_port: node.derp_port,
        insecure_for_tests: node.insecure_for_tests,
        force_http: node.force_http,
        stun_test_ip: node.stun_test_ip.clone(),
        can_port80: node.can_port80,
        fields: node.map_fields.clone(),
    })
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("texts, numbers and maps with text keys have a JSON form")
}

/// The fields of an object; those that are `known` but for their case get their proper names.
fn object(value: Value, known: &[&str]) -> Result<Map<String, Value>, String> {
    let Value::Object(fields) = value else {
        return Err("is no table of fields; write {...}".into());
    };
    let mut named = Map::new();
    for (name, value) in fields {
        let proper = known.iter().find(|known| known.eq_ignore_ascii_case(&name));
        let name = proper.map_or(name, |proper| (*proper).to_owned());
        // Go leaves a field that is null as it was.
        if proper.is_some() && value.is_null() {
            continue;
        }
        if named.insert(name.clone(), value).is_some() {
            return Err(format!("{name} is there twice; leave one"));
        }
    }
    Ok(named)
}

/// Checks further fields of a region: none may be one that we know.
pub(crate) fn check_region_fields(fields: &MapFields) -> Result<(), FieldFault> {
    check_fields(fields, REGION_FIELDS)
}

/// Checks further fields of a node: none may be one that we know.
pub(crate) fn check_node_fields(fields: &MapFields) -> Result<(), FieldFault> {
    check_fields(fields, NODE_FIELDS)
}

fn check_fields(fields: &MapFields, known: &[&str]) -> Result<(), FieldFault> {
    let fault = |why| FieldFault::new("map_fields", why);
    let clash =
        fields.keys().find(|name| known.iter().any(|known| known.eq_ignore_ascii_case(name)));
    if let Some(name) = clash {
        return Err(fault(format!("{name} has a field of its own; use that")));
    }
    for (name, value) in fields {
        if depth(value) > FIELD_DEPTH_MAX {
            return Err(fault(format!("{name} is deeper than {FIELD_DEPTH_MAX} levels")));
        }
        let is_one = |of: &[&str]| of.iter().any(|known| known.eq_ignore_ascii_case(name));
        if is_one(&NUMBERS) && !value.is_number() && !value.is_null() {
            return Err(fault(format!("{name} takes a number")));
        }
        if is_one(&BOOLEANS) && !value.is_boolean() && !value.is_null() {
            return Err(fault(format!("{name} takes true or false")));
        }
    }
    Ok(())
}

/// Levels of a further field's value.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

/// Checks the fields of the whole that stock code reads: one of another type, and it refuses the map.
fn check_map_fields(fields: &MapFields) -> Result<(), String> {
    if let Some(value) = fields.get("omitDefaultRegions")
        && !value.is_boolean()
    {
        return Err("omitDefaultRegions takes true or false".into());
    }
    let Some(params) = fields.get("HomeParams") else { return Ok(()) };
    let within = |why: String| format!("HomeParams: {why}");
    let params = object(params.clone(), &["RegionScore"]).map_err(within)?;
    let Some(scores) = params.get("RegionScore") else { return Ok(()) };
    let is_score =
        |(region, score): (&String, &Value)| region.parse::<i64>().is_ok() && score.is_number();
    match scores.as_object().is_some_and(|scores| scores.iter().all(is_score)) {
        true => Ok(()),
        false => Err(within("RegionScore takes numbers by RegionID".into())),
    }
}

/// One map out of several.
///
/// # Errors
/// When two have a region with the same id or code, a node with the same name, or another value
/// for a field of the whole; both places are named.
pub fn merge(sources: Vec<Source>) -> Result<DerpMap, MapFault> {
    refuse_clashes(sources.iter())?;
    let mut merged = DerpMap::default();
    for Source { map, .. } in sources {
        merged.regions.extend(map.regions);
        merged.fields.extend(map.fields);
    }
    Ok(merged)
}

/// Refuses sources that [`merge`] would not make one map of.
///
/// # Errors
/// The same.
pub(crate) fn refuse_clashes<'a>(
    sources: impl IntoIterator<Item = &'a Source>,
) -> Result<(), MapFault> {
    let (mut ids, mut codes, mut nodes) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut fields: HashMap<&str, (&Value, &str)> = HashMap::new();
    for Source { place, map } in sources {
        for (id, region) in &map.regions {
            claim(&mut ids, "region", id, place)?;
            claim(&mut codes, "region code", &region.region.name, place)?;
            for node in &region.nodes {
                claim(&mut nodes, "node", &node.name, place)?;
            }
        }
        for (name, value) in &map.fields {
            match fields.insert(name, (value, place)) {
                Some((known, first)) if known != value => {
                    return Err(twice(name, "", first, place));
                }
                Some(_) | None => {}
            }
        }
    }
    Ok(())
}

fn claim<'a, W: Hash + Eq + ToString>(
    taken: &mut HashMap<&'a W, &'a str>,
    what: &str,
    word: &'a W,
    place: &'a str,
) -> Result<(), MapFault> {
    match taken.insert(word, place) {
        Some(first) => Err(twice(what, &word.to_string(), first, place)),
        None => Ok(()),
    }
}

fn twice(what: &str, word: &str, first: &str, second: &str) -> MapFault {
    let what = format!("{what} {word}");
    let what = what.trim_end();
    MapFault::new(match (first, second) {
        ("", "") => format!("{what} is there twice; rename one"),
        (first, second) if first == second => format!("{what} is twice in {first}; rename one"),
        (first, second) => format!("{what} is in {first} and in {second}; leave it in one"),
    })
}

/// What `new` has other than `old`, a line each: `+` and `-` for regions and nodes that came and
/// went, `~` for those that changed, with the fields.
#[must_use]
pub fn differences(old: &DerpMap, new: &DerpMap) -> Vec<String> {
    let mut lines = Vec::new();
    let [old, new] = [old, new].map(entries);
    for (name, was) in &old {
        match new.get(name) {
            None => lines.push(format!("- {name}")),
            Some(is) if is != was => lines.push(format!("~ {name}: {}", fields_changed(was, is))),
            Some(_) => {}
        }
    }
    lines
        .extend(new.keys().filter(|name| !old.contains_key(*name)).map(|name| format!("+ {name}")));
    lines
}

/// Every region without its nodes, every node, and the fields of the whole, by what they are called.
fn entries(map: &DerpMap) -> BTreeMap<String, Map<String, Value>> {
    let mut entries = BTreeMap::from([("map".to_owned(), map.fields.clone())]);
    let mut add = |name: String, value: Value, but: &str| {
        if let Value::Object(mut fields) = value {
            fields.remove(but);
            entries.insert(name, fields);
        }
    };
    for (id, region) in &map.regions {
        let name = format!("region {id} {}", region.region.name);
        add(name.clone(), write_region(region), "Nodes");
        for node in &region.nodes {
            add(format!("{name}: node {}", node.name), write_node(node, *id), "");
        }
    }
    entries
}

fn fields_changed(was: &Map<String, Value>, is: &Map<String, Value>) -> String {
    let names: std::collections::BTreeSet<_> = was.keys().chain(is.keys()).collect();
    let show = |value: Option<&Value>| value.map_or("none".to_owned(), ToString::to_string);
    let changed = names.into_iter().filter(|name| was.get(*name) != is.get(*name));
    let words =
        changed.map(|name| format!("{name} {} -> {}", show(was.get(name)), show(is.get(name))));
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
