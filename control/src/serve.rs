//! `control serve`: the store, the DERP map and the API behind a unix socket and a TCP port.
//!
//! Owns [`run`], from settings to the end by a signal, and what all handlers share. It must start
//! without anything outside of the host. Everything it does beside answering is here: fetching maps,
//! writing down when tokens were used, compacting the store.

mod api;
mod caller;
pub(crate) mod counters;
mod dataplanes;
mod health;
pub(crate) mod listen;
mod map;
pub mod openapi;
mod pages;
pub mod prober;
pub mod problem;
mod publish;
mod reload;
mod satellites;
mod status;
mod tokens;
mod v1;
mod verify;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval_at, sleep};

use crate::clock;
use crate::config::Checked;
use crate::derp_map::MAP_BYTES_MAX;
use crate::fault::OperatorFault;
use crate::probe::Identity;
use crate::resource::{
    Certificate, Client, Link, Node, Peer, Policy, Region, Satellite, Scope, Token,
};
use crate::steering::{self, Steering};
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::{SqliteStore, make_folder};
use crate::store::{BODY_BYTES_MAX, Store, UnixS};
use api::Ask;
use counters::Counters;
use health::StoreLook;
use map::Board;
use prober::Prober;
use problem::{Code, Problem};
use satellites::Satellites;
use status::StatusPage;
use steer::NodeKey;
use steer::satellite::{ALIVE_BYTES_MAX, ALIVE_PATH};
use v1::V1Problem;

pub use api::{AuditListing, Listing};
pub use dataplanes::DataplaneListing;
pub(crate) use health::MAP_REASON;
pub use publish::{MapState, Published};
pub use reload::Reloaded;
pub use tokens::NewToken;
pub use watch::WatchEvent;

/// Time for a request, from its head to the head of the answer.
const REQUEST: Duration = Duration::from_secs(30);
/// Watch streams at a time.
pub(crate) const WATCHES_MAX: usize = 256;
/// How often the times of tokens' last uses are written.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// How often the store is compacted, and once at start.
const COMPACT_EVERY: Duration = Duration::from_secs(3600);
/// When aws-lc is asked for its first random bytes, for which it measures the processor's jitter for
/// 40 ms: a handshake would wait for that, and all else with it.
const WARM_AFTER: Duration = Duration::from_secs(1);

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) board: Board,
    pub(crate) prober: Prober,
    pub(crate) status: StatusPage,
    pub(crate) store_look: StoreLook,
    pub(crate) counters: Counters,
    pub(crate) satellites: Satellites,
    /// When tokens were used, by id, as far as it is not written yet.
    pub(crate) uses: Mutex<HashMap<String, UnixS>>,
    pub(crate) watches: Arc<Semaphore>,
    pub(crate) steering: Arc<Steering>,
    /// Who may ask for admissions; everybody, if empty.
    pub(crate) verify_allow: Vec<IpNet>,
    /// True once control is to end.
    pub(crate) stop: channel::Receiver<bool>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the start fails; once control serves, faults are answered, logged and counted.
pub async fn run(checked: Checked) -> Result<(), OperatorFault> {
    let board = Board::new(checked.derp_map_files.clone(), checked.derp_map_urls.clone())?;
    let (store, place) = open(&checked).await?;
    let (stopper, stop) = channel::channel(false);
    let identity = Identity::of_store(&store.secret()).map_err(OperatorFault::failed)?;
    let prober_key = NodeKey(identity.public());
    let door = checked.steer.tls.clone().map(steering::Door::open).transpose()?;
    let steering = Arc::new(Steering::new(Arc::clone(&store), door, prober_key, stop.clone()));
    let control = Arc::new(Control {
        store,
        steering,
        board,
        prober: Prober::new(&checked, identity),
        status: StatusPage::default(),
        store_look: StoreLook::default(),
        counters: Counters::default(),
        satellites: Satellites::new(checked.authorities.clone()),
        uses: Mutex::default(),
        watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        verify_allow: checked.verify_allow.clone(),
        stop,
    });
    let listeners = listen::bind(&checked).await?;
    let dataplanes = steering::bind(&checked.steer).await?;
    let no_signals = |error: std::io::Error| OperatorFault::failed(format!("signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    tracing::info!(
        listen = %listeners.tcp_names(),
        socket = %checked.socket.display(),
        steer = %dataplanes.names(),
        state = place,
        revision = %*control.store.revisions().borrow(),
        "control ready"
    );
    let chores = tokio::spawn(chores(Arc::clone(&control)));
    // Beside the loop, which is to hear of the end while maps are fetched. Those who ask meanwhile
    // get one more reload together.
    let reloads = tokio::spawn({
        let control = Arc::clone(&control);
        async move {
            while hangup.recv().await.is_some() {
                // What is wrong is in the log.
                let _ = control.reload().await;
            }
        }
    });
    let probes = tokio::spawn(prober::run(Arc::clone(&control)));
    let serving = tokio::spawn(listeners.serve(Arc::clone(&control), router(&control)));
    let steering = tokio::spawn(dataplanes.serve(Arc::clone(&control.steering)));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("control stops");
    stopper.send_replace(true);
    reloads.abort();
    chores.abort();
    probes.abort();
    // A task that panicked has said so in the log; there is nothing left to do for it.
    let (_, _) = (serving.await, steering.await);
    control.note_uses().await;
    Ok(())
}

/// The store, and where it is.
async fn open(checked: &Checked) -> Result<(Arc<dyn Store>, String), OperatorFault> {
    match &checked.database {
        Some(target) => {
            let store = PostgresStore::open(target.clone()).await?;
            let steer = checked.steer.socket.as_deref();
            if steer.is_some_and(|socket| socket.starts_with(&checked.state_dir)) {
                make_folder(&checked.state_dir)?;
            }
            Ok((Arc::new(store), target.to_string()))
        }
        None => {
            let store = SqliteStore::open(&checked.state_dir)?;
            Ok((Arc::new(store), checked.state_dir.display().to_string()))
        }
    }
}

/// What is done from time to time.
async fn chores(control: Arc<Control>) {
    let mut note = tokio::time::interval(NOTE_EVERY);
    let mut compact = tokio::time::interval(COMPACT_EVERY);
    let mut fetch = tokio::time::interval(map::FETCH_EVERY);
    // Neither is to keep anybody waiting who waits for the start.
    let mut forget = interval_at(Instant::now() + COMPACT_EVERY, COMPACT_EVERY);
    let warm = sleep(WARM_AFTER);
    tokio::pin!(warm);
    let mut is_cold = true;
    loop {
        tokio::select! {
            _ = note.tick() => control.note_uses().await,
            _ = compact.tick() => tidy(&*control.store).await,
            // What is wrong is in the log.
            _ = fetch.tick() => drop(control.board.fetch().await),
            _ = forget.tick() => forget_old_keys(&*control.store).await,
            () = &mut warm, if is_cold => {
                is_cold = false;
                // Where it fails, so do handshakes, which say so.
                drop(spawn_blocking(|| aws_lc_rs::rand::fill(&mut [0; 1])));
            }
        }
    }
}

/// Compacts the store, if this control is the one to do it.
async fn tidy(store: &dyn Store) {
    if store.leads()
        && let Err(fault) = store.compact(clock::now()).await
    {
        tracing::warn!(%fault, "the store could not be compacted");
    }
}

/// Gives back keys of satellites that count no more, if this control is the one to do it.
async fn forget_old_keys(store: &dyn Store) {
    if store.leads()
        && let Err(problem) = satellites::forget_old_keys(store, clock::now()).await
    {
        tracing::warn!(why = problem.detail, "old keys of satellites could not be forgotten");
    }
}

fn router(control: &Arc<Control>) -> Router {
    let v1_api = Router::new()
        .merge(api::routes::<Satellite>())
        .merge(api::routes::<Region>())
        .merge(api::routes::<Node>())
        .merge(api::routes::<Peer>())
        .merge(api::routes::<Link>())
        .merge(api::routes::<Client>())
        .merge(api::routes::<Policy>())
        .merge(api::routes::<Certificate>())
        .merge(api::routes_but_create::<Token>(post(tokens::create)))
        .route("/dataplanes", get(dataplanes::list))
        .route("/audit", get(api::audit))
        .route("/health", get(prober::list))
        .route("/watch", get(watch::watch))
        .route("/reload", post(reload::serve))
        .route("/openapi.json", get(openapi::serve))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(
            Router::new()
                .route("/derpmap", get(publish::read).put(publish::publish))
                .layer(DefaultBodyLimit::max(MAP_BYTES_MAX)),
        );
    let alive = post(satellites::alive).layer(DefaultBodyLimit::max(ALIVE_BYTES_MAX));
    let satellites = get(v1::list).post(v1::create);
    Router::new()
        .nest("/api/v1", v1_api)
        .route("/api/v0/users/me", get(v1::me))
        .route("/api/users/me", get(v1::me))
        .route("/api/private/users/me", get(v1::me))
        .route("/api/private/satellites", satellites)
        .route(ALIVE_PATH, alive)
        .route("/api/private/satellites/{id}", axum::routing::delete(v1::remove))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .route("/derpmap/default", get(map::serve))
        .merge(
            Router::new()
                .route("/verify", post(verify::verify))
                .layer(DefaultBodyLimit::max(verify::ASKED_BYTES_MAX)),
        )
        .route("/", get(status::page))
        .route("/status", get(status::page))
        .route("/status.json", get(status::json))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn_with_state(Arc::clone(control), around))
        .with_state(Arc::clone(control))
}

/// Around every request: its time, its count, and refusals of the framework in our form.
async fn around(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let asker = body_asker(&control, &request);
    let v1 = v1::is_asked(request.uri().path());
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let is_addressed = request.version() != Version::HTTP_11 || hosts == 1;
    let answer = async {
        if !is_addressed {
            return Problem::new(Code::BadRequest, "send one Host header").into_response();
        }
        // A stranger is refused before the body is read, which may be large.
        if let Some(ask) = asker
            && let Err(problem) = ask.admit(Scope::Read).await
        {
            return problem.into_response();
        }
        next.run(request).await
    };
    let answer = match tokio::time::timeout(REQUEST, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            control.counters.timeouts.add(1);
            Problem::new(Code::TimedOut, "this took too long; nothing is known of its outcome")
                .into_response()
        }
    };
    let answer = in_our_form(answer, v1);
    let class = usize::from(answer.status().as_u16() / 100);
    if let Some(counter) = class.checked_sub(1).and_then(|at| control.counters.answers.get(at)) {
        counter.add(1);
    }
    answer
}

/// Who sends a body to the API.
fn body_asker(control: &Arc<Control>, request: &Request) -> Option<Ask> {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if reads || !request.uri().path().starts_with("/api/v1/") {
        return None;
    }
    Ask::of(control, request.headers(), request.extensions())
}

/// An answer that axum itself made of a fault, as problem details, or as the v1 command line reads it.
fn in_our_form(answer: Response, v1: bool) -> Response {
    let status = answer.status();
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !status.is_client_error() || kind.is_some_and(|kind| kind.contains("json")) {
        return answer;
    }
    let (code, why) = match status {
        StatusCode::NOT_FOUND => (Code::NotFound, "there is no such path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            (Code::MethodNotAllowed, "this path takes other methods; see Allow")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            (Code::TooLarge, "the body is larger than this path takes")
        }
        _ => (Code::BadRequest, "the request cannot be read"),
    };
    let allow = answer.headers().get(header::ALLOW).cloned();
    let problem = Problem::new(code, why);
    let mut answer = match v1 {
        true => V1Problem::from(problem).into_response(),
        false => problem.into_response(),
    };
    if let Some(allow) = allow {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    answer
}
