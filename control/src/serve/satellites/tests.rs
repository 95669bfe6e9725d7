//! Which keys count when, and that a request counts once.

use super::*;
use crate::resource::{KEY_OVERLAP_S, fingerprint};

const NOW: UnixS = 1_700_000_000;

fn key(byte: u8) -> String {
    BASE64_STANDARD.encode([byte; 32])
}

fn satellite(byte: u8) -> Satellite {
    let mut made =
        Satellite { name: "sydney".into(), public_key: key(byte), ..Satellite::default() };
    made.check().expect("it is right");
    made
}

fn record(id: &str, satellite: Option<&Satellite>) -> Record {
    Record {
        kind: Kind::Satellite,
        id: id.into(),
        name: "sydney".into(),
        revision: Revision(1),
        created_at: NOW,
        updated_at: NOW,
        body: satellite.map(|satellite| satellite.draft().body),
    }
}

fn signature(nonce: &str) -> Signature {
    let (keyid, base) = (String::new(), String::new());
    let (nonce, bytes) = (nonce.to_owned(), [0; 64]);
    Signature { keyid, created: NOW, expires: NOW + 60, nonce, base, bytes }
}

#[test]
fn a_removed_satellites_keys_are_gone() {
    let mut keys = Keys::default();
    assert_eq!(keys.take(record("1", Some(&satellite(1)))), None);
    assert!(keys.owners.contains_key(&fingerprint(&key(1))));
    assert_eq!(keys.take(record("1", None)), Some("1".into()));
    assert!(keys.owners.is_empty() && keys.held.is_empty());
}

#[test]
fn after_a_rotation_both_keys_count_for_a_while_and_no_third() {
    let mut keys = Keys::default();
    let (first, mut second, mut third) = (satellite(1), satellite(2), satellite(3));
    second.keep(&first, NOW);
    keys.take(record("1", Some(&first)));
    keys.take(record("1", Some(&second)));
    let until = |keys: &Keys, byte| keys.owners.get(&fingerprint(&key(byte))).map(|it| it.until);
    assert_eq!(until(&keys, 1), Some(Some(NOW + KEY_OVERLAP_S)));
    assert_eq!(until(&keys, 2), Some(None));
    third.keep(&second, NOW);
    keys.take(record("1", Some(&third)));
    assert_eq!(until(&keys, 1), None, "two are the most");
    assert_eq!(keys.owners.len(), 2);
    let mut renamed = third.clone();
    renamed.keep(&third, NOW + KEY_OVERLAP_S);
    assert_eq!(renamed.old_key, None, "a change after its time forgets it");
    assert_eq!(third.keys().len(), 2, "nobody else may register the old key");
}

#[test]
fn a_key_that_changes_hands_is_its_new_owners() {
    let mut keys = Keys::default();
    keys.take(record("1", Some(&satellite(1))));
    keys.take(record("2", Some(&satellite(1))));
    keys.take(record("1", None));
    assert_eq!(keys.owners.get(&fingerprint(&key(1))).map(|it| it.row.id.as_str()), Some("2"));
}

#[test]
fn a_nonce_counts_once_and_for_this_process_alone() {
    let satellites = Satellites::new();
    let code = |nonce: &str, now| {
        satellites.note("1", &signature(nonce), now).map_err(|problem| problem.code)
    };
    let word = &satellites.instance;
    for wrong in ["", "abc", ".abc", word, &format!("{word}."), &format!("{word}abc")] {
        assert_eq!(code(wrong, NOW), Err(Code::WrongInstance), "{wrong}");
    }
    let nonce = format!("{word}.abc");
    assert_eq!(code(&nonce, NOW), Ok(()));
    assert_eq!(code(&nonce, NOW), Err(Code::Replayed));
    assert_eq!(code(&nonce, NOW + 60 + SKEW_S), Err(Code::Replayed), "as long as it counts");
    for at in 1..NONCES_MAX {
        assert_eq!(code(&format!("{word}.{at}"), NOW), Ok(()));
    }
    assert_eq!(code(&format!("{word}.more"), NOW), Err(Code::Busy));
    assert_eq!(code(&format!("{word}.more"), NOW + 61 + SKEW_S), Ok(()), "the old are forgotten");
    assert_eq!(satellites.seen()["1"].nonces.len(), 1);
}

#[test]
fn a_satellite_is_silent_when_three_signs_are_missing() {
    let (satellites, when) = (Satellites::new(), Instant::now());
    assert_eq!(satellites.status("1", when).state, SatelliteState::Unknown);
    let alive = Alive { version: "1.2".into(), access_url: None };
    satellites.hear("1", alive, NOW, when);
    let status = satellites.status("1", when + SILENT_AFTER);
    assert_eq!((status.state, status.version.as_deref()), (SatelliteState::Up, Some("1.2")));
    assert_eq!(status.seen_at, Some(Stamp(NOW)));
    let later = satellites.status("1", when + SILENT_AFTER + Duration::from_secs(1));
    assert_eq!(later.state, SatelliteState::Silent);
}
