//! The relay's own key pair, by which clients address its handshake boxes.
//!
//! Owns the private half: it never leaves [`Identity`] except into its own key file, which is
//! derper's format so that a relay keeps its identity over a migration in either direction. The
//! start calls [`Identity::load_or_create`] once; the front calls [`Identity::agree`] at each login.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::rand;
use wire::key::{KEY_LEN, Key};
use zeroize::Zeroizing;

use crate::fault::{ExitCode, OperatorFault};

/// Prefix of a private key in derper's key file.
const PREFIX: &str = "privkey:";
/// Access bits of the key file: its owner reads and writes it, nobody else.
const KEY_FILE_MODE: u32 = 0o600;
/// Access bits of a directory made for the key file.
const KEY_DIR_MODE: u32 = 0o700;

/// A raw shared X25519 point, wiped when dropped. It is not yet a key: hash it first.
pub type SharedPoint = Zeroizing<[u8; KEY_LEN]>;

/// The relay's key pair. The private half can be used but neither read, printed nor compared.
pub struct Identity {
    private: PrivateKey,
    public: Key,
}

#[allow(
    clippy::missing_fields_in_debug,
    reason = "the private half is never printed (invariant 7)"
)]
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish()
    }
}

/// A private key on its way between file and crypto library: neither printed, compared nor copied,
/// and wiped when dropped.
struct Secret(Zeroizing<[u8; KEY_LEN]>);

impl Secret {
    /// Entropy, clamped as Curve25519 requires (RFC 7748 section 5) and as derper stores it.
    fn random() -> Result<Self, OperatorFault> {
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        rand::fill(&mut *secret).map_err(|_| {
            OperatorFault::new(ExitCode::Unavailable, "the system gives no entropy")
        })?;
        secret[0] &= 0xf8;
        secret[31] = secret[31] & 0x7f | 0x40;
        Ok(Self(secret))
    }

    /// Reads 64 hex digits of either case; `None` for anything else.
    fn from_hex(text: &str) -> Option<Self> {
        let digits: &[u8; KEY_LEN * 2] = text.as_bytes().try_into().ok()?;
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            *byte = (high? << 4 | low?) as u8;
        }
        Some(Self(secret))
    }

    /// Appends 64 lower-case hex digits to `text`.
    fn write_hex(&self, text: &mut Zeroizing<Vec<u8>>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0.iter() {
            text.push(DIGITS[usize::from(byte >> 4)]);
            text.push(DIGITS[usize::from(byte & 0xf)]);
        }
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

/// The key file as derper writes it: `{"PrivateKey": "privkey:<64 hex digits>"}`.
#[derive(serde::Deserialize)]
struct KeyFile<'a> {
    #[serde(rename = "PrivateKey", borrow)]
    private_key: &'a str,
}

impl Identity {
    /// A new pair from the system's entropy, kept nowhere.
    ///
    /// # Errors
    /// When the system gives no entropy.
    pub fn fresh() -> Result<Self, OperatorFault> {
        Self::from_secret(&Secret::random()?)
    }

    /// The pair of the key file at `path`. A missing file is created, with its directory, readable
    /// by its owner only.
    ///
    /// # Errors
    /// When the file can be neither read nor created, or holds no private key.
    pub fn load_or_create(path: &Path) -> Result<Self, OperatorFault> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &Zeroizing::new(text)),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(fault) => {
                Err(OperatorFault::file(path, &fault, "key_file must name a readable key file"))
            }
        }
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Key {
        self.public
    }

    /// The raw shared point with `peer`, or `None` when `peer` is zero or another key of low order.
    #[must_use]
    pub fn agree(&self, peer: &Key) -> Option<SharedPoint> {
        let peer = UnparsedPublicKey::new(&X25519, &peer.0);
        agree(&self.private, peer, (), |point| {
            let mut shared = SharedPoint::default();
            // Key agreement over X25519 always yields 32 bytes.
            shared.copy_from_slice(point);
            Ok(shared)
        })
        .ok()
    }

    fn create(path: &Path) -> Result<Self, OperatorFault> {
        let secret = Secret::random()?;
        // Enough from the start, so that nothing is left behind where it grew.
        let mut text = Zeroizing::new(Vec::with_capacity(128));
        text.extend_from_slice(b"{\n\t\"PrivateKey\": \"");
        text.extend_from_slice(PREFIX.as_bytes());
        secret.write_hex(&mut text);
        text.extend_from_slice(b"\"\n}");
        write_private(path, &text).map_err(|fault| {
            OperatorFault::file(path, &fault, "key_file must name a place this process may write")
        })?;
        Self::from_secret(&secret)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, OperatorFault> {
        let bad = |what: &str| {
            OperatorFault::config(format_args!(
                "{}: {what}; key_file must hold {{\"PrivateKey\":\"{PREFIX}<64 hex digits>\"}}, or name no file to have one made",
                path.display()
            ))
        };
        let file: KeyFile<'_> =
            serde_json::from_str(text).map_err(|_| bad("is not a relay key file"))?;
        let hex = file
            .private_key
            .strip_prefix(PREFIX)
            .ok_or_else(|| bad("the key has the wrong prefix"))?;
        let secret = Secret::from_hex(hex).ok_or_else(|| bad("the key is not 64 hex digits"))?;
        if secret.is_zero() {
            return Err(bad("the key is zero"));
        }
        if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
            tracing::warn!(file = %path.display(), "others may read the relay's key file; chmod 600 it");
        }
        Self::from_secret(&secret)
    }

    fn from_secret(secret: &Secret) -> Result<Self, OperatorFault> {
        let broken =
            |_| OperatorFault::new(ExitCode::Failed, "the crypto library refused the relay's key");
        let private = PrivateKey::from_private_key(&X25519, &*secret.0).map_err(|_| broken(()))?;
        let public = private.compute_public_key().map_err(|_| broken(()))?;
        let public = Key::read(public.as_ref()).ok_or(()).map_err(broken)?;
        Ok(Self { private, public })
    }
}

/// Writes `bytes` to `path` so that a reader sees the whole file or none, after a power loss, too.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, None)
}

/// As [`write_private`] over a file that is there, which stays its owner's: who changes it may be
/// another than who reads it.
///
/// # Errors
/// The kernel's, which lets root alone give files away; the file is as it was then.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, Some(&fs::metadata(path)?))
}

/// Puts `bytes` at `path`, in a file of the owner of `old`.
fn put(path: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<()> {
    let mut beside = PathBuf::from(path).into_os_string();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::DirBuilder::new().recursive(true).mode(KEY_DIR_MODE).create(folder)?;
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(KEY_FILE_MODE)
        .open(&beside)
        .and_then(|mut file| {
            hand_to(&file, old)?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The fault that matters is the first; a left-over file only costs a name.
        let _ = fs::remove_file(&beside);
    }
    written.and_then(|()| sync(folder.unwrap_or(Path::new("."))))
}

/// Makes `new` the file of the owner of `old`. The group alone is of no account, having no access.
fn hand_to(new: &File, old: Option<&Metadata>) -> io::Result<()> {
    match old {
        Some(old) if old.uid() != new.metadata()?.uid() => {
            fchown(new, Some(old.uid()), Some(old.gid()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Waits until the names in `folder` are on the disk. One that may not be read cannot be waited for,
/// nor can those of a file system without such a promise.
fn sync(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(fault) if !matches!(fault.kind(), InvalidInput | PermissionDenied) => Err(fault),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
