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
    let satellites = Satellites::new(Vec::new());
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
    assert_eq!(satellites.seen().by_id["1"].nonces.len(), 1);
}

#[test]
fn what_a_satellite_sent_before_it_was_removed_counts_no_more_after_it_has_come_back() {
    let satellites = Satellites::new(Vec::new());
    let nonce = format!("{}.abc", satellites.instance);
    let note = |id: &str, now| {
        satellites.note(id, &signature(&nonce), now).map_err(|problem| problem.code)
    };
    assert_eq!(note("1", NOW), Ok(()));
    satellites.forget("1");
    assert_eq!(note("2", NOW + 1), Err(Code::Replayed), "the same key has another id now");
    assert_eq!(note("2", NOW + 61 + SKEW_S), Ok(()));
    assert!(satellites.seen().gone.is_empty());
}

#[test]
fn a_request_that_was_signed_for_another_host_is_refused_where_ours_are_named() {
    let anybodys = Satellites::new(Vec::new());
    assert!(anybodys.check_authority("other.example.com").is_ok());
    let ours = Satellites::new(vec!["control.example.com".into(), "localhost:8090".into()]);
    assert!(ours.check_authority("Control.example.com").is_ok());
    assert!(ours.check_authority("localhost:8090").is_ok());
    for other in ["", "localhost", "control.example.com:443", "other.example.com"] {
        assert!(ours.check_authority(other).is_err(), "{other}");
    }
}

#[tokio::test]
async fn a_key_whose_time_is_over_is_free_again() {
    let folder = crate::testing::Scratch::new();
    let store = crate::store::sqlite::SqliteStore::open(folder.as_ref()).expect("it opens");
    let mut rotated = satellite(2);
    rotated.keep(&satellite(1), NOW);
    let create = |id: &str, satellite: &Satellite| {
        let (kind, id, draft) = (Kind::Satellite, id.to_owned(), satellite.draft());
        let operations = vec![Operation::Create { kind, id, draft, mark: None }];
        Change { actor: "test".into(), now: NOW, operations, once: None, unchanged: None }
    };
    store.apply(create("1", &rotated)).await.expect("it is new");
    let other = Satellite { name: "perth".into(), ..satellite(1) };
    forget_old_keys(&store, NOW + KEY_OVERLAP_S - 1).await.expect("it is looked for");
    store.apply(create("2", &other)).await.expect_err("the key still counts");
    forget_old_keys(&store, NOW + KEY_OVERLAP_S).await.expect("it is forgotten");
    store.apply(create("2", &other)).await.expect("the key is free");
}

#[test]
fn a_satellite_is_silent_when_three_signs_are_missing() {
    let (satellites, when) = (Satellites::new(Vec::new()), Instant::now());
    assert_eq!(satellites.status("1", when).state, SatelliteState::Unknown);
    let alive = Alive { version: "1.2".into(), access_url: None };
    satellites.hear("1", alive, NOW, when);
    let status = satellites.status("1", when + SILENT_AFTER);
    assert_eq!((status.state, status.version.as_deref()), (SatelliteState::Up, Some("1.2")));
    assert_eq!(status.seen_at, Some(Stamp(NOW)));
    let later = satellites.status("1", when + SILENT_AFTER + Duration::from_secs(1));
    assert_eq!(later.state, SatelliteState::Silent);
}
