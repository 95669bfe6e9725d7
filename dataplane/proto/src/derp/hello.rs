//! The greeting: opening `ClientInfo` and sealing `ServerInfo`.
//!
//! Boxes are NaCl's: X25519, HSalsa20, XSalsa20-Poly1305, with the tag in front of the ciphertext.
//! The caller brings the raw X25519 point and the nonce; nothing here draws entropy (invariant 1).

use alloc::string::String;
use alloc::vec::Vec;

use crypto_secretbox::aead::AeadInPlace;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use serde_json::Value;
use wire::derp::{CLIENT_INFO_LEN, FrameType, HEADER_LEN, Header, VERSION};
use wire::key::{KEY_LEN, Key};
use zeroize::Zeroizing;

/// Bytes of a box nonce.
pub const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// What a client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientInfo {
    /// Protocol version it speaks.
    pub version: i64,
    /// It answers pings.
    pub can_ack_pings: bool,
    /// It is a prober, not a user.
    pub is_prober: bool,
    /// It showed a well-formed mesh key (64 hex digits).
    pub mesh_key: Option<Key>,
}

/// Why a greeting is refused. The connection closes without a word, as stock clients expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloFault {
    /// The first frame is not `ClientInfo`.
    #[error("first frame is not ClientInfo")]
    NotClientInfo,
    /// `ClientInfo` is shorter than 56 bytes or longer than 256 KiB.
    #[error("ClientInfo length out of bounds")]
    Len,
    /// The client's key has no private half.
    #[error("client key is not usable")]
    Key,
    /// The box does not open with the client's and our key.
    #[error("ClientInfo box does not open")]
    Box,
    /// The JSON in the box is malformed or has a wrong type.
    #[error("ClientInfo JSON is malformed")]
    Json,
    /// A mesh key is present and is not 64 hex digits.
    #[error("mesh key is malformed")]
    MeshKey,
}

/// Judges the header of the first frame; returns the payload length in bytes.
///
/// # Errors
/// [`HelloFault::NotClientInfo`] or [`HelloFault::Len`].
pub fn client_info_len(header: Header) -> Result<usize, HelloFault> {
    if FrameType::from_byte(header.kind) != Some(FrameType::ClientInfo) {
        return Err(HelloFault::NotClientInfo);
    }
    let len = header.len as usize;
    CLIENT_INFO_LEN.contains(&len).then_some(len).ok_or(HelloFault::Len)
}

/// The client's key, in clear at the front of the `ClientInfo` payload.
///
/// # Errors
/// [`HelloFault::Key`] for a zero key, before any cryptography; [`HelloFault::Len`] if it is cut.
pub fn client_key(payload: &[u8]) -> Result<Key, HelloFault> {
    let key = Key::read(payload).ok_or(HelloFault::Len)?;
    if key.is_zero() { Err(HelloFault::Key) } else { Ok(key) }
}

/// The secret that both boxes of a greeting are sealed with.
pub struct Shared(XSalsa20Poly1305);

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Shared(..)")
    }
}

impl Shared {
    /// Derives the box key from the raw X25519 point of our private and the client's public key.
    #[must_use]
    pub fn new(point: &Zeroizing<[u8; 32]>) -> Self {
        let point = salsa20::Key::from_slice(&point[..]);
        let key = salsa20::hsalsa::<salsa20::cipher::consts::U10>(point, &Default::default());
        Self(XSalsa20Poly1305::new(&key))
    }

    /// Opens the `ClientInfo` payload.
    ///
    /// # Errors
    /// [`HelloFault`] by what is wrong with it.
    pub fn open_client_info(&self, payload: &[u8]) -> Result<ClientInfo, HelloFault> {
        let sealed = payload.get(KEY_LEN..).ok_or(HelloFault::Len)?;
        parse_client_info(&self.open(sealed).ok_or(HelloFault::Box)?)
    }

    /// The whole `ServerInfo` frame.
    #[must_use]
    pub fn server_info(&self, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        let json = alloc::format!("{{\"version\":{VERSION}}}");
        self.frame(FrameType::ServerInfo, &[], json.as_bytes(), nonce)
    }

    /// The whole `ClientInfo` frame of a client with public key `key`: the client's side.
    #[must_use]
    pub fn client_info(&self, key: &Key, json: &str, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        self.frame(FrameType::ClientInfo, &key.0, json.as_bytes(), nonce)
    }

    /// Opens a nonce-prefixed box.
    #[must_use]
    pub fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let (tag, sealed) = sealed.split_first_chunk::<TAG_LEN>()?;
        let mut plain = Vec::from(sealed);
        self.0.decrypt_in_place_detached(nonce.into(), &[], &mut plain, tag.into()).ok()?;
        Some(plain)
    }

    fn frame(&self, kind: FrameType, clear: &[u8], json: &[u8], nonce: [u8; NONCE_LEN]) -> Vec<u8> {
        let len = clear.len() + NONCE_LEN + TAG_LEN + json.len();
        let mut frame = Vec::with_capacity(HEADER_LEN + len);
        frame.extend(Header::bytes(kind, len as u32));
        frame.extend(clear);
        frame.extend(nonce);
        let tag_at = frame.len();
        frame.extend([0; TAG_LEN]);
        frame.extend(json);
        let (head, body) = frame.split_at_mut(tag_at + TAG_LEN);
        // XSalsa20-Poly1305 seals any length below 256 GiB; a greeting is far below.
        if let Ok(tag) = self.0.encrypt_in_place_detached((&nonce).into(), &[], body) {
            head[tag_at..].copy_from_slice(&tag);
        }
        frame
    }
}

/// Reads the JSON by the rules of Go's decoder: keys match in any case, unknown keys are ignored,
/// `null` leaves the default, a wrong type or trailing bytes refuse the whole.
fn parse_client_info(json: &[u8]) -> Result<ClientInfo, HelloFault> {
    let mut info = ClientInfo::default();
    let fields = match serde_json::from_slice(json).map_err(|_| HelloFault::Json)? {
        Value::Null => return Ok(info),
        Value::Object(fields) => fields,
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(HelloFault::Json);
        }
    };
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        // Go's key type reads its own JSON and has no use for `null`.
        if value.is_null() && name != "meshkey" {
            continue;
        }
        match name.as_str() {
            "version" => info.version = value.as_i64().ok_or(HelloFault::Json)?,
            "canackpings" => info.can_ack_pings = value.as_bool().ok_or(HelloFault::Json)?,
            "isprober" => info.is_prober = value.as_bool().ok_or(HelloFault::Json)?,
            "appname" if !value.is_string() => return Err(HelloFault::Json),
            "meshkey" => info.mesh_key = Some(mesh_key(value)?),
            _ => {}
        }
    }
    Ok(info)
}

fn mesh_key(value: Value) -> Result<Key, HelloFault> {
    let Value::String(text) = value else {
        return Err(HelloFault::Json);
    };
    Key::from_hex(&String::from(text.trim())).ok_or(HelloFault::MeshKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared::new(&Zeroizing::new([5; 32]))
    }

    #[test]
    fn client_info_round_trips_and_has_the_stock_length() {
        let json = r#"{"version":2,"CanAckPings":true}"#;
        let frame = shared().client_info(&Key([3; 32]), json, [1; NONCE_LEN]);
        let header = Header::read(&frame).expect("a header");
        assert_eq!(client_info_len(header), Ok(104));
        let payload = &frame[HEADER_LEN..];
        assert_eq!(client_key(payload), Ok(Key([3; 32])));
        let info = shared().open_client_info(payload).expect("opens");
        assert_eq!((info.version, info.can_ack_pings, info.is_prober), (2, true, false));
    }

    #[test]
    fn server_info_has_the_stock_length_and_content() {
        let frame = shared().server_info([7; NONCE_LEN]);
        assert_eq!(frame.len(), HEADER_LEN + 53);
        assert_eq!(shared().open(&frame[HEADER_LEN..]).as_deref(), Some(&br#"{"version":2}"#[..]));
    }

    #[test]
    fn any_changed_or_missing_byte_keeps_the_box_shut() {
        let frame = shared().client_info(&Key([3; 32]), "{}", [1; NONCE_LEN]);
        let payload = &frame[HEADER_LEN..];
        for at in KEY_LEN..payload.len() {
            let mut broken = payload.to_vec();
            broken[at] ^= 1;
            assert_eq!(shared().open_client_info(&broken), Err(HelloFault::Box));
            assert!(shared().open_client_info(&payload[..at]).is_err());
        }
    }

    #[test]
    fn json_follows_the_rules_of_the_stock_decoder() {
        let read = |json: &str| parse_client_info(json.as_bytes());
        assert_eq!(read("null"), Ok(ClientInfo::default()));
        assert_eq!(read(r#"{"VERSION":2,"x":[1]}"#).map(|info| info.version), Ok(2));
        assert_eq!(read(r#"{"isProber":true}"#).map(|info| info.is_prober), Ok(true));
        assert_eq!(read(r#"{"version":null}"#), Ok(ClientInfo::default()));
        for bad in
            ["", "[]", "{} x", r#"{"version":"2"}"#, r#"{"version":2.5}"#, r#"{"CanAckPings":1}"#]
        {
            assert_eq!(read(bad), Err(HelloFault::Json), "{bad}");
        }
        for bad in [r#"{"meshKey":""}"#, r#"{"MESHKEY":"00"}"#, r#"{"meshKey":null}"#] {
            assert!(matches!(read(bad), Err(HelloFault::MeshKey | HelloFault::Json)), "{bad}");
        }
    }

    #[test]
    fn the_header_and_key_are_judged_before_any_cryptography() {
        let len = |kind, len| client_info_len(Header { kind, len });
        assert_eq!(len(2, 55), Err(HelloFault::Len));
        assert_eq!(len(2, 262_145), Err(HelloFault::Len));
        assert_eq!(len(4, 100), Err(HelloFault::NotClientInfo));
        assert_eq!(client_key(&[0; 60]), Err(HelloFault::Key));
    }
}
