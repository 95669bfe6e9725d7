//! Signed HTTP requests: our profile of HTTP Message Signatures (RFC 9421) with Ed25519.
//!
//! Owns what is covered (method, authority, path, query and, by its digest, the content: RFC 9530),
//! which parameters must stand there, and for how long a request counts. It reads no clock and holds
//! no key: whoever signs or verifies passes time and primitive in. A signature of ours carries [`TAG`];
//! others beside it are passed over. The satellite calls [`sign`], the primary side [`read`].

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sfv::{BareItem, Dictionary, FieldType, InnerList, ListEntry, Parser};

/// Tells our signatures from those of others on the same request (RFC 9421, section 2.3).
pub const TAG: &str = "perigee-satellite";
/// What every signature covers, in this order when we sign.
pub const COVERED: [&str; 5] = ["@method", "@authority", "@path", "@query", "content-digest"];
/// How long a request counts after it was made, in seconds.
pub const VALID_S: i64 = 60;
/// How far the two clocks may be apart, in seconds.
pub const SKEW_S: i64 = 30;
/// Signatures of ours on one request, at most: that of the old key, the new one's, and room.
pub const SIGNATURES_MAX: usize = 4;
/// Longest key id, nonce or header field of a signature, in bytes; ours have 50, 65 and some 700.
pub const KEYID_LEN_MAX: usize = 128;
/// See [`KEYID_LEN_MAX`].
pub const NONCE_LEN_MAX: usize = 96;
/// See [`KEYID_LEN_MAX`].
pub const FIELD_LEN_MAX: usize = 4096;
/// Bytes of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_LEN: usize = 64;
/// Bytes of a SHA-256 digest.
pub const DIGEST_LEN: usize = 32;

/// What is signed of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, in capitals.
    pub method: &'a str,
    /// Host and, unless it is the scheme's own, port, in small letters: what stands in `Host`.
    pub authority: &'a str,
    /// The path, as on the wire.
    pub path: &'a str,
    /// The query without its question mark; empty for none.
    pub query: &'a str,
    /// SHA-256 of the content.
    pub content_sha256: &'a [u8; DIGEST_LEN],
}

/// The three header fields that make a request a signed one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// `Content-Digest`.
    pub content_digest: String,
    /// `Signature-Input`.
    pub signature_input: String,
    /// `Signature`.
    pub signature: String,
}

/// One who signs.
#[allow(missing_debug_implementations, reason = "it stands for a secret (invariant 7)")]
pub struct Signer<'a> {
    /// The key's name, which the verifier knows.
    pub keyid: &'a str,
    /// The primitive.
    pub sign: &'a dyn Fn(&[u8]) -> [u8; SIGNATURE_LEN],
}

/// A signature that is of our profile and belongs to the request. Whether a key made it is still to be
/// found out: verify [`Signature::bytes`] over [`Signature::base`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The name of the key.
    pub keyid: String,
    /// When the request was made, in seconds since 1970.
    pub created: i64,
    /// When it ends to count, at most [`VALID_S`] later.
    pub expires: i64,
    /// What no other request of this key has.
    pub nonce: String,
    /// What was signed.
    pub base: String,
    /// The signature.
    pub bytes: [u8; SIGNATURE_LEN],
}

/// Why a request does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No signature of our profile is there.
    #[error("the request has no signature of this profile: {0}")]
    Malformed(&'static str),
    /// The content is not what was signed.
    #[error("the content is not what was signed")]
    Altered,
    /// It is too old.
    #[error("the request is {by_s} s too old by this clock; set the clocks")]
    Late {
        /// By so many seconds.
        by_s: i64,
    },
    /// It is of a time to come.
    #[error("the request is {by_s} s ahead of this clock; set the clocks")]
    Early {
        /// By so many seconds.
        by_s: i64,
    },
}

/// Signs `request` with each of `signers`, at `created` (seconds since 1970). `nonce` must be new and
/// made of letters and digits.
#[must_use]
pub fn sign(request: &Request<'_>, signers: &[Signer<'_>], created: i64, nonce: &str) -> Fields {
    let mut fields =
        Fields { content_digest: content_digest(request.content_sha256), ..Fields::default() };
    let covered = COVERED.map(|name| format!("\"{name}\"")).join(" ");
    let values = |name: &str| component(request, &fields.content_digest, name);
    let (mut inputs, mut signatures) = (Vec::new(), Vec::new());
    for (at, Signer { keyid, sign }) in signers.iter().enumerate() {
        let expires = created + VALID_S;
        let input = format!(
            "({covered});created={created};expires={expires};nonce=\"{nonce}\";alg=\"ed25519\";\
             keyid=\"{keyid}\";tag=\"{TAG}\""
        );
        // Whatever is in COVERED has a value.
        let base = base(COVERED.iter().copied(), values, &input).unwrap_or_default();
        let signature = BASE64_STANDARD.encode(sign(base.as_bytes()));
        inputs.push(format!("sig{at}={input}"));
        signatures.push(format!("sig{at}=:{signature}:"));
    }
    fields.signature_input = inputs.join(", ");
    fields.signature = signatures.join(", ");
    fields
}

/// The signatures of our profile on `request`, of which at least one is there.
///
/// # Errors
/// [`Refusal::Malformed`] and [`Refusal::Altered`].
pub fn read(request: &Request<'_>, fields: &Fields) -> Result<Vec<Signature>, Refusal> {
    check_content(request, &fields.content_digest)?;
    let inputs = dictionary(&fields.signature_input, "Signature-Input cannot be read")?;
    let signatures = dictionary(&fields.signature, "Signature cannot be read")?;
    let mut found = Vec::new();
    for (label, entry) in &inputs {
        let ListEntry::InnerList(input) = entry else {
            return Err(Refusal::Malformed("Signature-Input has a member that is no list"));
        };
        if parameter(input, "tag").and_then(text) != Some(TAG) {
            continue;
        }
        if found.len() == SIGNATURES_MAX {
            return Err(Refusal::Malformed("it has too many signatures"));
        }
        let bytes = match signatures.get(label) {
            Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
            Some(ListEntry::InnerList(_)) | None => None,
        };
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        let bytes = bytes.ok_or(Refusal::Malformed("Signature has no 64 bytes for its input"))?;
        found.push(one(request, &fields.content_digest, input, bytes)?);
    }
    match found.is_empty() {
        true => Err(Refusal::Malformed("Signature-Input has none with our tag")),
        false => Ok(found),
    }
}

impl Signature {
    /// Judges its times at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal::Late`] and [`Refusal::Early`].
    pub fn check_time(&self, now: i64) -> Result<(), Refusal> {
        let late = now.saturating_sub(self.expires).saturating_sub(SKEW_S);
        let early = self.created.saturating_sub(now).saturating_sub(SKEW_S);
        match (late > 0, early > 0) {
            (true, _) => Err(Refusal::Late { by_s: late }),
            (_, true) => Err(Refusal::Early { by_s: early }),
            (false, false) => Ok(()),
        }
    }
}

/// One member of `Signature-Input` that has our tag.
fn one(
    request: &Request<'_>,
    content_digest: &str,
    input: &InnerList,
    bytes: [u8; SIGNATURE_LEN],
) -> Result<Signature, Refusal> {
    let plain = input.items.iter().all(|item| item.params.is_empty());
    let names: Option<Vec<_>> = input.items.iter().map(|item| text(&item.bare_item)).collect();
    let names =
        names.filter(|_| plain).ok_or(Refusal::Malformed("it covers what we do not know"))?;
    if names.len() != COVERED.len() || COVERED.iter().any(|name| !names.contains(name)) {
        return Err(Refusal::Malformed(
            "it must cover @method, @authority, @path, @query and content-digest, no more",
        ));
    }
    let string = |name, len_max| {
        let value = parameter(input, name).and_then(text);
        value.filter(|value| (1..=len_max).contains(&value.len())).map(str::to_owned)
    };
    let time = |name| parameter(input, name)?.as_integer().map(i64::from);
    if parameter(input, "alg").is_some_and(|alg| text(alg) != Some("ed25519")) {
        return Err(Refusal::Malformed("its algorithm is not ed25519"));
    }
    let (Some(keyid), Some(nonce), Some(created), Some(expires)) = (
        string("keyid", KEYID_LEN_MAX),
        string("nonce", NONCE_LEN_MAX),
        time("created"),
        time("expires"),
    ) else {
        return Err(Refusal::Malformed("it needs keyid, nonce, created and expires"));
    };
    if !(0..=VALID_S).contains(&expires.saturating_sub(created)) {
        return Err(Refusal::Malformed("it must expire within 60 s"));
    }
    let values = |name: &str| component(request, content_digest, name);
    let base = base(names.into_iter(), values, &serialized(input))
        .ok_or(Refusal::Malformed("it covers what the request has not"))?;
    Ok(Signature { keyid, created, expires, nonce, base, bytes })
}

/// The signature base (RFC 9421, section 2.5); `None` where a component has no value.
fn base<'a>(
    names: impl Iterator<Item = &'a str>,
    value: impl Fn(&str) -> Option<String>,
    params: &str,
) -> Option<String> {
    let mut base = String::new();
    for name in names {
        // Writing to a string cannot fail.
        let _ = writeln!(base, "\"{name}\": {}", value(name)?);
    }
    let _ = write!(base, "\"@signature-params\": {params}");
    Some(base)
}

fn component(request: &Request<'_>, content_digest: &str, name: &str) -> Option<String> {
    match name {
        "@method" => Some(request.method.to_owned()),
        "@authority" => Some(request.authority.to_ascii_lowercase()),
        "@path" => Some(request.path.to_owned()),
        "@query" => Some(format!("?{}", request.query)),
        "content-digest" => Some(content_digest.to_owned()),
        _ => None,
    }
}

fn content_digest(sha256: &[u8; DIGEST_LEN]) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(sha256))
}

/// Whether the digest that is said is the content's. Digests by other algorithms are passed over.
fn check_content(request: &Request<'_>, said: &str) -> Result<(), Refusal> {
    let said = dictionary(said, "Content-Digest cannot be read")?;
    let digest = match said.get("sha-256") {
        Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
        Some(ListEntry::InnerList(_)) | None => None,
    };
    match digest {
        None => Err(Refusal::Malformed("Content-Digest has no sha-256")),
        Some(digest) if digest == request.content_sha256 => Ok(()),
        Some(_) => Err(Refusal::Altered),
    }
}

fn dictionary(field: &str, fault: &'static str) -> Result<Dictionary, Refusal> {
    let parsed = (field.len() <= FIELD_LEN_MAX).then(|| Parser::new(field).parse().ok()).flatten();
    parsed.ok_or(Refusal::Malformed(fault))
}

fn parameter<'a>(list: &'a InnerList, name: &str) -> Option<&'a BareItem> {
    list.params.get(name)
}

fn text(item: &BareItem) -> Option<&str> {
    item.as_string().map(|text| text.as_str())
}

/// The list with its parameters in their one form (RFC 9651, section 4.1.1.1).
fn serialized(list: &InnerList) -> String {
    let list = vec![ListEntry::InnerList(list.clone())];
    list.serialize().unwrap_or_default()
}

#[cfg(test)]
mod tests;
