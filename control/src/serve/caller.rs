//! Who calls, and what they may do.
//!
//! Over the unix socket it is whoever the kernel says: the socket's mode lets in its owner and
//! group alone, and they may do everything. Elsewhere it is the holder of a token, which is looked up
//! anew at each request, so that a removed or expired one ends at once.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use axum::http::{HeaderMap, header};

use super::Control;
use super::problem::{Code, Problem};
use crate::clock;
use crate::resource::{Scope, Token};
use crate::token;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process of this host, by the kernel's word.
    Unix {
        /// Its user.
        uid: u32,
    },
    /// Somebody on the network.
    Tcp(SocketAddr),
}

impl Peer {
    /// Whether it came over the unix socket.
    pub(crate) fn is_local(self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Tcp(_) => false,
        }
    }
}

/// Somebody who may do something.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// What the audit log calls them.
    pub(crate) actor: String,
    /// What they may do.
    pub(crate) scopes: Vec<Scope>,
}

/// Where a request may carry its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// `Authorization: Bearer` only.
    Bearer,
    /// Also as the v1 command line sends it: header `Session-Token` or cookie `session_token`.
    Session,
}

/// Uses of tokens that are not written yet, at most; more are left out.
const USES_MAX: usize = 10_000;

impl Control {
    /// The caller, if they may do `wanted`.
    pub(crate) async fn admit(
        &self,
        peer: Peer,
        headers: &HeaderMap,
        wanted: Scope,
        carrier: Carrier,
    ) -> Result<Caller, Problem> {
        let caller = match peer {
            Peer::Unix { uid } => {
                Caller { actor: format!("uid:{uid}"), scopes: vec![Scope::Admin] }
            }
            Peer::Tcp(_) => self.holder(headers, carrier).await.inspect_err(|_| {
                self.counters.auth_failures.add(1);
            })?,
        };
        if wanted.allowed_by(&caller.scopes) {
            return Ok(caller);
        }
        self.counters.auth_failures.add(1);
        let word = serde_json::to_string(&wanted).unwrap_or_default();
        Err(Problem::new(Code::Forbidden, format!("this takes a token with the scope {word}")))
    }

    /// The holder of the request's token.
    async fn holder(&self, headers: &HeaderMap, carrier: Carrier) -> Result<Caller, Problem> {
        let unknown = |why: &str| Problem::new(Code::Unauthenticated, why);
        let text = presented(headers, carrier).ok_or_else(|| match carrier {
            Carrier::Bearer => unknown("send a token of ours as Authorization: Bearer TOKEN"),
            Carrier::Session => {
                unknown("set CODER_TOKEN to a token of ours, by control tokens create")
            }
        })?;
        let refused = || unknown("the token is not known, or was removed");
        let prefix = token::prefix(text).ok_or_else(refused)?;
        let (record, hash) = self.store.token(prefix.to_owned()).await?.ok_or_else(refused)?;
        if !token::is_known(&self.store.secret(), text, &hash) {
            return Err(refused());
        }
        let body: Token =
            serde_json::from_value(record.body.unwrap_or_default()).map_err(|_| refused())?;
        let now = clock::now();
        if body.expires_at.is_some_and(|end| end.0 <= now) {
            return Err(unknown("the token has expired; make a new one"));
        }
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < USES_MAX || uses.contains_key(&record.id) {
            uses.insert(record.id, now);
        }
        Ok(Caller { actor: format!("token:{}", body.name), scopes: body.scopes })
    }

    /// Writes down when tokens were used. A failure costs these times and nothing else.
    pub(crate) async fn note_uses(self: &Arc<Self>) {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        if uses.is_empty() {
            return;
        }
        if let Err(fault) = self.store.touch_tokens(uses.into_iter().collect()).await {
            tracing::warn!(%fault, "when tokens were used last could not be written");
        }
    }
}

/// The token in `headers`.
fn presented(headers: &HeaderMap, carrier: Carrier) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    if bearer.is_some() || carrier == Carrier::Bearer {
        return bearer;
    }
    let cookies = text(header::COOKIE.as_str()).unwrap_or_default().split(';');
    let cookie = || cookies.map(str::trim).find_map(|pair| pair.strip_prefix("session_token="));
    text("session-token").or_else(cookie)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_token_is_found_where_its_carrier_may_have_it() {
        for (name, value, bearer, session) in [
            ("authorization", "Bearer abc", Some("abc"), Some("abc")),
            ("authorization", "bearer  abc ", Some("abc"), Some("abc")),
            ("authorization", "Basic abc", None, None),
            ("authorization", "abc", None, None),
            ("session-token", "abc", None, Some("abc")),
            ("cookie", "a=b; session_token=abc; c=d", None, Some("abc")),
            ("cookie", "xsession_token=abc", None, None),
        ] {
            let headers = HeaderMap::from_iter([(
                header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]);
            assert_eq!(presented(&headers, Carrier::Bearer), bearer, "{name}: {value}");
            assert_eq!(presented(&headers, Carrier::Session), session, "{name}: {value}");
        }
    }
}
