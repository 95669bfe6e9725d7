//! `/api/v1`: list, create, read, replace and remove, the same for every kind.
//!
//! Owns how a request becomes a change and a record an answer: cursors, ETag and If-Match,
//! Idempotency-Key, problem details. What a kind means is in `resource`; what is special about
//! tokens and the DERP map is in `tokens` and `publish`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::Control;
use super::caller::{Caller, Carrier, Peer};
use super::listen::Visit;
use super::pages::take_pages;
use super::problem::{Code, Problem};
use crate::clock::{self, Stamp};
use crate::json;
use crate::resource::{
    self, FieldFault, NAME_LEN_MAX, Node, ROW_FIELDS, Region, Resource, Row, Scope,
};
use crate::store::{
    Applied, AuditEntry, Change, Kind, Once, Operation, PAGE_ROWS_MAX, Record, Revision,
    StoreFault, UnixS,
};
use crate::token::{digest_hex, new_id};

/// Rows of a page when nobody says.
const PAGE_ROWS: usize = 100;
/// Longest Idempotency-Key, in bytes.
const IDEMPOTENCY_KEY_MAX: usize = 255;
/// The header by which a repeated create is recognised.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Tells that an answer is that of an earlier, equal request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// One page of a list, as it is read; what lists rows writes the same form.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    /// The rows, in the order of their names.
    pub items: Vec<T>,
    /// Give this as `cursor` for the next page; there is none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// The store's revision at this look; watch from here.
    pub revision: Revision,
}

/// The routes of one kind.
pub(crate) fn routes<R: Resource>() -> Router<Arc<Control>> {
    let one = get(read::<R>).put(replace::<R>).delete(remove::<R>);
    Router::new()
        .route(&format!("/{}", R::PLURAL), get(list::<R>).post(create::<R>))
        .route(&format!("/{}/{{id}}", R::PLURAL), one)
}

/// The routes of tokens but for their making.
pub(crate) fn routes_but_create<R: Resource>(
    create: axum::routing::MethodRouter<Arc<Control>>,
) -> Router<Arc<Control>> {
    let one = get(read::<R>).put(replace::<R>).delete(remove::<R>);
    Router::new()
        .route(&format!("/{}", R::PLURAL), get(list::<R>).merge(create))
        .route(&format!("/{}/{{id}}", R::PLURAL), one)
}

/// What every handler needs of a request.
pub(crate) struct Ask {
    pub(crate) control: Arc<Control>,
    pub(crate) peer: Peer,
    pub(crate) headers: HeaderMap,
    /// The connection, if it is one over TCP.
    visit: Option<Arc<Visit>>,
}

impl FromRequestParts<Arc<Control>> for Ask {
    type Rejection = Problem;

    async fn from_request_parts(
        parts: &mut Parts,
        control: &Arc<Control>,
    ) -> Result<Self, Problem> {
        Self::of(control, &parts.headers, &parts.extensions)
            .ok_or_else(|| Problem::new(Code::Internal, "nobody knows who asks"))
    }
}

impl Ask {
    /// What a request with these headers and extensions has of it; `None` if no listener took it.
    pub(crate) fn of(
        control: &Arc<Control>,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Option<Self> {
        let peer = *extensions.get::<Peer>()?;
        let visit = extensions.get::<Arc<Visit>>().cloned();
        Some(Self { control: Arc::clone(control), peer, headers: headers.clone(), visit })
    }

    /// The caller, if they may do `wanted`.
    pub(crate) async fn admit(&self, wanted: Scope) -> Result<Caller, Problem> {
        self.admit_by(wanted, Carrier::Bearer).await
    }

    /// The same, of a token that may be where `carrier` says.
    pub(crate) async fn admit_by(
        &self,
        wanted: Scope,
        carrier: Carrier,
    ) -> Result<Caller, Problem> {
        let caller = self.control.admit(self.peer, &self.headers, wanted, carrier).await?;
        if let Some(visit) = &self.visit {
            visit.know();
        }
        Ok(caller)
    }

    /// Whether the caller may do `wanted`; that they may not is no failure of theirs.
    pub(crate) async fn is_from(&self, wanted: Scope) -> bool {
        let known = self.peer.is_local() || self.headers.contains_key(header::AUTHORIZATION);
        known && self.admit(wanted).await.is_ok()
    }

    /// The revision that If-Match names.
    pub(crate) fn expected(&self) -> Result<Option<Revision>, Problem> {
        let Some(value) = self.headers.get(header::IF_MATCH) else { return Ok(None) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(None);
        }
        let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let revision = number.and_then(|number| number.parse().ok()).map(Revision);
        let fault = || Problem::new(Code::BadRequest, "If-Match takes one ETag of ours, or *");
        revision.ok_or_else(fault).map(Some)
    }

    /// How a repetition of this request by `caller` is recognised.
    pub(crate) fn once(
        &self,
        caller: &Caller,
        plural: &str,
        body: &[u8],
    ) -> Result<Option<Once>, Problem> {
        let Some(value) = self.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
        let key = value.to_str().unwrap_or_default();
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX {
            let why = format!("Idempotency-Key takes 1 to {IDEMPOTENCY_KEY_MAX} ASCII characters");
            return Err(Problem::new(Code::BadRequest, why));
        }
        let key = format!("{} {plural} {key}", caller.actor);
        Ok(Some(Once { key, digest: digest_hex(body) }))
    }

    /// Carries out one operation.
    pub(crate) async fn apply(
        &self,
        caller: Caller,
        operation: Operation,
        once: Option<Once>,
    ) -> Result<(Record, bool), Problem> {
        let change = Change {
            actor: caller.actor,
            now: clock::now(),
            operations: vec![operation],
            once,
            unchanged: None,
        };
        let Applied { mut records, replayed } = self.control.store.apply(change).await?;
        let gone = || Problem::new(Code::Replayed, "it was made before, and removed since");
        Ok((records.pop().ok_or_else(gone)?, replayed))
    }
}

/// A resource out of a body. Fields that only the server sets may stand in it and are passed over.
pub(crate) fn parse<R: Resource>(headers: &HeaderMap, body: &Bytes) -> Result<R, Problem> {
    let mut value: Value = read_json(headers, body)?;
    let fields = value.as_object_mut();
    let fields =
        fields.ok_or_else(|| Problem::new(Code::BadRequest, "send an object of fields, {...}"))?;
    for field in ROW_FIELDS {
        fields.remove(field);
    }
    let mut resource: R = json::read(value).map_err(|why| Problem::new(Code::BadRequest, why))?;
    resource.check()?;
    Ok(resource)
}

/// A body as JSON.
pub(crate) fn read_json(headers: &HeaderMap, body: &Bytes) -> Result<Value, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let why = "send Content-Type: application/json";
        return Err(Problem::new(Code::UnsupportedMediaType, why));
    }
    json::parse(body).map_err(|why| Problem::new(Code::BadRequest, why))
}

/// The answer that shows one row.
pub(crate) fn show(status: StatusCode, revision: Revision, row: &impl Serialize) -> Response {
    let mut answer = (status, axum::Json(row)).into_response();
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    answer
}

/// A living record as its row.
pub(crate) fn row<R: Resource>(record: Record) -> Result<Row<R>, Problem> {
    Row::from_record(record).map_err(|error| StoreFault::Broken(error.to_string()).into())
}

/// What the path's last word names: an id, or else a name.
pub(crate) async fn named<R: Resource>(control: &Control, word: &str) -> Result<Record, Problem> {
    let missing = || {
        let word: String = word.chars().take(2 * NAME_LEN_MAX + 1).collect();
        Problem::new(Code::NotFound, format!("there is no {} {word:?}", R::KIND.word()))
    };
    let by_id = control.store.read(R::KIND, word.to_owned()).await?;
    let found = match by_id {
        Some(record) => Some(record),
        None => control.store.find(R::KIND, R::name_by(word)).await?,
    };
    found.ok_or_else(missing)
}

/// The parameters of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParameters {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Query parameters, or a problem that says which is wrong.
pub(crate) fn parameters<T>(
    query: Result<Query<T>, axum::extract::rejection::QueryRejection>,
) -> Result<T, Problem> {
    match query {
        Ok(Query(parameters)) => Ok(parameters),
        Err(rejection) => {
            let text = rejection.body_text();
            let why = text.rsplit("query string: ").next().unwrap_or(&text);
            Err(Problem::new(Code::BadRequest, format!("the query: {}", json::in_words(why))))
        }
    }
}

fn page_rows(limit: Option<usize>) -> Result<usize, Problem> {
    let rows = limit.unwrap_or(PAGE_ROWS);
    let why = || format!("limit takes 1 to {PAGE_ROWS_MAX}");
    if (1..=PAGE_ROWS_MAX).contains(&rows) {
        Ok(rows)
    } else {
        Err(Problem::new(Code::BadRequest, why()))
    }
}

async fn list<R: Resource>(
    ask: Ask,
    query: Result<Query<ListParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    ask.admit(R::READ).await?;
    let parameters = parameters(query)?;
    let cursor = |text: String| {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let name = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        name.filter(|name| !name.is_empty())
            .ok_or_else(|| Problem::new(Code::BadRequest, "cursor is none of ours"))
    };
    let after = parameters.cursor.map(cursor).transpose()?;
    let limit = page_rows(parameters.limit)?;
    // Written as they come, so that a long listing takes little more memory than its text. The
    // revision is that of the first look: who watches from there is told what came later.
    let (mut body, mut revision, mut first) = (b"{\"items\":[".to_vec(), None, true);
    let shown = Shown::new(&ask.control, R::KIND).await?;
    let take = |records: Vec<Record>, of| {
        revision.get_or_insert(of);
        for record in records {
            if !std::mem::take(&mut first) {
                body.push(b',');
            }
            append(&mut body, &shown.row(record));
        }
        Ok(())
    };
    let more = take_pages(&*ask.control.store, R::KIND, after, limit, take).await?;
    body.push(b']');
    if let Some(name) = more {
        body.extend_from_slice(b",\"next_cursor\":");
        append(&mut body, &json!(BASE64_URL_SAFE_NO_PAD.encode(name)));
    }
    body.extend_from_slice(b",\"revision\":");
    append(&mut body, &json!(revision));
    body.push(b'}');
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn append(body: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(body, value).expect("memory takes it, and a value has a JSON form");
}

/// Living records as their rows, without a detour over their types; tokens with when they were used
/// last, satellites with how they are.
struct Shown<'a> {
    control: &'a Arc<Control>,
    /// When tokens were used last, by id.
    uses: HashMap<String, UnixS>,
    now: Instant,
}

impl<'a> Shown<'a> {
    /// For records of `kind`.
    async fn new(control: &'a Arc<Control>, kind: Kind) -> Result<Self, Problem> {
        let mut uses = HashMap::new();
        if kind == Kind::Token {
            control.note_uses().await;
            uses.extend(control.store.token_uses().await?);
        }
        Ok(Self { control, uses, now: Instant::now() })
    }

    fn row(&self, record: Record) -> Value {
        let status = (record.kind == Kind::Satellite)
            .then(|| ("status", json!(self.control.satellites.status(&record.id, self.now))));
        let used = self.uses.get(&record.id).map(|at| ("last_used_at", json!(Stamp(*at))));
        let mut row = resource::shown(record.kind, record.body.unwrap_or_default());
        if let Some(fields) = row.as_object_mut() {
            let own = [
                ("id", json!(record.id)),
                ("revision", json!(record.revision)),
                ("created_at", json!(Stamp(record.created_at))),
                ("updated_at", json!(Stamp(record.updated_at))),
            ];
            let all = own.into_iter().chain(used).chain(status);
            fields.extend(all.map(|(name, value)| (name.to_owned(), value)));
        }
        row
    }
}

async fn create<R: Resource>(ask: Ask, body: Bytes) -> Result<Response, Problem> {
    let caller = ask.admit(R::WRITE).await?;
    let resource: R = parse(&ask.headers, &body)?;
    refuse_clash(&ask.control, &resource)?;
    let once = ask.once(&caller, R::PLURAL, &body)?;
    let draft = resource.draft();
    let operation = Operation::Create { kind: R::KIND, id: new_id(), draft, mark: None };
    let (record, replayed) = ask.apply(caller, operation, once).await?;
    if record.body.is_none() {
        return Err(Problem::new(Code::Replayed, "it was made before, and removed since"));
    }
    let id = record.id.clone();
    let mut answer = show_one(&ask.control, StatusCode::CREATED, record).await?;
    created_headers(answer.headers_mut(), R::PLURAL, &id, replayed);
    Ok(answer)
}

/// Where a new record is, and whether it is new at all.
pub(crate) fn created_headers(headers: &mut HeaderMap, plural: &str, id: &str, replayed: bool) {
    if let Ok(location) = HeaderValue::from_str(&format!("/api/v1/{plural}/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
}

/// Refuses a region or node that a file or URL has already.
fn refuse_clash<R: Resource>(control: &Control, resource: &R) -> Result<(), Problem> {
    let resource: &dyn std::any::Any = resource;
    match (resource.downcast_ref::<Region>(), resource.downcast_ref::<Node>()) {
        (Some(region), _) => control.board.refuse_clash(&[region], &[]),
        (_, Some(node)) => control.board.refuse_clash(&[], &[node]),
        (None, None) => Ok(()),
    }
}

async fn read<R: Resource>(ask: Ask, Path(word): Path<String>) -> Result<Response, Problem> {
    ask.admit(R::READ).await?;
    let record = named::<R>(&ask.control, &word).await?;
    show_one(&ask.control, StatusCode::OK, record).await
}

/// The answer that shows one living record.
async fn show_one(
    control: &Arc<Control>,
    status: StatusCode,
    record: Record,
) -> Result<Response, Problem> {
    let revision = record.revision;
    let row = Shown::new(control, record.kind).await?.row(record);
    Ok(show(status, revision, &row))
}

async fn replace<R: Resource>(
    ask: Ask,
    Path(word): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    let caller = ask.admit(R::WRITE).await?;
    let expected = ask.expected()?;
    let mut resource: R = parse(&ask.headers, &body)?;
    refuse_clash(&ask.control, &resource)?;
    let old = row::<R>(named::<R>(&ask.control, &word).await?)?;
    refuse_rename(&resource, &old.resource)?;
    resource.keep(&old.resource, clock::now());
    let draft = resource.draft();
    let operation = Operation::Replace { kind: R::KIND, id: old.id, expected, draft };
    let (record, _) = ask.apply(caller, operation, None).await?;
    show_one(&ask.control, StatusCode::OK, record).await
}

/// Refuses another name where relays know the record by its name.
fn refuse_rename<R: Resource>(new: &R, old: &R) -> Result<(), Problem> {
    match R::FIXED {
        Some(field) if new.name() != old.name() => {
            let why = format!("is {} for good; remove it and make another", old.name());
            Err(FieldFault::new(field, why).into())
        }
        Some(_) | None => Ok(()),
    }
}

async fn remove<R: Resource>(ask: Ask, Path(word): Path<String>) -> Result<StatusCode, Problem> {
    let caller = ask.admit(R::WRITE).await?;
    let expected = ask.expected()?;
    let Record { id, .. } = named::<R>(&ask.control, &word).await?;
    let operation = Operation::Remove { kind: R::KIND, id, expected };
    ask.apply(caller, operation, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The parameters of the audit log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditParameters {
    limit: Option<usize>,
    before: Option<Revision>,
}

/// The latest entries of the audit log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditListing {
    /// The entries, the newest first.
    pub items: Vec<AuditEntry>,
}

/// `GET /api/v1/audit`.
pub(crate) async fn audit(
    ask: Ask,
    query: Result<Query<AuditParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<axum::Json<AuditListing>, Problem> {
    ask.admit(Scope::Admin).await?;
    let parameters = parameters(query)?;
    let limit = page_rows(parameters.limit)?;
    let items = ask.control.store.audit(parameters.before, limit).await?;
    Ok(axum::Json(AuditListing { items }))
}
