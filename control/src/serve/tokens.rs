//! Making a token, the one answer that has a secret in it.

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::{Ask, created_headers, parse, row, show};
use super::problem::{Code, Problem};
use crate::clock;
use crate::resource::{FieldFault, Resource, Row, Token};
use crate::store::Operation;
use crate::token::{Minted, new_id};

/// A new token with the text that is shown this once.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The record.
    #[serde(flatten)]
    pub row: Row<Token>,
    /// The token itself. It is kept nowhere: store it now.
    pub token: String,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewToken({:?})", self.row)
    }
}

/// `POST /api/v1/tokens`.
pub(crate) async fn create(ask: Ask, body: Bytes) -> Result<Response, Problem> {
    let caller = ask.admit(Token::WRITE).await?;
    let mut token: Token = parse(&ask.headers, &body)?;
    if token.expires_at.is_some_and(|end| end.0 <= clock::now()) {
        return Err(FieldFault::new("expires_at", "is past; choose a time to come").into());
    }
    let once = ask.once(&caller, Token::PLURAL, &body)?;
    let minted = Minted::new(&ask.control.store.secret());
    let mark = minted.mark();
    token.prefix.clone_from(&mark.prefix);
    let draft = token.draft();
    let operation = Operation::Create { kind: Token::KIND, id: new_id(), draft, mark: Some(mark) };
    let (record, replayed) = ask.apply(caller, operation, once).await?;
    if replayed {
        let why = "it was made before, and its text was shown then; remove it and make another";
        return Err(Problem::new(Code::Replayed, why));
    }
    let shown = NewToken { row: row(record)?, token: minted.reveal() };
    let mut answer = show(StatusCode::CREATED, shown.row.revision, &shown);
    created_headers(answer.headers_mut(), Token::PLURAL, &shown.row.id, false);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}
