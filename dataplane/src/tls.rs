//! TLS sessions after their handshake: rustls' traffic secrets under Perigee's record layer.
//!
//! Owns the ciphers and their keys. Must never show a secret (invariant 7). An idle direction keeps
//! only the raw key: the expanded key schedule, 0.6 KB in aws-lc, comes back with its next record.

use std::cell::OnceCell;
use std::fmt;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use proto::tls::{Aead, Opener, Protocol, RecordBuf, Sealer, TAG_LEN};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};
use zeroize::Zeroizing;

/// Records sealed under one AES-GCM key before it is updated, half of rustls' limit of 2^24 (which
/// follows RFC 8446 §5.5). A TLS 1.2 connection, which has no updates, ends at twice this number.
const RECORDS_PER_KEY_MAX: u64 = 1 << 23;

/// The receiving direction of a session.
pub type Rx = Opener<Cipher>;

/// A cipher with its key, whose expanded form may be let go and comes back by itself.
pub struct Cipher {
    algorithm: &'static Algorithm,
    key: Zeroizing<[u8; 32]>,
    schedule: OnceCell<LessSafeKey>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("warm", &self.is_warm()).finish_non_exhaustive()
    }
}

impl Cipher {
    fn new(secrets: &ConnectionTrafficSecrets) -> Result<(Self, [u8; 12]), rustls::Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(rustls::Error::General("unknown record cipher".to_owned())),
        };
        let mut raw = Zeroizing::new([0; 32]);
        raw[..key.as_ref().len()].copy_from_slice(key.as_ref());
        let mut nonce = [0; 12];
        nonce.copy_from_slice(iv.as_ref());
        Ok((Self { algorithm, key: raw, schedule: OnceCell::new() }, nonce))
    }

    #[inline]
    fn schedule(&self) -> &LessSafeKey {
        self.schedule.get_or_init(|| {
            let key = &self.key[..self.algorithm.key_len()];
            LessSafeKey::new(
                UnboundKey::new(self.algorithm, key).expect("the key has the algorithm's length"),
            )
        })
    }

    /// Whether the expanded key is held.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        self.schedule.get().is_some()
    }

    /// Lets the expanded key go.
    pub fn cool(&mut self) {
        self.schedule.take();
    }
}

impl Aead for Cipher {
    #[inline]
    fn open(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.schedule().open_in_place(nonce, Aad::from(aad), data).is_ok()
    }

    #[inline]
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.schedule().seal_in_place_separate_tag(nonce, Aad::from(aad), data);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(sealed.expect("a record is far below the cipher's limit").as_ref());
        tag
    }
}

/// The sending direction of a session, and rustls' part in renewing its keys.
pub struct Tx {
    sealer: Sealer<Cipher>,
    /// Present under TLS 1.3 only.
    kernel: Option<Box<KernelConnection<ServerConnectionData>>>,
    /// The peer asked for a new key of ours: an update goes out before the next record.
    update_due: bool,
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("sealer", &self.sealer).finish_non_exhaustive()
    }
}

/// Takes a finished handshake over: both directions and the record protection.
///
/// # Errors
/// rustls', if the handshake is not finished or its suite has no record layer here.
pub fn take_over(connection: UnbufferedServerConnection) -> Result<(Rx, Tx), rustls::Error> {
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    let tls13 = kernel.protocol_version() == ProtocolVersion::TLSv1_3;
    let protocol = match (tls13, &secrets.tx.1) {
        (true, _) => Protocol::Tls13,
        (false, ConnectionTrafficSecrets::Chacha20Poly1305 { .. }) => Protocol::Tls12Chacha,
        (false, _) => Protocol::Tls12Gcm,
    };
    let (rx_cipher, rx_iv) = Cipher::new(&secrets.rx.1)?;
    let (tx_cipher, tx_iv) = Cipher::new(&secrets.tx.1)?;
    let rx = Opener::new(protocol, rx_cipher, rx_iv, secrets.rx.0);
    let sealer = Sealer::new(protocol, tx_cipher, tx_iv, secrets.tx.0);
    Ok((rx, Tx { sealer, kernel: tls13.then(|| Box::new(kernel)), update_due: false }))
}

impl Tx {
    /// The record protection.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.sealer.protocol()
    }

    /// Seals `records`; gives the bytes to send and the number of records, or `None` where the
    /// session must end because its key is worn out.
    #[inline]
    #[must_use]
    pub fn seal(&mut self, records: RecordBuf) -> Option<(Vec<u8>, u64)> {
        if self.update_due || self.sealer.records() >= RECORDS_PER_KEY_MAX {
            return self.seal_updated(records);
        }
        Some(records.seal(&mut self.sealer))
    }

    #[cold]
    fn seal_updated(&mut self, records: RecordBuf) -> Option<(Vec<u8>, u64)> {
        let Some(kernel) = &mut self.kernel else {
            let worn = self.sealer.records() >= 2 * RECORDS_PER_KEY_MAX;
            return (!worn).then(|| records.seal(&mut self.sealer));
        };
        let (_, secrets) = kernel.update_tx_secret().ok()?;
        let (cipher, iv) = Cipher::new(&secrets).ok()?;
        let mut bytes = self.sealer.seal_key_update().to_vec();
        self.sealer.rekey(cipher, iv);
        self.update_due = false;
        let (sealed, count) = records.seal(&mut self.sealer);
        bytes.extend_from_slice(&sealed);
        Some((bytes, count + 1))
    }

    /// Gives `rx` the peer's next key after its `KeyUpdate`; `reply` owes it one of ours.
    ///
    /// # Errors
    /// rustls', or a `KeyUpdate` on a connection that has none.
    pub fn update_rx(&mut self, rx: &mut Rx, reply: bool) -> Result<(), rustls::Error> {
        let Some(kernel) = &mut self.kernel else {
            return Err(rustls::Error::HandshakeNotComplete);
        };
        let (_, secrets) = kernel.update_rx_secret()?;
        let (cipher, iv) = Cipher::new(&secrets)?;
        rx.rekey(cipher, iv);
        self.update_due |= reply;
        Ok(())
    }

    /// The alert that tells the peer that no more records follow.
    #[must_use]
    pub fn close_notify(&mut self) -> Vec<u8> {
        let mut out = [0; 64];
        self.sealer.seal_close_notify(&mut out).to_vec()
    }

    /// Lets the expanded key go until the next record.
    pub fn cool(&mut self) {
        self.sealer.aead_mut().cool();
    }

    /// Whether the expanded key is held.
    #[must_use]
    pub fn is_warm(&mut self) -> bool {
        self.sealer.aead_mut().is_warm()
    }
}
