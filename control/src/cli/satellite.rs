//! Fetching a satellite's public key from the satellite itself.

use std::path::Path;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::derp_map::load::causes;
use crate::fault::{OperatorFault, UNTRUSTED};
use crate::file::{TEXT_BYTES_MAX, read_text};
use crate::resource::{fingerprint, satellite_key};

/// Where a satellite tells its key.
const PATH: &str = "/api/private/satellites/key";
/// Time for its answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of its answer, at most.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// What a satellite says of its key.
#[derive(Deserialize)]
struct Said {
    key: String,
    fingerprint: String,
}

/// A key with its fingerprint, which belongs to it.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) public_key: String,
    pub(super) fingerprint: String,
}

/// The key of the satellite at `access_url`; its certificate may be one of `ca`.
pub(super) async fn fetch_key(access_url: &str, ca: Option<&Path>) -> Result<Key, OperatorFault> {
    let mut url = Url::parse(access_url)
        .map_err(|error| OperatorFault::usage(format!("{access_url}: {error}")))?;
    url.set_path(PATH);
    url.set_query(None);
    let body = match tokio::time::timeout(PATIENCE, fetch(&url, ca)).await {
        Ok(body) => body?,
        Err(_) => return Err(unreachable(&url, &format!("no answer in {} s", PATIENCE.as_secs()))),
    };
    let said: Said = serde_json::from_slice(&body)
        .map_err(|_| refused(&url, "answered no key; is a satellite there?"))?;
    if said.key.is_empty() || said.fingerprint.is_empty() {
        return Err(refused(&url, "answered an empty key or fingerprint"));
    }
    let public_key = satellite_key(&said.key)
        .map_err(|fault| refused(&url, &format!("its key {}", fault.why)))?;
    let fingerprint = fingerprint(&public_key);
    if said.fingerprint != fingerprint {
        let why = format!("says fingerprint {:?}, but its key has {fingerprint}", said.fingerprint);
        return Err(refused(&url, &why));
    }
    Ok(Key { public_key, fingerprint })
}

async fn fetch(url: &Url, ca: Option<&Path>) -> Result<Vec<u8>, OperatorFault> {
    let mut builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    if let Some(path) = ca {
        let pem = read_text(path, TEXT_BYTES_MAX).map_err(|error| {
            OperatorFault::file(path, &error, "--ca must name a readable PEM file")
        })?;
        let trusted = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).ok();
        let trusted = trusted.filter(|trusted| !trusted.is_empty()).ok_or_else(|| {
            OperatorFault::config(format!("{}: has no certificate in PEM", path.display()))
        })?;
        builder = builder.tls_certs_merge(trusted);
    } else if url.scheme() == "http" {
        // Without TLS no certificates are needed, and a small container may have none.
        builder = builder.tls_certs_only([]);
    }
    let client = builder
        .build()
        .map_err(|error| OperatorFault::failed(format!("no HTTP client: {}", causes(&error))))?;
    let answer = client.get(url.clone()).send().await;
    let mut answer = answer.map_err(|error| {
        let why = causes(&error);
        let fix = "; name its authority's certificate with --ca";
        let fix = if ca.is_none() && why.contains(UNTRUSTED) { fix } else { "" };
        unreachable(url, &format!("{why}{fix}"))
    })?;
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(refused(url, &format!("answered {status}; is a satellite there?")));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| unreachable(url, &causes(&error)))?
    {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(refused(url, "answered more than a key"));
        }
    }
    Ok(body)
}

fn unreachable(url: &Url, why: &str) -> OperatorFault {
    OperatorFault::failed(format!("{url}: {why}"))
}

fn refused(url: &Url, why: &str) -> OperatorFault {
    OperatorFault::failed(format!("{url}: {why}"))
}
