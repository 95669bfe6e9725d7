//! Names that this relay resolves for clients whose own DNS does not work.
//!
//! Owns the published document of `/bootstrap-dns`, replaced whole at each refresh. A name that
//! does not resolve is left out until it does. The thread that waits for signals runs
//! [`Bootstrap::keep_fresh`]; the pages read the document.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::body::Bytes;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// Time between two refreshes, as derper has it.
const REFRESH: Duration = Duration::from_secs(10 * 60);
/// Longest time one refresh may take, as derper has it.
const REFRESH_MAX: Duration = Duration::from_secs(60);

/// The names and their addresses, as last resolved. Empty until the first refresh.
#[derive(Debug, Default)]
pub struct Bootstrap(RwLock<Arc<Published>>);

#[derive(Debug, Default)]
struct Published {
    addresses: BTreeMap<String, Vec<IpAddr>>,
    /// JSON of `addresses`, or empty where nothing was ever published.
    document: Bytes,
}

impl Bootstrap {
    /// The JSON document, or nothing where no name was ever resolved.
    #[must_use]
    pub fn document(&self) -> Bytes {
        self.published().document.clone()
    }

    /// Whether `name` is published.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.published().addresses.contains_key(name)
    }

    /// Publishes `addresses`, each name's in an order of chance: clients try the first ones first.
    pub fn publish(&self, mut addresses: BTreeMap<String, Vec<IpAddr>>) {
        let chance = RandomState::new();
        for list in addresses.values_mut() {
            list.sort_unstable();
            list.dedup();
            list.sort_by_cached_key(|address| chance.hash_one(address));
        }
        let document = document(&addresses);
        let published = Arc::new(Published { addresses, document });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = published;
    }

    /// Resolves `names` now and every ten minutes, for ever. Returns at once if there are none.
    pub async fn keep_fresh(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut turns = tokio::time::interval(REFRESH);
        loop {
            turns.tick().await;
            match tokio::time::timeout(REFRESH_MAX, resolve(names)).await {
                Ok(addresses) => self.publish(addresses),
                Err(_) => tracing::warn!(
                    "the names of bootstrap_dns did not resolve in time; the old ones stay"
                ),
            }
        }
    }

    fn published(&self) -> Arc<Published> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn resolve(names: &[String]) -> BTreeMap<String, Vec<IpAddr>> {
    let mut addresses = BTreeMap::new();
    for name in names {
        match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(found) => {
                addresses.insert(
                    name.clone(),
                    found.map(|address| address.ip().to_canonical()).collect(),
                );
            }
            Err(fault) => tracing::warn!(name, %fault, "a name of bootstrap_dns does not resolve"),
        }
    }
    addresses
}

/// JSON as derper writes it, indented by tabs.
fn document(addresses: &BTreeMap<String, Vec<IpAddr>>) -> Bytes {
    let mut json = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"\t"));
    match addresses.serialize(&mut serializer) {
        Ok(()) => json.into(),
        // Maps of text to text always serialise.
        Err(_) => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_what_derper_would() {
        let bootstrap = Bootstrap::default();
        assert!(bootstrap.document().is_empty());
        let address = "192.0.2.1".parse().expect("an address");
        let names =
            [("b.example".to_owned(), vec![address, address]), ("a.example".to_owned(), vec![])];
        bootstrap.publish(names.into_iter().collect());
        let document = bootstrap.document();
        assert_eq!(
            document,
            "{\n\t\"a.example\": [],\n\t\"b.example\": [\n\t\t\"192.0.2.1\"\n\t]\n}"
        );
        assert!(bootstrap.has("b.example") && !bootstrap.has("c.example"));
    }

    #[tokio::test]
    async fn without_names_there_is_nothing_to_keep_fresh() {
        let bootstrap = Bootstrap::default();
        bootstrap.keep_fresh(&[]).await;
        assert!(bootstrap.document().is_empty());
    }
}
