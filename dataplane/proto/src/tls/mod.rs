//! TLS after the handshake: opening and sealing records, and the buffer that records are built in.
//!
//! The handshake is rustls' work; this layer starts from the traffic secrets it agreed on. It owns
//! sequence numbers, nonces and record bounds, and knows no cipher: callers bring an [`Aead`].

mod buffer;
mod record;

pub use buffer::RecordBuf;
pub use record::{Aead, Fault, Opened, Opener, Protocol, Sealer, TAG_LEN};

/// Longest plaintext of one record in bytes (RFC 8446 §5.1).
pub const PLAINTEXT_LEN_MAX: usize = 1 << 14;
/// Bytes of a record header.
pub const HEADER_LEN: usize = 5;
