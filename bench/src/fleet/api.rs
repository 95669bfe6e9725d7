//! What the round says to control: its HTTP interface over the unix socket, and a fleet to register.

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Regions that the nodes are spread over.
pub(super) const REGIONS: usize = 100;
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fleet to register.
pub(super) struct Fleet {
    /// Bodies of satellites.
    satellites: Vec<Value>,
    /// A DERP map of the nodes.
    pub(super) map: Value,
    /// The same map after every node has moved to another address.
    pub(super) moved: Value,
    /// Bodies of WireGuard peers, one for each change.
    pub(super) peers: Vec<Value>,
}

impl Fleet {
    /// So many satellites and nodes, and peers to come.
    pub(super) fn new(records: usize, changes: usize) -> Result<Self> {
        let key = || -> Result<String> {
            let pair = Ed25519KeyPair::generate().ok().context("no entropy")?;
            Ok(STANDARD.encode(pair.public_key().as_ref()))
        };
        let satellite = |at| -> Result<Value> {
            let url = format!("https://s{at}.example.com");
            Ok(json!({"name": format!("s{at}"), "access_url": url, "public_key": key()?}))
        };
        let peer = |at| -> Result<Value> {
            let mut key = [0; 32];
            aws_lc_rs::rand::fill(&mut key).ok().context("no entropy")?;
            Ok(json!({"name": format!("p{at}"), "public_key": STANDARD.encode(key)}))
        };
        Ok(Self {
            map: map(records, 10),
            moved: map(records, 11),
            satellites: (0..records).map(satellite).collect::<Result<_>>()?,
            peers: (0..changes).map(peer).collect::<Result<_>>()?,
        })
    }
}

/// A DERP map of so many nodes, whose addresses begin with `net`.
fn map(records: usize, net: u8) -> Value {
    let regions = (0..REGIONS).map(|region| {
        let nodes: Vec<_> =
            (region..records).step_by(REGIONS).map(|at| map_node(at, net)).collect();
        let id = region + 1;
        let region = json!({"RegionID": id, "RegionCode": format!("r{region}"), "Nodes": nodes});
        (id.to_string(), region)
    });
    json!({"Regions": regions.collect::<serde_json::Map<_, _>>()})
}

fn map_node(at: usize, net: u8) -> Value {
    json!({
        "Name": format!("n{at}"), "RegionID": at % REGIONS + 1, "HostName": format!("n{at}.example.com"),
        "IPv4": format!("{net}.{}.{}.{}", at >> 16 & 255, at >> 8 & 255, at & 255),
    })
}

/// Whether a control answers at `socket` that it is ready.
pub(super) fn is_ready(socket: &Path) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return false };
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).is_ok()
        && stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n")
            .is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

/// Asks a control.
pub(super) struct Api {
    runtime: Runtime,
    http: reqwest::Client,
}

impl Api {
    pub(super) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let http = reqwest::Client::builder()
            .unix_socket(socket.to_owned())
            .timeout(PATIENCE)
            .tls_certs_only([])
            .build()?;
        Ok(Self { runtime, http })
    }

    /// Asks, and gives the answer's bytes and how long it took until the last.
    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(Vec<u8>, Duration)> {
        let mut request = self.http.request(method, format!("http://control{path}"));
        if let Some(body) = body {
            let body = serde_json::to_vec(body)?;
            request = request.header("Content-Type", "application/json").body(body);
        }
        let begun = Instant::now();
        let (status, bytes) = self.runtime.block_on(async {
            let answer = request.send().await?;
            anyhow::Ok((answer.status(), answer.bytes().await?))
        })?;
        let told = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        ensure!(status.is_success(), "{path}: {status}: {told}");
        Ok((bytes.to_vec(), begun.elapsed()))
    }

    fn create(&self, path: &str, body: &Value) -> Result<i64> {
        let (answer, _) = self.ask(Method::POST, path, Some(body))?;
        let answer: Value = serde_json::from_slice(&answer)?;
        answer["revision"].as_i64().context("a record has a revision")
    }

    /// Registers the satellites one by one.
    pub(super) fn register(&self, fleet: &Fleet) -> Result<()> {
        for satellite in &fleet.satellites {
            self.create("/api/v1/satellites", satellite)?;
        }
        Ok(())
    }

    /// Makes control's regions and nodes those of `map`.
    pub(super) fn publish(&self, map: &Value) -> Result<Duration> {
        let (_, time) = self.ask(Method::PUT, "/api/v1/derpmap", Some(map))?;
        Ok(time)
    }

    /// Lists all satellites, of which there are `count`.
    pub(super) fn list(&self, count: usize) -> Result<Duration> {
        let (listing, time) = self.ask(Method::GET, "/api/v1/satellites?limit=10000", None)?;
        let listing: Value = serde_json::from_slice(&listing)?;
        let listed = listing["items"].as_array().map_or(0, Vec::len);
        ensure!(listed == count.min(10_000), "{listed} of {count} satellites are listed");
        Ok(time)
    }

    /// Registers a further node.
    pub(super) fn add_node(&self, at: usize) -> Result<()> {
        let node = json!({
            "name": format!("n{at}"), "region": format!("r{}", at % REGIONS),
            "host_name": format!("n{at}.example.com"),
        });
        self.create("/api/v1/nodes", &node).map(drop)
    }

    /// Fetches the DERP map.
    pub(super) fn map(&self) -> Result<Duration> {
        let (map, time) = self.ask(Method::GET, "/derpmap/default", None)?;
        let map: Value = serde_json::from_slice(&map)?;
        let regions = map["Regions"].as_object().map_or(0, serde_json::Map::len);
        ensure!(regions == REGIONS, "{regions} of {REGIONS} regions are in the map");
        Ok(time)
    }

    /// Registers a WireGuard peer. Returns the revision.
    pub(super) fn add_peer(&self, peer: &Value) -> Result<i64> {
        self.create("/api/v1/peers", peer)
    }
}
