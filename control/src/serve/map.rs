//! The DERP map that is served: the store's regions and nodes merged with files and URLs.
//!
//! Owns the sources and the last good map. It is built when somebody asks and something changed; a
//! merge that fails keeps the last good one in service and is told by `/readyz`, the log and a
//! metric. Files are read at start and on SIGHUP, URLs every five minutes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Control;
use super::pages::take_pages;
use super::problem::{Code, Problem};
use crate::derp_map::{DerpMap, MapRegion, Source, load, merge, refuse_clashes};
use crate::fault::OperatorFault;
use crate::resource::{Node, Region, Resource, Row};
use crate::store::{Revision, Store, StoreFault};
use crate::token::digest_hex;

/// What conflicts call the store.
pub(crate) const STORE: &str = "control's own records";
/// How often URLs are asked.
pub(crate) const FETCH_EVERY: Duration = Duration::from_secs(300);

/// A map in service.
#[derive(Debug)]
pub(crate) struct Published {
    /// What it was built from.
    built_from: (Revision, u64),
    /// The whole map.
    pub(crate) map: DerpMap,
    /// Its nodes that are not served, because they fail.
    pub(crate) left_out: Vec<String>,
    /// The rest, as JSON.
    bytes: Bytes,
    /// A digest of the bytes, in quotes.
    pub(crate) etag: String,
    /// Why it is not what sources and store say now.
    pub(crate) fault: Option<String>,
}

/// The sources beside the store.
#[derive(Debug, Default)]
struct Sources {
    /// Moves with every change.
    generation: u64,
    files: Vec<Source>,
    /// What each URL said last, or why it has never said anything.
    urls: Vec<(String, Result<Source, String>)>,
    /// Nodes that fail and that the map should do without.
    failing: BTreeSet<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    paths: Vec<PathBuf>,
    /// There is one only if there are URLs: it begins with reading the system's certificates, which
    /// takes longer than all else of a start.
    client: Option<reqwest::Client>,
    sources: RwLock<Sources>,
    /// The generation of the sources.
    moved: watch::Sender<u64>,
    /// Held while a map is built, so that one build serves all who wait for it.
    published: tokio::sync::Mutex<Option<Arc<Published>>>,
}

impl Board {
    /// A board over these files, which are read, and URLs, which are not asked yet.
    pub(crate) fn new(paths: Vec<PathBuf>, urls: Vec<String>) -> Result<Self, OperatorFault> {
        let files = paths.iter().map(|path| load::file(path)).collect::<Result<Vec<_>, _>>()?;
        merge(files.clone())
            .map_err(|fault| OperatorFault::config(format!("derp-map-file: {fault}")))?;
        let client = || {
            let agent = concat!("perigee-control/", env!("CARGO_PKG_VERSION"));
            let built = reqwest::Client::builder().user_agent(agent).build();
            built.map_err(|error| OperatorFault::failed(format!("no HTTP client: {error}")))
        };
        let client = (!urls.is_empty()).then(client).transpose()?;
        let urls = urls.into_iter().map(|url| (url, Err("not fetched yet".to_owned()))).collect();
        let sources = RwLock::new(Sources { files, urls, ..Sources::default() });
        let (moved, published) = (watch::Sender::default(), tokio::sync::Mutex::default());
        Ok(Self { paths, client, sources, moved, published })
    }

    /// Reads the files again. If one cannot be taken, all stay as they were.
    pub(crate) fn reload(&self) -> Result<(), OperatorFault> {
        let read = self.paths.iter().map(|path| load::file(path));
        let files = read.collect::<Result<Vec<_>, _>>()?;
        merge(files.clone())
            .map_err(|fault| OperatorFault::config(format!("derp-map-file: {fault}")))?;
        self.change(|sources| sources.files = files);
        Ok(())
    }

    /// Asks every URL once; one that does not answer keeps what it said before. Tells what was wrong
    /// this time, a line for each that gave no map.
    pub(crate) async fn fetch(&self) -> Vec<String> {
        let Some(client) = &self.client else { return Vec::new() };
        let mut silent = Vec::new();
        let urls: Vec<_> =
            self.read(|sources| sources.urls.iter().map(|(url, _)| url.clone()).collect());
        // Together: one that says nothing takes no time from the others.
        let mut asked = JoinSet::new();
        for (number, url) in urls.into_iter().enumerate() {
            let client = client.clone();
            asked.spawn(async move {
                let said = load::url(&client, &url).await;
                (number, url, said)
            });
        }
        let mut said = asked.join_all().await;
        said.sort_by_key(|(number, ..)| *number);
        for (_, url, said) in said {
            if let Err(why) = &said {
                tracing::warn!(why, "a DERP map could not be fetched");
                silent.push(why.clone());
            }
            self.change(|sources| {
                let slot = sources.urls.iter_mut().find(|(known, _)| *known == url);
                if let Some((_, slot)) = slot
                    && (said.is_ok() || slot.is_err())
                {
                    *slot = said;
                }
            });
        }
        silent
    }

    /// Serves the map without these nodes, as far as it may go.
    pub(crate) fn leave_out(&self, failing: BTreeSet<String>) {
        self.change(|sources| sources.failing = failing);
    }

    /// Whether the map would be served without these nodes: not if no relay were left.
    pub(crate) async fn serves_without(&self, failing: &BTreeSet<String>) -> bool {
        let published = self.published.lock().await;
        published.as_ref().is_none_or(|last| last.map.relays_without(failing))
    }

    /// Why URLs have not said anything yet.
    pub(crate) fn silent(&self) -> Vec<String> {
        self.read(|sources| {
            let silent = |(url, said): &(String, Result<Source, String>)| {
                let why = said.as_ref().err()?;
                Some(if why.starts_with(url.as_str()) {
                    why.clone()
                } else {
                    format!("{url}: {why}")
                })
            };
            sources.urls.iter().filter_map(silent).collect()
        })
    }

    /// Refuses what clashes with a file or URL, which one change of the store can tell.
    pub(crate) fn refuse_clash(&self, regions: &[&Region], nodes: &[&Node]) -> Result<(), Problem> {
        let refuse = |fault: String| Err(Problem::new(Code::DerpMapConflict, fault));
        let sources = self.all();
        for node in nodes {
            let of = |source: &&Source| {
                let regions = source.map.regions.values();
                regions.flat_map(|region| &region.nodes).any(|known| known.name == node.name)
            };
            if let Some(source) = sources.iter().find(of) {
                let (name, place) = (&node.name, &source.place);
                return refuse(format!(
                    "node {name} is in {place} and in {STORE}; leave it in one"
                ));
            }
        }
        let regions = regions.iter().map(|region| {
            (region.region_id, MapRegion { region: (*region).clone(), nodes: Vec::new() })
        });
        let map = DerpMap { regions: regions.collect(), ..DerpMap::default() };
        let own = Source { place: STORE.into(), map };
        // One by one: that others contradict each other is no fault of this change.
        let clash = sources.iter().map(|source| refuse_clashes([source, &own]));
        clash.collect::<Result<(), _>>().or_else(|fault| refuse(fault.0))
    }

    /// The map in service, built anew if something changed.
    pub(crate) async fn current(&self, store: &dyn Store) -> Result<Arc<Published>, Problem> {
        let mut published = self.published.lock().await;
        // Taken before anything is read: a change meanwhile builds once more, never once too few.
        let now = (*store.revisions().borrow(), self.read(|sources| sources.generation));
        if let Some(current) = published.as_ref().filter(|current| current.built_from == now) {
            return Ok(Arc::clone(current));
        }
        let Records { regions, nodes, .. } = match (records(store).await, published.as_ref()) {
            (Ok(read), _) => read,
            // The last map serves until the store can be read again, and is built anew then.
            (Err(Problem { code: Code::StoreAway | Code::Busy, .. }), Some(last)) => {
                return Ok(Arc::clone(last));
            }
            (Err(problem), _) => return Err(problem),
        };
        let regions = regions.into_iter().map(|row| row.resource).collect();
        let nodes = nodes.into_iter().map(|row| row.resource).collect();
        let mut sources = self.all();
        sources.push(Source { place: STORE.into(), map: DerpMap::from_store(regions, nodes) });
        let (map, fault) = match (merge(sources), published.as_ref()) {
            (Ok(map), _) => (map, None),
            (Err(fault), Some(last)) => {
                tracing::warn!(%fault, "the DERP map stays as it was");
                (last.map.clone(), Some(fault.0))
            }
            (Err(fault), None) => return Err(Problem::new(Code::DerpMapUnavailable, fault.0)),
        };
        let served = self.read(|sources| match sources.failing.is_empty() {
            true => Cow::Borrowed(&map),
            false => Cow::Owned(map.without(&sources.failing)),
        });
        let left_out = match &served {
            Cow::Borrowed(_) => Vec::new(),
            Cow::Owned(served) => map.missing_in(served),
        };
        let bytes = Bytes::from(served.to_json());
        let etag = format!("\"{}\"", &digest_hex(&bytes)[..32]);
        let built = Published { built_from: now, map, left_out, bytes, etag, fault };
        let built = Arc::new(built);
        *published = Some(Arc::clone(&built));
        Ok(built)
    }

    /// Every source beside the store that has said something.
    fn all(&self) -> Vec<Source> {
        self.read(|sources| {
            let urls = sources.urls.iter().filter_map(|(_, said)| said.as_ref().ok());
            sources.files.iter().chain(urls).cloned().collect()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Sources) -> T) -> T {
        look(&self.sources.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, act: impl FnOnce(&mut Sources)) {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        act(&mut sources);
        sources.generation += 1;
        self.moved.send_replace(sources.generation);
    }

    /// Tells when files or URLs have said something else.
    pub(crate) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}

/// All regions and nodes of the store.
pub(crate) struct Records {
    pub(crate) regions: Vec<Row<Region>>,
    pub(crate) nodes: Vec<Row<Node>>,
    /// The store's revision when the first of them were read.
    pub(crate) seen: Revision,
}

pub(crate) async fn records(store: &dyn Store) -> Result<Records, Problem> {
    let (regions, seen) = every(store).await?;
    let (nodes, _) = every(store).await?;
    Ok(Records { regions, nodes, seen })
}

/// Every row of a kind, and the store's revision when the first were read.
pub(crate) async fn every<R: Resource>(
    store: &dyn Store,
) -> Result<(Vec<Row<R>>, Revision), Problem> {
    let (mut rows, mut seen) = (Vec::new(), None);
    let take = |records: Vec<_>, revision| {
        seen.get_or_insert(revision);
        for record in records {
            let row = Row::from_record(record);
            rows.push(row.map_err(|error| Problem::from(StoreFault::Broken(error.to_string())))?);
        }
        Ok(())
    };
    take_pages(store, R::KIND, None, usize::MAX, take).await?;
    Ok((rows, seen.unwrap_or_default()))
}

/// `GET /derpmap/default`: the map as Tailscale's clients, headscale and Coder take it.
pub(crate) async fn serve(
    State(control): State<Arc<Control>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let current = control.board.current(&*control.store).await.map_err(|problem| {
        // Where the sources are is not for strangers.
        let why = "the DERP map cannot be built; readyz tells those who may know why";
        match problem.code {
            Code::DerpMapUnavailable => Problem::new(Code::DerpMapUnavailable, why),
            _ => problem,
        }
    })?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let same = |tag: &str| tag.trim().trim_start_matches("W/") == current.etag || tag.trim() == "*";
    let mut answer = match known.is_some_and(|tags| tags.split(',').any(same)) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => current.bytes.clone().into_response(),
    };
    let answered = answer.headers_mut();
    answered.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answered.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=10"));
    if let Ok(etag) = HeaderValue::from_str(&current.etag) {
        answered.insert(header::ETAG, etag);
    }
    Ok(answer)
}
