//! The satellite's key file: Ed25519 pairs as PKCS#8 in PEM (RFC 5208, RFC 8410), for its owner alone.
//!
//! Owns the private halves, which never leave [`Keys`] but into their own file. The first key of the
//! file is the satellite's; one behind it is the key before that, which goes on signing until the
//! primary side has the new one. [`rotate`] and [`settle`] change the file, for whoever starts them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Bytes;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use steer::satellite::{KeyDocument, fingerprint};
use steer::signature::{SIGNATURE_LEN, Signer};
use zeroize::Zeroizing;

use crate::fault::{ExitCode, OperatorFault};
use crate::identity::{replace_private, write_private};

/// Keys of a file: the satellite's, and the one before.
const KEYS_MAX: usize = 2;
/// Bytes of a file, at most; two keys have some 240.
const FILE_LEN_MAX: u64 = 16 * 1024;
/// What to do about a file that cannot be written.
const UNWRITABLE: &str = "satellite_key_file must name a place this process may write";

/// The keys of one file, the satellite's own first.
pub struct Keys {
    pairs: Vec<Pair>,
    document: Bytes,
}

struct Pair {
    private: Ed25519KeyPair,
    fingerprint: String,
}

#[allow(clippy::missing_fields_in_debug, reason = "private halves are never printed (invariant 7)")]
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("fingerprint", &self.fingerprint()).finish()
    }
}

impl Keys {
    /// The keys of the file at `path`, which is made, with its folder, if missing.
    ///
    /// # Errors
    /// When it can be neither read nor made, others can read it, or it holds no such keys.
    pub fn load_or_create(path: &Path) -> Result<Self, OperatorFault> {
        match File::open(path) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
                write(path, &pem_of(&generate()?)?)?;
                Self::load(path)
            }
            Ok(_) | Err(_) => Self::load(path),
        }
    }

    /// The keys of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, others can read it, or it holds no such keys.
    pub fn load(path: &Path) -> Result<Self, OperatorFault> {
        let blocks = read(path)?;
        let pairs: Option<Vec<_>> =
            blocks.iter().map(|der| Pair::from_der(der.secret_pkcs8_der())).collect();
        let pairs = pairs.filter(|pairs| (1..=KEYS_MAX).contains(&pairs.len()));
        let pairs = pairs.ok_or_else(|| not_ours(path))?;
        let document = KeyDocument {
            key: public_pem(&pairs[0].private)?,
            fingerprint: pairs[0].fingerprint.clone(),
        };
        // Two texts under fixed names always serialise.
        let document = serde_json::to_vec(&document).unwrap_or_default().into();
        Ok(Self { pairs, document })
    }

    /// The fingerprint of the satellite's own key.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        // `load` gives at least one key.
        &self.pairs[0].fingerprint
    }

    /// The fingerprint of the key before, while it is kept.
    #[must_use]
    pub fn old_fingerprint(&self) -> Option<&str> {
        self.pairs.get(1).map(|pair| pair.fingerprint.as_str())
    }

    /// The document that tells the public key.
    #[must_use]
    pub fn document(&self) -> &Bytes {
        &self.document
    }

    /// Has `act` sign with every key, the satellite's own first.
    pub fn with_signers<T>(&self, act: impl FnOnce(&[Signer<'_>]) -> T) -> T {
        let primitives: Vec<_> =
            self.pairs.iter().map(|pair| |base: &[u8]| pair.sign(base)).collect();
        let signers = self.pairs.iter().zip(&primitives);
        let signers: Vec<_> =
            signers.map(|(pair, sign)| Signer { keyid: &pair.fingerprint, sign }).collect();
        act(&signers)
    }
}

impl Pair {
    fn from_der(der: &[u8]) -> Option<Self> {
        let private = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let spki = spki(&private).ok()?;
        let sha256 = digest(&SHA256, spki.as_ref());
        let fingerprint = fingerprint(sha256.as_ref().try_into().ok()?);
        Some(Self { private, fingerprint })
    }

    fn sign(&self, base: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut bytes = [0; SIGNATURE_LEN];
        // Signatures of Ed25519 have 64 bytes.
        bytes.copy_from_slice(self.private.sign(base).as_ref());
        bytes
    }
}

/// Puts a new key in front of the file at `path`, whose own key becomes the one before; returns what
/// to do next, in words.
///
/// # Errors
/// As [`Keys::load`], when the file cannot be written, and when it still has a key before its own:
/// that may be the only one which the primary side knows. The file is as it was then.
pub fn rotate(path: &Path) -> Result<String, OperatorFault> {
    let old = Keys::load(path)?;
    if let Some(before) = old.old_fingerprint() {
        return Err(OperatorFault::new(
            ExitCode::Failed,
            format_args!(
                "{}: still has {before} behind {}; once control satellites rotate NAME has taken the new \
             one, run dataplane satellite settle, then rotate again",
                path.display(),
                old.fingerprint()
            ),
        ));
    }
    let mut text = pem_of(&generate()?)?;
    text.extend_from_slice(&pem_of(&old.pairs[0].private)?);
    replace(path, &text)?;
    let new = Keys::load(path)?;
    Ok(format!(
        "new key {}, in {} before {}; now have the dataplane reload (SIGHUP), then run: \
         control satellites rotate NAME",
        new.fingerprint(),
        path.display(),
        old.fingerprint(),
    ))
}

/// Takes the key before the satellite's own out of the file at `path`; returns what was done, in words.
///
/// # Errors
/// As [`rotate`].
pub fn settle(path: &Path) -> Result<String, OperatorFault> {
    let keys = Keys::load(path)?;
    let Some(old) = keys.old_fingerprint() else {
        return Ok(format!("{} holds {} alone", path.display(), keys.fingerprint()));
    };
    replace(path, &pem_of(&keys.pairs[0].private)?)?;
    Ok(format!(
        "{} holds {} alone; {old} is gone from it, and from the dataplane once it has reloaded",
        path.display(),
        keys.fingerprint()
    ))
}

/// The private keys of the file at `path`, which nobody but its owner can read.
fn read(path: &Path) -> Result<Vec<Zeroizing<PrivatePkcs8KeyDer<'static>>>, OperatorFault> {
    let unreadable = |fault: io::Error| {
        OperatorFault::file(path, &fault, "satellite_key_file must name a readable key file")
    };
    let file = File::open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(not_ours(path));
    }
    let mode = found.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(OperatorFault::config(format_args!(
            "{}: others may read this key (mode {:04o}); chmod 600 it, or make a new one if they have",
            path.display(),
            mode & 0o7777
        )));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(1024));
    file.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(unreadable)?;
    let blocks = PrivatePkcs8KeyDer::pem_slice_iter(&text);
    blocks
        .map(|block| block.map(Zeroizing::new))
        .collect::<Result<_, _>>()
        .map_err(|_| not_ours(path))
}

fn not_ours(path: &Path) -> OperatorFault {
    OperatorFault::config(format_args!(
        "{}: holds no Ed25519 key of a satellite; satellite_key_file must hold PKCS#8 in PEM, as \
         openssl genpkey -algorithm ed25519 writes, or name no file to have one made",
        path.display()
    ))
}

fn generate() -> Result<Ed25519KeyPair, OperatorFault> {
    Ed25519KeyPair::generate()
        .map_err(|_| OperatorFault::new(ExitCode::Unavailable, "the system gives no entropy"))
}

fn write(path: &Path, text: &[u8]) -> Result<(), OperatorFault> {
    write_private(path, text).map_err(|fault| OperatorFault::file(path, &fault, UNWRITABLE))
}

/// As [`write()`] over a file that is there: the dataplane that reads it may run as another user.
fn replace(path: &Path, text: &[u8]) -> Result<(), OperatorFault> {
    replace_private(path, text).map_err(|fault| match fs::metadata(path) {
        Ok(found) if fault.kind() == io::ErrorKind::PermissionDenied => {
            let fix = format_args!("run this as user {}, whose file it is", found.uid());
            OperatorFault::file(path, &fault, fix)
        }
        Ok(_) | Err(_) => OperatorFault::file(path, &fault, UNWRITABLE),
    })
}

/// A private key as PEM. Its 48 bytes make one line of base64.
fn pem_of(pair: &Ed25519KeyPair) -> Result<Zeroizing<Vec<u8>>, OperatorFault> {
    let der = pair.to_pkcs8v1().map_err(|_| broken())?;
    // Enough from the start, so that nothing is left behind where it grew; with room for another.
    let mut text = Zeroizing::new(String::with_capacity(512));
    text.push_str("-----BEGIN PRIVATE KEY-----\n");
    BASE64_STANDARD.encode_string(der.as_ref(), &mut text);
    text.push_str("\n-----END PRIVATE KEY-----\n");
    Ok(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
}

/// The public key of `pair` as PEM. Its 44 bytes make one line of base64.
fn public_pem(pair: &Ed25519KeyPair) -> Result<String, OperatorFault> {
    let line = BASE64_STANDARD.encode(spki(pair)?.as_ref());
    Ok(format!("-----BEGIN PUBLIC KEY-----\n{line}\n-----END PUBLIC KEY-----\n"))
}

fn spki(pair: &Ed25519KeyPair) -> Result<PublicKeyX509Der<'static>, OperatorFault> {
    pair.public_key().as_der().map_err(|_| broken())
}

fn broken() -> OperatorFault {
    OperatorFault::new(ExitCode::Failed, "the crypto library refused the satellite's key")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;
    use crate::testing::Scratch;

    /// RFC 9421, appendix B.1.4; the fingerprint is what openssl computes of its public key.
    const KNOWN: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n\
        -----END PRIVATE KEY-----\n";
    const KNOWN_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n\
        -----END PUBLIC KEY-----\n";
    const KNOWN_FINGERPRINT: &str = "SHA256:NFcWBst6DXG+N35nHdzMrioWntdzNZghQSkjHNMMSjw";

    fn private(scratch: &Scratch, text: &str, mode: u32) -> std::path::PathBuf {
        let path = scratch.write("satellite.pem", text);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        path
    }

    /// Some user that is not this one.
    const OTHER: u32 = 12_345;

    /// A key file of another user's; `None`, and a line, where only root can make one.
    fn of_another(scratch: &Scratch) -> Option<std::path::PathBuf> {
        let path = private(scratch, KNOWN, 0o600);
        let given = chown(&path, Some(OTHER), Some(OTHER));
        given.inspect_err(|refusal| eprintln!("skipped: no file for another: {refusal}")).ok()?;
        Some(path)
    }

    #[test]
    fn a_file_stays_its_owners_whoever_changes_it() {
        let scratch = Scratch::new();
        let Some(path) = of_another(&scratch) else { return };
        for change in [rotate, settle] {
            change(&path).expect("root may");
            let found = fs::metadata(&path).expect("it is there");
            assert_eq!((found.uid(), found.gid()), (OTHER, OTHER));
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_would_change_hands_is_left_alone() {
        let scratch = Scratch::new();
        let Some(path) = of_another(&scratch) else { return };
        let fault = std::thread::scope(|scope| {
            let powerless = scope.spawn(|| {
                let mut sets = capabilities(None).expect("they can be asked for");
                sets.effective.remove(CapabilitySet::CHOWN);
                set_capabilities(None, sets).expect("fewer are always granted");
                rotate(&path).expect_err("it cannot give the file back")
            });
            powerless.join().expect("it ends in order")
        });
        assert_eq!(fault.code(), ExitCode::Privilege);
        let what =
            "satellite.pem: operation not permitted; run this as user 12345, whose file it is";
        assert_eq!(scratch.strip(&fault.to_string()), what);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), KNOWN);
        assert_eq!(
            fs::read_dir(scratch.path("")).expect("ours").count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn a_known_key_has_its_public_form_and_fingerprint() {
        let scratch = Scratch::new();
        let keys = Keys::load(&private(&scratch, KNOWN, 0o600)).expect("the file is good");
        assert_eq!(keys.fingerprint(), KNOWN_FINGERPRINT);
        let document: KeyDocument = serde_json::from_slice(keys.document()).expect("JSON");
        assert_eq!(document.key, KNOWN_PUBLIC);
        assert_eq!(document.fingerprint, KNOWN_FINGERPRINT);
        assert_eq!(format!("{keys:?}"), format!("Keys {{ fingerprint: {KNOWN_FINGERPRINT:?} }}"));
    }

    #[test]
    fn a_made_file_is_private_and_gives_the_same_key_again() {
        let scratch = Scratch::new();
        let path = scratch.path("deep/er/satellite.pem");
        let made = Keys::load_or_create(&path).expect("the folder is ours");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).expect("text").lines().count(), 3);
        let again = Keys::load_or_create(&path).expect("the file is good");
        assert_eq!(made.fingerprint(), again.fingerprint());
        assert_eq!(made.old_fingerprint(), None);
        let other = Keys::load_or_create(&scratch.path("other.pem")).expect("the folder is ours");
        assert_ne!(made.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_and_left_alone() {
        let scratch = Scratch::new();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            let path = private(&scratch, KNOWN, mode);
            let fault = Keys::load_or_create(&path).expect_err("others may read it");
            assert_eq!(fault.code(), ExitCode::Config);
            let what = format!(
                "satellite.pem: others may read this key (mode {mode:04o}); chmod 600 it, or make \
                 a new one if they have"
            );
            assert_eq!(scratch.strip(&fault.to_string()), what);
            assert_eq!(fs::read_to_string(&path).expect("it is there"), KNOWN);
        }
    }

    #[test]
    fn what_is_no_satellites_key_is_refused_and_left_alone() {
        let scratch = Scratch::new();
        let three = KNOWN.repeat(3);
        let cut = &KNOWN[..70];
        let public_alone = KNOWN_PUBLIC;
        let x25519 = KNOWN.replace("K2Vw", "K2Vu");
        for text in ["", "nonsense", cut, public_alone, &x25519, &three] {
            let path = private(&scratch, text, 0o600);
            for fault in [
                Keys::load_or_create(&path).expect_err(text),
                rotate(&path).expect_err(text),
                settle(&path).expect_err(text),
            ] {
                assert_eq!(fault.code(), ExitCode::Config);
                let line = scratch.strip(&fault.to_string());
                let start = "satellite.pem: holds no Ed25519 key of a satellite; ";
                assert!(line.starts_with(start), "{line}");
            }
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        }
        let fault = Keys::load_or_create(&scratch.path("")).expect_err("a folder is no file");
        assert!(fault.to_string().contains("holds no Ed25519 key"), "{fault}");
        fs::write(scratch.path("file"), "").expect("the folder is ours");
        let fault =
            Keys::load_or_create(&scratch.path("file/satellite.pem")).expect_err("no folder");
        assert_eq!(fault.code(), ExitCode::Config);
    }

    #[test]
    fn a_new_key_goes_in_front_and_the_old_one_stays_until_settled() {
        let scratch = Scratch::new();
        let path = private(&scratch, KNOWN, 0o600);
        let said = rotate(&path).expect("the file is good");
        let keys = Keys::load(&path).expect("the file is good");
        assert!(said.contains(keys.fingerprint()) && said.contains(KNOWN_FINGERPRINT), "{said}");
        assert_eq!(keys.old_fingerprint(), Some(KNOWN_FINGERPRINT));
        let ids = keys.with_signers(|signers| {
            signers.iter().map(|signer| signer.keyid.to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(ids, [keys.fingerprint(), KNOWN_FINGERPRINT]);
        let fault = rotate(&path).expect_err("the old one may be all that the primary side knows");
        assert!(fault.to_string().contains("dataplane satellite settle"), "{fault}");
        let later = Keys::load(&path).expect("the file is good");
        assert_eq!(later.old_fingerprint(), Some(KNOWN_FINGERPRINT));
        settle(&path).expect("the file is good");
        let settled = Keys::load(&path).expect("the file is good");
        assert_eq!(settled.fingerprint(), keys.fingerprint());
        assert_eq!(settled.old_fingerprint(), None);
        assert!(settle(&path).expect("nothing is to be done").ends_with("alone"));
        rotate(&path).expect("the next rotation may begin");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
