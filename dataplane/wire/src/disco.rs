//! Recognising disco packets (Tailscale's path discovery) inside relayed payloads.
//!
//! Payloads are never opened (invariant 7); only the clear envelope is looked at.

/// First six bytes of a disco packet: "TS" and a speech balloon in UTF-8.
pub const MAGIC: [u8; 6] = *b"TS\xf0\x9f\x92\xac";

/// Shortest disco packet in bytes: magic 6, sender key 32, nonce 24.
pub const LEN_MIN: usize = 6 + 32 + 24;

/// Whether `payload` looks like disco: such packets get their own queue lane and a "not here" answer.
#[inline]
#[must_use]
pub fn looks_like(payload: &[u8]) -> bool {
    payload.len() >= LEN_MIN && payload.starts_with(&MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_magic_and_length() {
        let mut packet = [0; LEN_MIN];
        packet[..6].copy_from_slice(&MAGIC);
        assert!(looks_like(&packet));
        assert!(!looks_like(&packet[..LEN_MIN - 1]));
        packet[5] ^= 1;
        assert!(!looks_like(&packet));
    }
}
