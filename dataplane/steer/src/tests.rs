//! Snapshots, deltas and messages: round trips, cuts, bounds, and refusals that leave things as they were.

use wire::key::Key;

use super::*;

fn key(number: u32) -> Key {
    let mut key = Key([7; 32]);
    key.0[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn certificate(of: &str) -> Certificate {
    Certificate { chain: format!("chain of {of}\n"), key: SecretPem::new(format!("key of {of}\n")) }
}

/// One of everything, and two of what links join.
fn snapshot() -> Snapshot {
    Snapshot {
        store: "main".to_owned(),
        revision: Revision(7),
        past: "a1".to_owned(),
        sessions: SessionLimits { keepalive_ms: Some(30_000), ..SessionLimits::default() },
        admission: Admission::Registered,
        clients: [("laptop".to_owned(), NodeKey(key(1)))].into(),
        peers: [("a".to_owned(), PeerKey(key(2))), ("b".to_owned(), PeerKey(key(3)))].into(),
        links: [["a".to_owned(), "b".to_owned()]].into(),
        certificates: [("relay".to_owned(), certificate("relay"))].into(),
        drain: false,
    }
}

fn delta(from: u64, to: u64, changes: Vec<Step>) -> Delta {
    Delta { from: Revision(from), to: Revision(to), past: format!("p{to}"), changes }
}

/// Every kind of step, such that snapshots before and after are in bounds.
fn every_step() -> Vec<Step> {
    let name = |name: &str| name.to_owned();
    let pair = |one: &str, other: &str| [name(one), name(other)];
    vec![
        Step::PutClient { name: name("phone"), key: NodeKey(key(4)) },
        Step::DropClient { name: name("laptop") },
        Step::PutPeer { name: name("c"), key: PeerKey(key(5)) },
        Step::PutLink { peers: pair("b", "c") },
        Step::DropLink { peers: pair("a", "b") },
        Step::DropPeer { name: name("a") },
        Step::PutCertificate { name: name("other"), certificate: certificate("other") },
        Step::DropCertificate { name: name("relay") },
        Step::Sessions(SessionLimits::default()),
        Step::Admission(Admission::Open),
        Step::Drain(true),
    ]
}

fn orders() -> Vec<Order> {
    vec![
        Order::Whole(Box::new(snapshot())),
        Order::Delta(delta(7, 9, every_step())),
        Order::Current { revision: Revision(7) },
        Order::goodbye(&"no node is named fra-1"),
    ]
}

fn said() -> Vec<Said> {
    let hello = |store: Option<&str>, revision| Said::Hello {
        protocol: PROTOCOL,
        node: "fra-1".to_owned(),
        version: "0.1.0".to_owned(),
        store: store.map(str::to_owned),
        revision: Revision(revision),
        past: if revision > 0 { "a1".to_owned() } else { String::new() },
    };
    vec![
        hello(None, 0),
        hello(Some("main"), 7),
        Said::Adopted { revision: Revision(7) },
        Said::refused(Revision(7), &"links: no peer is named \"x\""),
        Said::Report { sessions: 12, draining: false, stalled_cores: 0 },
    ]
}

#[test]
fn a_snapshot_has_a_fixed_text_form() {
    let text = Snapshot { certificates: [].into(), ..snapshot() }.to_text();
    let expected = [
        r#"{"store":"main","revision":7,"past":"a1","sessions":{"keepalive_ms":30000},"admission":"registered","#,
        &format!(r#""clients":{{"laptop":"{}"}},"#, NodeKey(key(1))),
        &format!(r#""peers":{{"a":"{}","b":"{}"}},"#, PeerKey(key(2)), PeerKey(key(3))),
        r#""links":[["a","b"]],"certificates":{},"drain":false}"#,
    ];
    assert_eq!(text, expected.concat());
}

#[test]
fn every_message_round_trips_as_one_line() {
    for order in orders() {
        let line = order.to_line();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        let read = Order::read(line.as_bytes()).expect("ours").expect("known");
        assert_eq!(read.to_line(), line);
    }
    for said in said() {
        let line = said.to_line();
        assert!(line.len() <= SAID_BYTES_MAX);
        assert_eq!(Said::read(line.as_bytes()), Ok(Some(said)));
    }
}

#[test]
fn messages_have_fixed_text_forms() {
    assert_eq!(orders()[2].to_line(), "{\"current\":{\"revision\":7}}\n");
    assert_eq!(said()[2].to_line(), "{\"adopted\":{\"revision\":7}}\n");
    assert_eq!(
        said()[0].to_line(),
        "{\"hello\":{\"protocol\":2,\"node\":\"fra-1\",\"version\":\"0.1.0\",\"store\":null,\"revision\":0,\"past\":\"\"}}\n"
    );
    let line = Order::Delta(delta(7, 8, vec![Step::DropPeer { name: "a".to_owned() }])).to_line();
    assert_eq!(
        line,
        "{\"delta\":{\"from\":7,\"to\":8,\"past\":\"p8\",\"changes\":[{\"drop_peer\":{\"name\":\"a\"}}]}}\n"
    );
}

#[test]
fn nothing_cut_short_is_read() {
    for line in orders().iter().map(Order::to_line) {
        for len in 0..line.len() - 1 {
            assert!(Order::read(&line.as_bytes()[..len]).is_err(), "cut at {len}: {line}");
        }
    }
    for line in said().iter().map(Said::to_line) {
        for len in 0..line.len() - 1 {
            assert!(Said::read(&line.as_bytes()[..len]).is_err(), "cut at {len}: {line}");
        }
    }
    let text = snapshot().to_text();
    assert!((0..text.len()).all(|len| Snapshot::read(&text.as_bytes()[..len]).is_err()));
}

#[test]
fn unknown_kinds_and_fields_of_messages_are_skipped_but_none_of_a_snapshot() {
    assert!(matches!(Order::read(br#"{"weather":{"rain":true}}"#), Ok(None)));
    assert_eq!(Said::read(br#"{"weather":"fine"}"#), Ok(None));
    let line = br#"{"current":{"revision":7,"since":"noon"}}"#;
    assert!(matches!(Order::read(line), Ok(Some(Order::Current { revision: Revision(7) }))));
    let strange: [fn(&str) -> String; 4] = [
        |line| line.replacen("\"drain\"", "\"rain\"", 1),
        |line| line.replacen("\"drain\"", "\"rain\":1,\"drain\"", 1),
        |line| line.replacen("keepalive_ms", "keepalive_s", 1),
        |line| line.replacen("\"registered\"", "\"invited\"", 1),
    ];
    let line = orders()[0].to_line();
    for change in strange {
        let line = change(&line);
        assert!(matches!(Order::read(line.as_bytes()), Err(Refusal::Malformed(_))), "{line}");
    }
    let line = orders()[1].to_line().replacen("drop_peer", "paint_peer", 1);
    let fault = Order::read(line.as_bytes()).expect_err("unknown step").to_string();
    assert!(fault.contains("paint_peer"), "{fault}");
}

#[test]
fn other_json_is_malformed() {
    for line in ["", "{}", "[]", "null", "7", "{\"current\":7}", "{\"current\":{},\"whole\":{}}"] {
        assert!(matches!(Order::read(line.as_bytes()), Err(Refusal::Malformed(_))), "{line:?}");
    }
    assert!(Order::read(b"\xff\n").is_err());
    assert!(Order::read("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn what_is_said_of_a_malformed_line_holds_none_of_its_values() {
    let line = orders()[0].to_line();
    let key = "\"key of relay\\n\"";
    assert!(line.contains(key));
    for bad in [
        line.replace("\"chain\":\"chain of relay\\n\"", "\"chain\":7"),
        line.replace("\"drain\":false", &format!("\"drain\":{key}")),
        line.replace("\"revision\":7", &format!("\"revision\":{key}")),
        line.replace(&format!("\"key\":{key}"), &format!("\"key\":[{key}]")),
    ] {
        let fault = Order::read(bad.as_bytes()).expect_err("malformed").to_string();
        assert!(!fault.contains("key of relay"), "{fault}");
        assert!(fault.contains("at byte"), "{fault}");
    }
    assert!(!format!("{:?}", orders()).contains("key of"));
}

#[test]
fn reasons_are_cut_at_a_character() {
    let why = "é".repeat(WHY_BYTES_MAX);
    let Said::Refused { why: said, .. } = Said::refused(Revision(1), &format!("x{why}")) else {
        panic!("a refusal")
    };
    assert_eq!(said.len(), WHY_BYTES_MAX - 1);
    assert!(Said::refused(Revision(u64::MAX), &"\u{1}".repeat(2000)).to_line().len() < 8 << 10);
}

#[test]
fn a_delta_leads_to_the_next_snapshot() {
    let before = snapshot();
    let text = before.to_text();
    let after = before.after(&delta(7, 9, every_step())).expect("in bounds");
    assert_eq!(before.to_text(), text);
    let expected = Snapshot {
        revision: Revision(9),
        past: "p9".to_owned(),
        sessions: SessionLimits::default(),
        admission: Admission::Open,
        clients: [("phone".to_owned(), NodeKey(key(4)))].into(),
        peers: [("b".to_owned(), PeerKey(key(3))), ("c".to_owned(), PeerKey(key(5)))].into(),
        links: [["b".to_owned(), "c".to_owned()]].into(),
        certificates: [("other".to_owned(), certificate("other"))].into(),
        drain: true,
        ..before
    };
    assert_eq!(after.to_text(), expected.to_text());
}

#[test]
fn only_the_outcome_of_a_delta_is_judged() {
    let swap = [("a", 3), ("b", 2)];
    let swap = swap.map(|(name, n)| Step::PutPeer { name: name.to_owned(), key: PeerKey(key(n)) });
    let after = snapshot().after(&delta(7, 8, swap.into())).expect("distinct in the end");
    assert_eq!(after.peers["a"], PeerKey(key(3)));
    let gone = Step::DropClient { name: "never seen".to_owned() };
    assert!(snapshot().after(&delta(7, 8, vec![gone])).is_ok());
}

#[test]
fn a_delta_brings_its_past_and_a_text_of_before_there_were_any_is_read() {
    assert_eq!(snapshot().after(&delta(7, 8, vec![])).expect("it fits").past, "p8");
    let text = snapshot().to_text().replacen("\"past\":\"a1\",", "", 1);
    assert_eq!(Snapshot::read(text.as_bytes()).expect("it is read").past, "");
}

#[test]
fn a_delta_that_does_not_fit_is_refused() {
    let refused =
        |from, to, changes| snapshot().after(&delta(from, to, changes)).expect_err("does not fit");
    assert_eq!(refused(6, 8, vec![]), Refusal::Gap { from: Revision(6), in_force: Revision(7) });
    assert_eq!(
        refused(7, 7, vec![]),
        Refusal::Stale { offered: Revision(7), in_force: Revision(7) }
    );
    let why = refused(7, 8, vec![Step::DropPeer { name: "a".to_owned() }]).to_string();
    assert_eq!(why, "links: no peer is named \"a\"");
    let twin = Step::PutClient { name: "twin".to_owned(), key: NodeKey(key(1)) };
    assert_eq!(refused(7, 8, vec![twin]).to_string(), "clients: twin has the key of another");
}

#[test]
fn numbers_never_go_back_but_those_of_another_store_may() {
    let old = snapshot();
    let numbered = |store: &str, revision| Snapshot {
        store: store.to_owned(),
        revision: Revision(revision),
        ..snapshot()
    };
    assert_eq!(numbered("main", 1).may_replace(None), Ok(()));
    assert_eq!(numbered("main", 7).may_replace(Some(&old)), Ok(()));
    assert_eq!(numbered("spare", 1).may_replace(Some(&old)), Ok(()));
    let stale = Refusal::Stale { offered: Revision(6), in_force: Revision(7) };
    assert_eq!(numbered("main", 6).may_replace(Some(&old)), Err(stale));
}

#[test]
fn values_out_of_bounds_are_refused_in_words() {
    let refused = |change: fn(&mut Snapshot), word: &str| {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        let why = snapshot.check().expect_err(word).to_string();
        assert!(why.contains(word), "{why}");
        let text = snapshot.to_text();
        assert!(matches!(Snapshot::read(text.as_bytes()), Err(Refusal::Bounds(_))));
    };
    assert_eq!(snapshot().check(), Ok(()));
    refused(|s| s.store.clear(), "store");
    refused(|s| s.past = "a b".to_owned(), "past");
    refused(|s| s.sessions.queue_packets_max = Some(0), "queue_packets_max");
    refused(|s| assert!(s.clients.insert("a b".to_owned(), NodeKey(key(9))).is_none()), "a b");
    refused(|s| assert!(s.clients.insert("x".repeat(64), NodeKey(key(9))).is_none()), "no name");
    refused(|s| assert!(s.peers.insert("c".to_owned(), PeerKey(key(2))).is_none()), "peers: c");
    refused(|s| assert!(s.links.insert(["b", "a"].map(str::to_owned))), "in order");
    refused(|s| assert!(s.links.insert(["a", "a"].map(str::to_owned))), "in order");
    refused(|s| assert!(s.links.insert(["a", "z"].map(str::to_owned))), "\"z\"");
    let with = |chain: String, key: &str| {
        let certificate = Certificate { chain, key: SecretPem::new(key.to_owned()) };
        let certificates = [("relay".to_owned(), certificate)].into();
        Snapshot { certificates, ..snapshot() }.check().expect_err("no PEM").to_string()
    };
    assert!(with("x".repeat(PEM_BYTES_MAX + 1), "").contains("relay: chain"));
    assert!(with(String::new(), "\u{0}").contains("relay: key is no PEM"));
}

#[test]
fn each_table_has_its_bound() {
    let numbers = |count: usize| 0..count as u32 + 1;
    let refused = |snapshot: Snapshot| snapshot.check().expect_err("too many").to_string();
    let name = |number: u32| format!("n{number}");
    let clients = numbers(CLIENTS_MAX).map(|n| (name(n), NodeKey(key(n)))).collect();
    assert_eq!(refused(Snapshot { clients, ..snapshot() }), "100001 clients; 100000 are the most");
    let peers = numbers(PEERS_MAX).map(|n| (name(n), PeerKey(key(n)))).collect();
    assert_eq!(refused(Snapshot { peers, ..snapshot() }), "4097 peers; 4096 are the most");
    let certificates = numbers(CERTIFICATES_MAX).map(|n| (name(n), certificate("many"))).collect();
    assert_eq!(
        refused(Snapshot { certificates, ..snapshot() }),
        "65 certificates; 64 are the most"
    );
    let peers = (0..92).map(|n| (format!("{n:02}"), PeerKey(key(n)))).collect();
    let pairs = (0..92).flat_map(|one| (one + 1..92).map(move |other| (one, other)));
    let links = pairs.take(LINKS_MAX + 1).map(|(a, b)| [format!("{a:02}"), format!("{b:02}")]);
    let links = links.collect();
    assert_eq!(refused(Snapshot { peers, links, ..snapshot() }), "4097 links; 4096 are the most");
}

#[test]
fn a_snapshot_at_all_of_its_bounds_is_a_line() {
    let name = |number: usize| format!("{number:0>NAME_BYTES_MAX$}");
    let pem = "\n".repeat(PEM_BYTES_MAX);
    let certificate = || Certificate { chain: pem.clone(), key: SecretPem::new(pem.clone()) };
    let snapshot = Snapshot {
        store: name(0),
        revision: Revision(u64::MAX),
        clients: (0..CLIENTS_MAX).map(|n| (name(n), NodeKey(key(n as u32)))).collect(),
        peers: (0..PEERS_MAX).map(|n| (name(n), PeerKey(key(n as u32)))).collect(),
        links: (1..PEERS_MAX).map(|n| [name(0), name(n)]).collect(),
        certificates: (0..CERTIFICATES_MAX).map(|n| (name(n), certificate())).collect(),
        ..snapshot()
    };
    assert_eq!(snapshot.check(), Ok(()));
    let line = Order::Whole(Box::new(snapshot)).to_line();
    assert!(line.len() - 1 <= LINE_BYTES_MAX, "{} bytes", line.len());
}
