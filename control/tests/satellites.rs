//! Satellites as they live: signed signs of life, rotation of keys, and every way to be refused.
#![forbid(unsafe_code)]

mod harness;

use std::sync::{Arc, Mutex};

use harness::signing::{BODY, Signed, Signing, instance, now, send};
use harness::{Control, TlsSatellite};
use serde_json::{Value, json};
use steer::satellite::ALIVE_BYTES_MAX;
use steer::signature::Fields;

fn listed(control: &Control) -> Value {
    control.cli(&["satellites", "ls", "--output", "json"]).json()["items"].clone()
}

#[test]
fn a_signed_sign_of_life_marks_the_satellite_as_there() {
    let control = Control::start();
    let (token, key) = (control.token("ci", "register"), Signing::new());
    assert_eq!(key.register(&control, &token, "sydney").status, 201);
    assert_eq!(listed(&control)[0]["status"], json!({"state": "unknown"}));
    let word = instance(&control);
    let heard = send(&control, &key.sign(BODY, &word, now()));
    assert_eq!(heard.status, 200, "{}", heard.body);
    assert_eq!(heard.json(), json!({"name": "sydney", "fingerprint": key.fingerprint()}));
    let row = listed(&control)[0].clone();
    assert_eq!(
        (&row["status"]["state"], &row["status"]["version"]),
        (&json!("up"), &json!("1.2.3"))
    );
    assert_eq!(row["access_url"], "https://sydney.example", "it was registered without");
    assert!(control.cli(&["audit"]).out.contains("satellite:sydney"));
    let table = control.cli(&["satellites", "ls"]).out;
    assert!(
        table.contains("STATE") && table.contains(" up ") && table.contains("1.2.3"),
        "{table}"
    );
    let elsewhere = r#"{"version": "1", "access_url": "https://elsewhere.example"}"#;
    assert_eq!(send(&control, &key.sign(elsewhere, &word, now())).status, 200);
    let row = listed(&control)[0].clone();
    assert_eq!(row["access_url"], "https://sydney.example", "what is registered stays");
    assert_eq!(row["status"]["access_url"], "https://elsewhere.example", "but is told");
    let metrics =
        control.ask("GET", "/metrics", &[("authorization", &format!("Bearer {token}"))], "");
    assert!(metrics.body.contains("control_satellite_reports_total 2"), "{}", metrics.body);
}

#[test]
fn a_request_counts_once_and_not_after_a_restart() {
    let mut control = Control::start();
    let (token, key) = (control.token("ci", "register"), Signing::new());
    key.register(&control, &token, "sydney");
    let signed = key.sign(BODY, &instance(&control), now());
    assert_eq!(send(&control, &signed).status, 200);
    let again = send(&control, &signed);
    assert_eq!((again.status, again.code()), (409, "replayed".into()));
    control.kill();
    let control = control.start_again();
    let again = send(&control, &signed);
    assert_eq!((again.status, again.code()), (409, "wrong_instance".into()));
    assert_eq!(listed(&control)[0]["status"]["state"], "unknown");
    assert_eq!(send(&control, &key.sign(BODY, &instance(&control), now())).status, 200);
}

#[test]
fn what_is_not_signed_by_a_registered_key_now_is_refused() {
    let control = Control::start();
    let (token, key) = (control.token("ci", "register"), Signing::new());
    key.register(&control, &token, "sydney");
    let word = instance(&control);
    let code = |signed: &Signed| send(&control, signed).code();
    let good = key.sign(BODY, &word, now());
    let altered = Signed { body: BODY.replace("1.2.3", "9.9.9"), ..good.clone() };
    assert_eq!(code(&altered), "signature_rejected");
    let digest = Signing::new().sign(&altered.body, &word, now()).fields.content_digest;
    let fields = Fields { content_digest: digest, ..good.fields.clone() };
    assert_eq!(code(&Signed { fields, ..altered }), "signature_rejected", "it is covered");
    let stranger = send(&control, &Signing::new().sign(BODY, &word, now()));
    assert_eq!((stranger.status, stranger.code()), (401, "signature_rejected".into()));
    assert!(stranger.body.contains("control satellites create"), "{}", stranger.body);
    let impostor = Signing::new().sign(BODY, &word, now());
    let input = impostor.fields.signature_input.clone();
    let start = input.find("keyid=").expect("it has one");
    let input =
        format!("{}keyid=\"{}\";tag=\"perigee-satellite\"", &input[..start], key.fingerprint());
    let fields = Fields { signature_input: input, ..impostor.fields };
    assert_eq!(code(&Signed { fields, ..impostor }), "signature_rejected", "another's name");
    for off in [-3600, 3600] {
        let apart = send(&control, &key.sign(BODY, &word, now() + off));
        assert_eq!((apart.status, apart.code()), (401, "clock_apart".into()));
        assert!(apart.body.contains("set the clocks"), "{}", apart.body);
    }
    for (body, wanted) in [
        ("{}", "bad_request"),
        ("nonsense", "bad_request"),
        (r#"{"version": ""}"#, "invalid_field"),
        (r#"{"version": "1", "access_url": "ftp://x"}"#, "invalid_field"),
    ] {
        assert_eq!(code(&key.sign(body, &word, now())), wanted, "{body}");
    }
    let long = format!(r#"{{"version": "{}"}}"#, "1".repeat(ALIVE_BYTES_MAX));
    let large = send(&control, &key.sign(&long, &word, now()));
    assert_eq!((large.status, large.code()), (413, "too_large".into()));
    assert_eq!(listed(&control)[0]["status"]["state"], "unknown", "none of it counted");
    assert_eq!(send(&control, &good).status, 200, "nor did it use anything up");
}

#[test]
fn a_removed_satellite_is_refused_at_once() {
    let control = Control::start();
    let (token, key) = (control.token("ci", "register"), Signing::new());
    key.register(&control, &token, "sydney");
    let word = instance(&control);
    assert_eq!(send(&control, &key.sign(BODY, &word, now())).status, 200);
    control.cli(&["satellites", "rm", "sydney", "--yes"]).expect_success();
    assert_eq!(send(&control, &key.sign(BODY, &word, now())).code(), "signature_rejected");
    key.register(&control, &token, "perth");
    assert_eq!(listed(&control)[0]["status"], json!({"state": "unknown"}), "it is another one");
    let heard = send(&control, &key.sign(BODY, &word, now()));
    assert_eq!(heard.json()["name"], "perth", "its key may be registered again");
}

#[test]
fn of_concurrent_creates_of_one_name_or_one_key_exactly_one_wins() {
    let control = Control::start();
    let token = control.token("ci", "register");
    let one = Signing::new();
    let many = |create: &(dyn Fn(usize) -> u16 + Sync)| {
        let statuses: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..16).map(|at| scope.spawn(move || create(at))).collect();
            tries.into_iter().map(|one| one.join().expect("no try panics")).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
    };
    many(&|at| one.register(&control, &token, &format!("name{at}")).status);
    many(&|_| Signing::new().register(&control, &token, "sydney").status);
    assert_eq!(listed(&control).as_array().map(Vec::len), Some(2));
}

#[test]
fn a_wrong_token_or_a_taken_key_registers_nothing() {
    let control = Control::start();
    let (key, reader) = (Signing::new(), control.token("reader", "read"));
    let gone = control.token("gone", "register");
    control.cli(&["tokens", "rm", "gone", "--yes"]).expect_success();
    for (token, status) in [("", 401), ("nonsense", 401), (&*gone, 401), (&*reader, 403)] {
        let refused = key.register(&control, token, "sydney");
        assert_eq!(refused.status, status, "{}", refused.body);
        assert!(refused.json()["error"]["msg"].is_string(), "{}", refused.body);
    }
    assert_eq!(listed(&control), json!([]));
    let (url, _) = changing(&key);
    control.cli(&["satellites", "create", "sydney", &url, "--yes"]).expect_success();
    let taken = control.cli(&["satellites", "create", "perth", &url, "--yes"]);
    assert_eq!(taken.code, 3, "{}", taken.errors);
    let last = taken.errors.trim_end().lines().last().unwrap_or_default().to_owned();
    assert_eq!(last, r#"control: satellite "sydney" has this public key already"#);
    assert_eq!(listed(&control).as_array().map(Vec::len), Some(1));
}

/// A satellite whose key can be changed, and what it tells.
fn changing(first: &Signing) -> (String, impl Fn(&Signing) + use<>) {
    let document =
        |key: &Signing| json!({"key": key.public(), "fingerprint": key.fingerprint()}).to_string();
    let told = Arc::new(Mutex::new(document(first)));
    let tell = Arc::clone(&told);
    let url = harness::serve("/api/private/satellites/key", move || {
        told.lock().expect("no reader panics").clone()
    });
    (url, move |key: &Signing| *tell.lock().expect("no reader panics") = document(key))
}

#[test]
fn a_rotated_key_counts_and_the_old_one_for_a_while() {
    let control = Control::start();
    let (old, new, newer) = (Signing::new(), Signing::new(), Signing::new());
    let (url, change) = changing(&old);
    control.cli(&["satellites", "create", "sydney", &url, "--yes"]).expect_success();
    let unchanged = control.cli(&["satellites", "rotate", "sydney", "--yes"]);
    assert_eq!(unchanged.code, 1, "{}", unchanged.errors);
    assert!(unchanged.errors.contains("dataplane satellite rotate"), "{}", unchanged.errors);
    change(&new);
    let refused = control.cli_with(&["satellites", "rotate", "sydney"], "n\n");
    assert_eq!(refused.code, 1, "{}", refused.errors);
    for fingerprint in [old.fingerprint(), new.fingerprint()] {
        assert!(refused.errors.contains(&fingerprint), "both are shown: {}", refused.errors);
    }
    let word = instance(&control);
    let code = |key: &Signing| send(&control, &key.sign(BODY, &word, now())).status;
    assert_eq!((code(&old), code(&new)), (200, 401), "nothing has changed");
    let done = control.cli_with(&["satellites", "rotate", "sydney"], "y\n").expect_success();
    assert!(done.out.contains("the old key counts until 20"), "{}", done.out);
    assert_eq!((code(&old), code(&new)), (200, 200));
    let answer = send(&control, &old.sign(BODY, &word, now())).json();
    assert_eq!(answer["fingerprint"], json!(new.fingerprint()), "it is told which is registered");
    let token = control.token("ci", "register");
    let taken = old.register(&control, &token, "thief");
    assert_eq!(taken.status, 409, "the old key is still its own: {}", taken.body);
    let mut renamed = listed(&control)[0].clone();
    // The command line adds what probing found.
    renamed.as_object_mut().expect("a record").remove("health");
    let path = "/api/v1/satellites/sydney";
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let put = control.ask("PUT", path, &headers, &renamed.to_string());
    assert_eq!((put.status, &put.json()["old_key"]), (200, &renamed["old_key"]), "{}", put.body);
    change(&newer);
    control.cli(&["satellites", "rotate", "sydney", "--yes"]).expect_success();
    assert_eq!((code(&old), code(&new), code(&newer)), (401, 200, 200), "two are the most");
    control.cli(&["satellites", "rm", "sydney", "--yes"]).expect_success();
    assert_eq!((code(&old), code(&new), code(&newer)), (401, 401, 401));
}

#[test]
fn a_rotation_that_cannot_be_leaves_the_old_key() {
    let control = Control::start();
    assert_eq!(control.cli(&["satellites", "rotate", "nobody", "--yes"]).code, 4);
    let (token, key) = (control.token("ci", "register"), Signing::new());
    key.register(&control, &token, "placeless");
    let placeless = control.cli(&["satellites", "rotate", "placeless", "--yes"]);
    assert_eq!(placeless.code, 1, "{}", placeless.errors);
    let satellite = TlsSatellite::start();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let make = |name: &str, url: &str, key: &str| {
        let body = json!({"name": name, "access_url": url, "public_key": key}).to_string();
        let made = control.ask("POST", "/api/v1/satellites", &headers, &body);
        assert_eq!(made.status, 201, "{}", made.body);
    };
    make("secret", &satellite.url, &harness::key(7));
    make("gone", "http://127.0.0.1:1", &harness::key(8));
    let stranger = control.cli(&["satellites", "rotate", "secret", "--yes"]);
    assert_eq!(stranger.code, 1, "{}", stranger.errors);
    assert!(stranger.errors.contains("certificate"), "{}", stranger.errors);
    assert!(stranger.errors.contains("--ca"), "{}", stranger.errors);
    let gone = control.cli(&["satellites", "rotate", "gone", "--yes"]);
    assert_eq!(gone.code, 1, "{}", gone.errors);
    // The key that the satellite tells is another one's.
    make("first", "", harness::KEY);
    let authority = harness::write(&control.scratch, "ca.pem", &satellite.authority);
    let rotate = ["satellites", "rotate", "secret", "--yes", "--ca", &authority];
    let taken = control.cli(&rotate);
    assert_eq!(taken.code, 3, "{}", taken.errors);
    let why = r#"satellite "first" has this public key already"#;
    assert!(taken.errors.contains(why), "{}", taken.errors);
    for fault in [&placeless, &stranger, &gone] {
        assert_eq!(fault.errors.trim_end().lines().count(), 1, "{}", fault.errors);
    }
    let row = listed(&control)
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["name"] == "secret").cloned());
    let row = row.expect("it is listed");
    assert_eq!((&row["public_key"], row.get("old_key")), (&json!(harness::key(7)), None));
    control.cli(&["satellites", "rm", "first", "--yes"]).expect_success();
    control.cli(&rotate).expect_success();
}
