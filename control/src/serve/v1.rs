//! The four routes by which the command line of Coder v1 manages satellites, unmodified.
//!
//! It sends its session token, which is one of our API tokens with the scope `register`, as a cookie
//! or a header, and reads errors as `{"error":{"msg"}}`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use steer::satellite::ALIVE_PATH;

use super::api::{Ask, named, row};
use super::caller::{Caller, Carrier};
use super::problem::{Code, Problem};
use crate::json;
use crate::resource::{Resource, Row, Satellite, Scope};
use crate::store::{Operation, PAGE_ROWS_MAX, Query};
use crate::token::new_id;

/// A refusal in the v1 command line's words.
pub(crate) struct V1Problem(Problem);

impl<P: Into<Problem>> From<P> for V1Problem {
    fn from(problem: P) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for V1Problem {
    fn into_response(self) -> Response {
        (self.0.status(), Json(json!({"error": {"msg": self.0.detail}}))).into_response()
    }
}

/// Whether a path is one that the v1 command line asks.
pub(crate) fn is_asked(path: &str) -> bool {
    path.starts_with("/api/private/") && path != ALIVE_PATH
        || ["/api/v0/users/me", "/api/users/me"].contains(&path)
}

async fn admit(ask: &Ask, wanted: Scope) -> Result<Caller, Problem> {
    ask.admit_by(wanted, Carrier::Session).await
}

fn shown(row: &Row<Satellite>) -> Value {
    let Satellite { name, fingerprint, .. } = &row.resource;
    json!({"id": row.id, "name": name, "fingerprint": fingerprint})
}

/// `GET /api/v0/users/me`: whose token this is.
pub(crate) async fn me(ask: Ask) -> Result<Response, V1Problem> {
    let caller = admit(&ask, Scope::Read).await?;
    let name = caller.actor.split_once(':').map_or("", |(_, name)| name);
    let user = json!({"id": caller.actor, "username": name, "name": name, "email": ""});
    let mut answer = Json(user).into_response();
    // The command line compares it with its own and warns when they differ.
    let version = HeaderValue::from_static(env!("CARGO_PKG_VERSION"));
    answer.headers_mut().insert("coder-version", version);
    Ok(answer)
}

/// `GET /api/private/satellites`.
pub(crate) async fn list(ask: Ask) -> Result<Json<Value>, V1Problem> {
    admit(&ask, Scope::Read).await?;
    let (mut data, mut after) = (Vec::new(), None);
    loop {
        let query = Query { kind: Satellite::KIND, after, limit: PAGE_ROWS_MAX };
        let page = ask.control.store.list(query).await?;
        after = page.records.last().map(|record| record.name.clone());
        for record in page.records {
            data.push(shown(&row(record)?));
        }
        if !page.more {
            return Ok(Json(json!({"data": data})));
        }
    }
}

#[derive(Deserialize)]
struct Create {
    name: String,
    public_key: String,
}

/// `POST /api/private/satellites`.
pub(crate) async fn create(ask: Ask, body: Bytes) -> Result<Response, V1Problem> {
    let caller = admit(&ask, Satellite::WRITE).await?;
    let Create { name, public_key } = json::parse(&body)
        .and_then(json::read)
        .map_err(|why| Problem::new(Code::BadRequest, why))?;
    let mut satellite = Satellite { name, public_key, ..Satellite::default() };
    satellite.check().map_err(Problem::from)?;
    let draft = satellite.draft();
    let operation = Operation::Create { kind: Satellite::KIND, id: new_id(), draft, mark: None };
    let (record, _) = ask.apply(caller, operation, None).await?;
    Ok((StatusCode::CREATED, Json(json!({"data": [shown(&row(record)?)]}))).into_response())
}

/// `DELETE /api/private/satellites/{id}`.
pub(crate) async fn remove(ask: Ask, Path(id): Path<String>) -> Result<StatusCode, V1Problem> {
    let caller = admit(&ask, Satellite::WRITE).await?;
    let id = named::<Satellite>(&ask.control, &id).await?.id;
    let operation = Operation::Remove { kind: Satellite::KIND, id, expected: None };
    ask.apply(caller, operation, None).await?;
    Ok(StatusCode::NO_CONTENT)
}
