//! What a caller of the API did wrong, as problem details (RFC 9457) with a stable code.
//!
//! Owns the list of codes: clients may match on them, so a code never changes its meaning. `detail`
//! is for people and may.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::resource::FieldFault;
use crate::store::StoreFault;

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request cannot be read: not JSON, a wrong parameter or header.
    BadRequest,
    /// There is no token, or none that is known, or it has expired.
    Unauthenticated,
    /// The token's scopes do not include this.
    Forbidden,
    /// There is no such path or record.
    NotFound,
    /// The path takes another method.
    MethodNotAllowed,
    /// The name or a unique field is another record's.
    Taken,
    /// Another record needs this one.
    InUse,
    /// It would clash with a map from a file or URL.
    DerpMapConflict,
    /// The same create or signed request came before; its answer cannot be given again.
    Replayed,
    /// The request's signature is missing, wrong, or of a key that nobody has registered.
    SignatureRejected,
    /// The signed request is too old or of a time to come.
    ClockApart,
    /// The signed request is for another process of control; Perigee-Instance says for which to sign.
    WrongInstance,
    /// If-Match names an older revision.
    Stale,
    /// The body is larger than the path takes.
    TooLarge,
    /// The body is not declared as application/json.
    UnsupportedMediaType,
    /// A field has a value that cannot be taken.
    InvalidField,
    /// A record that this one needs does not exist.
    MissingReference,
    /// The Idempotency-Key was used for another request.
    IdempotencyReused,
    /// A limit on the number or size of records is reached.
    LimitReached,
    /// More requests are waiting than can be taken; try again.
    Busy,
    /// The request took too long.
    TimedOut,
    /// The DERP map cannot be built; readyz says why.
    DerpMapUnavailable,
    /// The disk is full.
    StorageFull,
    /// The database cannot be reached at the moment; nothing was changed.
    StoreAway,
    /// The database was lost during the commit: the change may have happened or not.
    OutcomeUnknown,
    /// The database or the server failed.
    Internal,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated | Self::SignatureRejected | Self::ClockApart => {
                StatusCode::UNAUTHORIZED
            }
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Taken
            | Self::InUse
            | Self::DerpMapConflict
            | Self::Replayed
            | Self::WrongInstance => StatusCode::CONFLICT,
            Self::Stale => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidField
            | Self::MissingReference
            | Self::IdempotencyReused
            | Self::LimitReached => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Busy | Self::DerpMapUnavailable | Self::StoreAway => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // No 503: whoever repeats those by itself would do this twice.
            Self::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
            Self::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: Code,
    /// What is wrong here, in one line for people.
    pub detail: String,
    /// The field that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    /// A refusal with this code.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = code.status();
        Self {
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            field: None,
        }
    }

    /// Its HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.code.status()
    }
}

impl From<FieldFault> for Problem {
    fn from(fault: FieldFault) -> Self {
        let field = Some(fault.field.to_owned());
        Self { field, ..Self::new(Code::InvalidField, fault.to_string()) }
    }
}

impl From<StoreFault> for Problem {
    fn from(fault: StoreFault) -> Self {
        let code = match &fault {
            StoreFault::Taken { .. } | StoreFault::Held { .. } => Code::Taken,
            StoreFault::Gone { .. } => Code::NotFound,
            StoreFault::Missing { .. } => Code::MissingReference,
            StoreFault::InUse { .. } => Code::InUse,
            StoreFault::Stale { .. } => Code::Stale,
            StoreFault::OnceReused => Code::IdempotencyReused,
            StoreFault::Limit(_) => Code::LimitReached,
            StoreFault::Full => {
                // Whoever mends it may not be who asked.
                tracing::warn!(why = %fault, "a change was refused");
                Code::StorageFull
            }
            StoreFault::Busy => Code::Busy,
            StoreFault::Unknown => Code::OutcomeUnknown,
            StoreFault::Away(_) => {
                // Where it is and what is wrong there is not for strangers.
                let why = "the database cannot be reached; control's log and readyz say why";
                return Self::new(Code::StoreAway, why);
            }
            StoreFault::Broken(why) => {
                tracing::error!(why, "the store failed");
                return Self::new(Code::Internal, "the database failed; control's log says how");
            }
        };
        Self::new(code, fault.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut answer = (status, axum::Json(&self)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(header::CONTENT_TYPE, problem);
        match self.code {
            Code::Unauthenticated => {
                let bearer = HeaderValue::from_static("Bearer");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
            }
            Code::Busy | Code::DerpMapUnavailable | Code::StoreAway => {
                answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Kind;

    #[test]
    fn a_record_that_was_removed_meanwhile_is_not_found() {
        let (kind, word) = (Kind::Region, "fra".to_owned());
        let missing = Problem::from(StoreFault::Missing { kind, word: word.clone() });
        assert_eq!((missing.status, missing.code), (422, Code::MissingReference));
        let gone = Problem::from(StoreFault::Gone { kind, id: word });
        assert_eq!((gone.status, gone.code), (404, Code::NotFound));
    }
}
