//! Signs of life: what a registered satellite signed is taken, and tells that it is there.
//!
//! Owns the look from a key's fingerprint to its satellite, the memory of what was heard, and the
//! refusal of replays. All of it goes with the process: the nonces of its requests begin with a word
//! of its own, so that what an earlier process or another one took counts nothing here. Keys follow
//! the store at each request, so that a removed satellite ends at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::{Engine, prelude::BASE64_STANDARD};
use steer::satellite::{ALIVE_EVERY_S, Alive, INSTANCE, Known};
use steer::signature::{DIGEST_LEN, Fields, Refusal, Request, SKEW_S, Signature, read};

use super::Control;
use super::api::{Ask, read_json};
use super::map::every;
use super::problem::{Code, Problem};
use crate::clock::{self, Stamp};
use crate::json;
use crate::resource::{
    FieldFault, Resource, Row, Satellite, SatelliteState, SatelliteStatus, access_url, check_text,
};
use crate::store::{
    Change, Kind, Operation, PAGE_ROWS_MAX, Record, Revision, Store, StoreFault, UnixS,
};
use crate::token::new_id;

/// A satellite that was not heard for so long, three signs of life, is silent.
const SILENT_AFTER: Duration = Duration::from_secs(3 * ALIVE_EVERY_S);
/// Requests of one satellite that are remembered; more within their time are refused.
const NONCES_MAX: usize = 64;
/// Longest version, in bytes.
const VERSION_LEN_MAX: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Satellites {
    /// The word of this process.
    instance: String,
    keys: tokio::sync::Mutex<Keys>,
    seen: Mutex<Memory>,
    /// The hosts by which satellites reach us, as they sign them; any, if empty.
    authorities: Vec<String>,
}

#[derive(Debug, Default)]
struct Memory {
    /// What was heard, by the satellite's id.
    by_id: HashMap<String, Seen>,
    /// Nonces of satellites that are gone: their keys may come back sooner than their requests are
    /// too old.
    gone: VecDeque<(UnixS, String)>,
}

/// What was heard of a satellite.
#[derive(Debug, Default)]
struct Seen {
    /// What it said last.
    last: Option<Heard>,
    /// Nonces of requests that still count, each with the second after which it does not.
    nonces: VecDeque<(UnixS, String)>,
}

/// A sign of life.
#[derive(Clone, Debug)]
struct Heard {
    alive: Alive,
    /// When, for people.
    at: UnixS,
    /// When, for telling how long ago: the host's clock may jump.
    when: Instant,
}

/// Every key that counts, as of one revision of the store.
#[derive(Debug, Default)]
struct Keys {
    upto: Revision,
    /// Whose a key is and how long it counts, by its fingerprint.
    owners: HashMap<String, Owner>,
    /// The fingerprints of each satellite, by its id.
    held: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
struct Owner {
    row: Arc<Row<Satellite>>,
    public_key: String,
    /// For the key before a rotation.
    until: Option<UnixS>,
}

impl Satellites {
    pub(crate) fn new(authorities: Vec<String>) -> Self {
        let (keys, seen) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { instance: new_id(), keys, seen, authorities }
    }

    /// Whether a request was signed for us, and not for another who has the same satellite.
    fn check_authority(&self, authority: &str) -> Result<(), Problem> {
        let is_ours = |known: &String| known.eq_ignore_ascii_case(authority);
        match self.authorities.is_empty() || self.authorities.iter().any(is_ours) {
            true => Ok(()),
            false => {
                let why = format!("{authority:?} is none of the hosts of --authority");
                Err(Problem::new(Code::SignatureRejected, why))
            }
        }
    }

    /// What is known of the satellite with this id.
    pub(crate) fn status(&self, id: &str, now: Instant) -> SatelliteStatus {
        let seen = self.seen();
        let Some(Heard { alive, at, when }) = seen.by_id.get(id).and_then(|seen| seen.last.clone())
        else {
            return SatelliteStatus::default();
        };
        let is_silent = now.saturating_duration_since(when) > SILENT_AFTER;
        let state = if is_silent { SatelliteState::Silent } else { SatelliteState::Up };
        let Alive { version, access_url } = alive;
        SatelliteStatus { state, seen_at: Some(Stamp(at)), version: Some(version), access_url }
    }

    /// The satellite that made one of `signatures`.
    async fn signer(
        &self,
        store: &dyn Store,
        signatures: Vec<Signature>,
        now: UnixS,
    ) -> Result<(Owner, Signature), Problem> {
        let mut keys = self.keys.lock().await;
        for gone in keys.follow(store).await? {
            self.forget(&gone);
        }
        let known = signatures.into_iter().find_map(|signature| {
            let owner = keys.owners.get(&signature.keyid);
            let owner = owner.filter(|owner| owner.until.is_none_or(|until| now < until))?;
            Some((owner.clone(), signature))
        });
        drop(keys);
        let why = "no satellite is registered with this key; register it with control satellites \
                   create";
        let (owner, signature) = known.ok_or_else(|| Problem::new(Code::SignatureRejected, why))?;
        let key = BASE64_STANDARD.decode(&owner.public_key).unwrap_or_default();
        let made = UnparsedPublicKey::new(&ED25519, key)
            .verify(signature.base.as_bytes(), &signature.bytes);
        let why = "the signature is not that of the key it names, or not of this request";
        made.map_err(|_| Problem::new(Code::SignatureRejected, why))?;
        Ok((owner, signature))
    }

    /// Notes a request, once.
    fn note(&self, id: &str, signature: &Signature, now: UnixS) -> Result<(), Problem> {
        let is_ours = signature
            .nonce
            .strip_prefix(&self.instance)
            .is_some_and(|rest| rest.strip_prefix('.').is_some_and(|own| !own.is_empty()));
        if !is_ours {
            let why = "begin the nonce with what Perigee-Instance says, and a dot";
            return Err(Problem::new(Code::WrongInstance, why));
        }
        let mut memory = self.seen();
        let Memory { by_id, gone } = &mut *memory;
        let seen = by_id.entry(id.to_owned()).or_default();
        seen.nonces.retain(|(until, _)| *until >= now);
        gone.retain(|(until, _)| *until >= now);
        if seen.nonces.iter().chain(&*gone).any(|(_, nonce)| *nonce == signature.nonce) {
            return Err(Problem::new(Code::Replayed, "this request was taken before"));
        }
        if seen.nonces.len() == NONCES_MAX {
            return Err(Problem::new(Code::Busy, "this satellite sends too much; send it later"));
        }
        seen.nonces.push_back((signature.expires + SKEW_S, signature.nonce.clone()));
        Ok(())
    }

    fn hear(&self, id: &str, alive: Alive, at: UnixS, when: Instant) {
        let heard = Heard { alive, at, when };
        self.seen().by_id.entry(id.to_owned()).or_default().last = Some(heard);
    }

    /// Forgets a satellite that is gone, but for the requests it has made.
    fn forget(&self, id: &str) {
        let mut memory = self.seen();
        if let Some(seen) = memory.by_id.remove(id) {
            memory.gone.extend(seen.nonces);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Memory> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// Takes in what has changed in the store; the ids of satellites that are gone come back.
    async fn follow(&mut self, store: &dyn Store) -> Result<Vec<String>, StoreFault> {
        let mut gone = Vec::new();
        loop {
            let changes = store.changes(self.upto, PAGE_ROWS_MAX).await?;
            if changes.reset {
                gone.extend(std::mem::take(self).held.into_keys());
            }
            let more = changes.records.len() >= PAGE_ROWS_MAX;
            for record in changes.records {
                if record.kind == Kind::Satellite {
                    gone.extend(self.take(record));
                }
            }
            self.upto = changes.upto;
            if !more {
                gone.retain(|id| !self.held.contains_key(id));
                return Ok(gone);
            }
        }
    }

    /// Takes in a satellite as it is now; its id comes back if it is gone.
    fn take(&mut self, record: Record) -> Option<String> {
        for fingerprint in self.held.remove(&record.id).unwrap_or_default() {
            // Another satellite may have taken the key over within the same look.
            if self.owners.get(&fingerprint).is_some_and(|owner| owner.row.id == record.id) {
                self.owners.remove(&fingerprint);
            }
        }
        let id = record.id.clone();
        if record.body.is_none() {
            return Some(id);
        }
        // Only another program can have written what is no satellite.
        let row = Arc::new(Row::<Satellite>::from_record(record).ok()?);
        let Satellite { public_key, fingerprint, old_key, .. } = &row.resource;
        let own = (fingerprint.clone(), public_key.clone(), None);
        let old = old_key
            .iter()
            .map(|old| (old.fingerprint.clone(), old.public_key.clone(), Some(old.until.0)));
        for (fingerprint, public_key, until) in std::iter::once(own).chain(old) {
            let owner = Owner { row: Arc::clone(&row), public_key, until };
            self.owners.insert(fingerprint.clone(), owner);
            self.held.entry(id.clone()).or_default().push(fingerprint);
        }
        None
    }
}

/// `POST /api/private/satellites/me`.
pub(crate) async fn alive(ask: Ask, method: Method, uri: Uri, body: Bytes) -> Response {
    let content_sha256 = sha256(&body);
    let host = ask.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let request = Request {
        method: method.as_str(),
        authority: host.unwrap_or_default(),
        path: uri.path(),
        query: uri.query().unwrap_or_default(),
        content_sha256: &content_sha256,
    };
    let mut answer = match heard(&ask, &request, &body).await {
        Ok(known) => {
            ask.control.counters.satellite_reports.add(1);
            Json(known).into_response()
        }
        Err(problem) => {
            ask.control.counters.satellite_refusals.add(1);
            problem.into_response()
        }
    };
    if let Ok(word) = HeaderValue::from_str(&ask.control.satellites.instance) {
        answer.headers_mut().insert(INSTANCE, word);
    }
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

async fn heard(ask: &Ask, request: &Request<'_>, body: &Bytes) -> Result<Known, Problem> {
    let now = clock::now();
    let signatures = read(request, &fields(&ask.headers)?)?;
    for signature in &signatures {
        signature.check_time(now)?;
    }
    let satellites = &ask.control.satellites;
    satellites.check_authority(request.authority)?;
    let store = &*ask.control.store;
    let (owner, signature) = satellites.signer(store, signatures, now).await?;
    satellites.note(&owner.row.id, &signature, now)?;
    let alive = json::read(read_json(&ask.headers, body)?)
        .map_err(|why| Problem::new(Code::BadRequest, why))?;
    let alive = checked(alive)?;
    if let Some(url) =
        alive.access_url.as_ref().filter(|_| owner.row.resource.access_url.is_empty())
    {
        learn(&ask.control, &owner.row, url, now).await;
    }
    satellites.hear(&owner.row.id, alive, now, Instant::now());
    let Satellite { name, fingerprint, .. } = &owner.row.resource;
    Ok(Known { name: name.clone(), fingerprint: fingerprint.clone() })
}

/// Forgets keys of before a rotation whose time is over: until then nobody else may register them.
pub(crate) async fn forget_old_keys(store: &dyn Store, now: UnixS) -> Result<(), Problem> {
    for row in every::<Satellite>(store).await?.0 {
        let old = row.resource.old_key.as_ref();
        if old.is_none_or(|old| now < old.until.0) {
            continue;
        }
        let satellite = Satellite { old_key: None, ..row.resource };
        let operation = Operation::Replace {
            kind: Satellite::KIND,
            id: row.id,
            expected: Some(row.revision),
            draft: satellite.draft(),
        };
        let (actor, operations) = ("control".to_owned(), vec![operation]);
        let change = Change { actor, now, operations, once: None, unchanged: None };
        match store.apply(change).await {
            // Somebody has changed or removed it, and with that it is forgotten, too.
            Ok(_) | Err(StoreFault::Stale { .. } | StoreFault::Gone { .. }) => {}
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(())
}

/// Writes where a satellite is reached that was registered without: the v1 command line does not say.
async fn learn(control: &Arc<Control>, row: &Row<Satellite>, url: &str, now: UnixS) {
    let satellite = Satellite { access_url: url.to_owned(), ..row.resource.clone() };
    let operation = Operation::Replace {
        kind: Satellite::KIND,
        id: row.id.clone(),
        expected: Some(row.revision),
        draft: satellite.draft(),
    };
    let actor = format!("satellite:{}", satellite.name);
    let change = Change { actor, now, operations: vec![operation], once: None, unchanged: None };
    match control.store.apply(change).await {
        // Somebody was faster, and has said where it is, or the next sign of life will.
        Ok(_) | Err(StoreFault::Stale { .. }) => {}
        Err(fault) => tracing::warn!(%fault, "where a satellite is reached could not be written"),
    }
}

fn checked(mut alive: Alive) -> Result<Alive, FieldFault> {
    check_text("version", &alive.version)?;
    if alive.version.is_empty() || alive.version.len() > VERSION_LEN_MAX {
        return Err(FieldFault::new("version", format!("takes 1 to {VERSION_LEN_MAX} bytes")));
    }
    if let Some(url) = &mut alive.access_url {
        *url = access_url("access_url", url)?;
    }
    Ok(alive)
}

/// The header fields of a signature, each of which stands there once.
fn fields(headers: &HeaderMap) -> Result<Fields, Refusal> {
    let one = |name: &str| {
        let mut found = headers.get_all(name).iter();
        let text = found.next().and_then(|value| value.to_str().ok());
        let text = text.filter(|_| found.next().is_none()).map(str::to_owned);
        text.ok_or(Refusal::Malformed(
            "Content-Digest, Signature-Input and Signature must stand there, once each",
        ))
    };
    Ok(Fields {
        content_digest: one("content-digest")?,
        signature_input: one("signature-input")?,
        signature: one("signature")?,
    })
}

fn sha256(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    let mut sha256 = [0; DIGEST_LEN];
    sha256.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sha256
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Malformed(_) | Refusal::Altered => Code::SignatureRejected,
            Refusal::Late { .. } | Refusal::Early { .. } => Code::ClockApart,
        };
        Self::new(code, refusal.to_string())
    }
}

#[cfg(test)]
mod tests;
