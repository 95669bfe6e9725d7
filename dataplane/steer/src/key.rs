//! Public keys in the text forms of the programs that print them.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wire::key::{KEY_LEN, Key};

/// What stands in front of the hex digits of a client's key, as Tailscale writes it.
pub const NODE_KEY_PREFIX: &str = "nodekey:";
/// Room for decoding a key; base64 rounds up to groups of three bytes, and a longer text fails.
const KEY_ROOM: usize = 48;

/// The key of a DERP client, written `nodekey:` and 64 lower-case hex digits. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeKey(pub Key);

/// The key of a WireGuard peer, written as `wg pubkey` does: base64 of 32 bytes. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerKey(pub Key);

impl NodeKey {
    /// Reads the text form, hex digits of either case; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let key = Key::from_hex(text.strip_prefix(NODE_KEY_PREFIX)?)?;
        (!key.is_zero()).then_some(Self(key))
    }
}

impl PeerKey {
    /// Reads the text form; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; KEY_ROOM];
        let len = BASE64_STANDARD.decode_slice(text, &mut bytes).ok()?;
        let key: [u8; KEY_LEN] = bytes.get(..len)?.try_into().ok()?;
        let key = Key(key);
        (!key.is_zero()).then_some(Self(key))
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NODE_KEY_PREFIX}{}", self.0)
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0.0))
    }
}

impl Serialize for NodeKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for PeerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("no node key, nodekey and 64 hex digits"))
    }
}

impl<'de> Deserialize<'de> for PeerKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("no WireGuard key, base64 of 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_other_text_is_refused() {
        let key = Key(core::array::from_fn(|i| i as u8 + 1));
        let node = NodeKey(key).to_string();
        assert!(node.starts_with("nodekey:0102"));
        assert_eq!(NodeKey::parse(&node), Some(NodeKey(key)));
        let peer = PeerKey(key).to_string();
        assert_eq!(peer, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=");
        assert_eq!(PeerKey::parse(&peer), Some(PeerKey(key)));
        for bad in [&node[1..], &node[..node.len() - 1], &peer, "nodekey:", ""] {
            assert_eq!(NodeKey::parse(bad), None, "{bad:?}");
        }
        let twice = peer.repeat(2);
        for bad in [&peer[1..], &peer[..43], &node, &twice, ""] {
            assert_eq!(PeerKey::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_key_of_zeros_is_none() {
        assert_eq!(NodeKey::parse(&NodeKey(Key([0; 32])).to_string()), None);
        assert_eq!(PeerKey::parse(&PeerKey(Key([0; 32])).to_string()), None);
    }
}
