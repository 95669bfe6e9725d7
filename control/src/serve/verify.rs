//! `POST /verify`: whether a relay may admit a client, by derper's contract.
//!
//! derper (`--verify-client-url`) sends `{"NodePublic":"nodekey:...","Source":"ADDRESS"}` without a
//! Content-Type and takes `{"Allow":true|false}` with status 200; anything else is a refusal to it
//! (tailcfg.DERPAdmitClientRequest). Whoever asks is told what is registered, whatever the policy:
//! that one is for relays that are steered. Control's own probes are let in, too.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use steer::NodeKey;

use super::Control;
use super::api::Ask;
use super::caller::Peer;
use super::problem::{Code, Problem};
use crate::json;
use crate::resource::{Client, Resource, node_key};

/// Bytes of a question, at most; stock ones have about 130.
pub(crate) const ASKED_BYTES_MAX: usize = 4096;

/// What derper asks; `Source` is for those who admit by address, which we do not.
#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "NodePublic")]
    node_public: String,
}

/// What it is told.
#[derive(Serialize)]
pub(crate) struct Told {
    #[serde(rename = "Allow")]
    allow: bool,
}

/// See the module.
pub(crate) async fn verify(ask: Ask, body: Bytes) -> Result<Json<Told>, Problem> {
    let control = &ask.control;
    if !may_ask(control, ask.peer) {
        let why = "admissions are told to the networks of --verify-allow alone";
        return Err(Problem::new(Code::Forbidden, why));
    }
    let asked: Asked = json::parse(&body)
        .and_then(json::read)
        .map_err(|why| Problem::new(Code::BadRequest, why))?;
    let allow = match node_key(&asked.node_public) {
        Ok(key) if NodeKey::parse(&key).is_some_and(|it| control.prober.is_ours(&it.0)) => true,
        Ok(key) => control.store.holder(Client::KIND, Client::key_word(&key)).await?.is_some(),
        // The zero key is nobody's.
        Err(_) => false,
    };
    control.counters.verify[usize::from(!allow)].add(1);
    Ok(Json(Told { allow }))
}

fn may_ask(control: &Arc<Control>, peer: Peer) -> bool {
    match peer {
        Peer::Unix { .. } => true,
        Peer::Tcp(address) => {
            let address = address.ip().to_canonical();
            let networks = &control.verify_allow;
            networks.is_empty() || networks.iter().any(|network| network.contains(&address))
        }
    }
}
