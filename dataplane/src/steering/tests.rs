//! A scripted control: what it writes, what the helm makes of it, and what stays when it is wrong.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use steer::{
    Admission, Delta, LINE_BYTES_MAX, NodeKey, Order, PeerKey, Revision, SAID_BYTES_MAX, Said,
    SecretPem, SessionLimits, Sessions, Snapshot, Step,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use wire::key::Key;

use super::conversation::hold;
use super::*;
use crate::certs::{HostName, Source};
use crate::front::pages::Unready;
use crate::relay::Command;
use crate::testing::{self, Scratch};
use crate::udp::Errand;

const LAPTOP: Key = Key([1; 32]);
const PHONE: Key = Key([2; 32]);

/// A helm that keeps what it adopts at `state`.
fn helm(state: Option<&Path>) -> (Arc<Front>, Helm) {
    let front = Arc::new(testing::front(10));
    let state = state.map(Path::to_owned);
    let helm = Helm::new(Arc::clone(&front), None, None, Sessions::default(), Vec::new(), state);
    (front, helm)
}

/// The laptop alone is let in; two peers are linked.
fn snapshot(revision: u64) -> Snapshot {
    Snapshot {
        store: "main".to_owned(),
        revision: Revision(revision),
        admission: Admission::Registered,
        clients: [("laptop".to_owned(), NodeKey(LAPTOP))].into(),
        peers: [("a".to_owned(), PeerKey(LAPTOP)), ("b".to_owned(), PeerKey(PHONE))].into(),
        links: [["a".to_owned(), "b".to_owned()]].into(),
        ..Snapshot::default()
    }
}

fn whole(snapshot: Snapshot) -> String {
    Order::Whole(Box::new(snapshot)).to_line()
}

fn delta(from: u64, to: u64, changes: Vec<Step>) -> String {
    let past = format!("p{to}");
    Order::Delta(Delta { from: Revision(from), to: Revision(to), past, changes }).to_line()
}

/// A conversation in which control writes `lines` and reads one answer for each of `answers`; gives
/// what the dataplane said but for reports, and how it ended once control hung up.
async fn converse(helm: &mut Helm, lines: &str, answers: usize) -> (Vec<Said>, Ended) {
    let (theirs, ours) = duplex(1 << 16);
    let control = Control::Unix("control.sock".into());
    tokio::join!(speak(theirs, lines, answers + 1), hold(ours, helm, &control, "fra-1"))
}

/// Control's side: writes, and hangs up after `answers` messages.
async fn speak(mut stream: DuplexStream, lines: &str, answers: usize) -> Vec<Said> {
    let mut read = steer::Lines::new(SAID_BYTES_MAX);
    let mut said = Vec::new();
    let mut piece = [0; 256];
    // A dataplane that hangs up amid a line is what some tests want.
    let _ = stream.write_all(lines.as_bytes()).await;
    while said.len() < answers {
        let count = stream.read(&mut piece).await.expect("the dataplane hangs up in order");
        if count == 0 {
            break;
        }
        read.push(&piece[..count]).expect("short lines");
        let lines = std::iter::from_fn(|| read.pop());
        let heard = lines.map(|line| Said::read(&line).expect("readable").expect("known"));
        said.extend(heard.filter(|said| !matches!(said, Said::Report { .. })));
    }
    said
}

/// The commands that wait for core 0, by name.
fn commands(front: &Front) -> Vec<&'static str> {
    let name = |command: Command<_>| match command {
        Command::Adopt(_) => "adopt",
        Command::Drain { .. } => "drain",
        Command::Resume => "resume",
        Command::Tune(_) => "tune",
        Command::Udp(Errand::Register(_)) => "register",
        Command::Udp(_) => "udp",
        Command::Stop => "stop",
    };
    std::iter::from_fn(|| front.fabric.mailbox(0).take()).map(name).collect()
}

fn answer_to(helm: &mut Helm, line: &str) -> Said {
    match helm.obey(line.as_bytes()) {
        helm::Obeyed::Answer(said) | helm::Obeyed::Refuse(said) => said,
        helm::Obeyed::Noted | helm::Obeyed::Goodbye(_) => panic!("no answer to {line}"),
    }
}

fn adopted(revision: u64) -> Said {
    Said::Adopted { revision: Revision(revision) }
}

#[track_caller]
fn assert_refused(said: &Said, revision: u64, word: &str) {
    match said {
        Said::Refused { revision: of, why } => {
            assert_eq!(*of, Revision(revision), "{why}");
            assert!(why.contains(word), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fresh_relay_says_hello_and_goes_by_what_it_is_told() {
    let (front, mut helm) = helm(None);
    assert!(front.fabric.admits(&PHONE));
    let lines = whole(snapshot(7))
        + &delta(7, 8, vec![Step::PutClient { name: "p".to_owned(), key: NodeKey(PHONE) }]);
    let (said, ended) = converse(&mut helm, &lines, 2).await;
    let hello = Said::Hello {
        protocol: steer::PROTOCOL,
        node: "fra-1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store: None,
        revision: Revision(0),
        past: String::new(),
    };
    assert_eq!(said, [hello, adopted(7), adopted(8)]);
    assert!(ended.heard && ended.why.contains("hung up"), "{}", ended.why);
    assert!(front.fabric.admits(&LAPTOP) && front.fabric.admits(&PHONE));
    assert!(!front.fabric.admits(&Key([3; 32])));
    // The delta touched no peers and no limits.
    assert_eq!(commands(&front), ["tune", "register"]);
    let cells = helm.cells();
    assert_eq!([&cells.revision, &cells.adopted, &cells.refused].map(|it| it.value()), [8, 2, 0]);
    assert!(cells.confirmed_unix_s.value() > 0);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (front, mut helm) = helm(None);
    assert_refused(&answer_to(&mut helm, &delta(3, 4, vec![])), 4, "does not fit 0");
    assert_eq!(answer_to(&mut helm, &whole(snapshot(7))), adopted(7));
    commands(&front);
    let before = helm.in_force().expect("adopted").to_text();
    let loose = Step::DropPeer { name: "a".to_owned() };
    let none = SessionLimits { queue_packets_max: Some(0), ..SessionLimits::default() };
    for (line, revision, word) in [
        (delta(6, 8, vec![]), 8, "does not fit 7"),
        (delta(7, 7, vec![]), 7, "below"),
        (delta(7, 8, vec![Step::Drain(true), loose]), 8, "no peer is named"),
        (
            delta(7, 8, vec![Step::Drain(true), Step::Sessions(none)]),
            8,
            "queue_packets_max is zero",
        ),
        (whole(snapshot(6)), 6, "below 7"),
        ("{\"whole\":{}}\n".to_owned(), 7, "malformed"),
        ("no JSON\n".to_owned(), 7, "malformed"),
        ("\n".to_owned(), 7, "malformed"),
    ] {
        assert_refused(&answer_to(&mut helm, &line), revision, word);
    }
    assert_eq!(helm.in_force().expect("adopted").to_text(), before);
    assert!(commands(&front).is_empty() && !front.is_draining());
    assert_eq!(helm.cells().refused.value(), 9);
    // Another store's numbers are another matter.
    let other = Snapshot { store: "spare".to_owned(), ..snapshot(1) };
    assert_eq!(answer_to(&mut helm, &whole(other)), adopted(1));
}

#[test]
fn nothing_is_asked_of_a_core_that_does_not_turn() {
    let (front, mut helm) = helm(None);
    front.set_unready(vec![Unready::CoreStalled(0)]);
    assert_refused(&answer_to(&mut helm, &whole(snapshot(7))), 7, "core 0 stalled");
    assert!(commands(&front).is_empty());
    assert!(matches!(helm.report(), Said::Report { stalled_cores: 1, .. }));
    front.set_unready(Vec::new());
    assert_eq!(answer_to(&mut helm, &whole(snapshot(7))), adopted(7));
}

#[tokio::test]
async fn unknown_messages_are_skipped_and_a_goodbye_is_heard() {
    let (_, mut helm) = helm(None);
    let lines = "{\"weather\":{\"rain\":true}}\n".to_owned()
        + &Order::Current { revision: Revision(0) }.to_line()
        + &Order::goodbye(&"no node is named fra-1").to_line();
    let (said, ended) = converse(&mut helm, &lines, 1).await;
    assert_eq!(said.len(), 1, "nothing but hello");
    assert!(ended.why.contains("no node is named fra-1"), "{}", ended.why);
    assert_eq!(helm.cells().unknown.value(), 1);
    assert_eq!(helm.cells().confirmed_unix_s.value(), 0);
}

#[tokio::test]
async fn a_line_cut_short_or_too_long_ends_the_connection_and_nothing_else() {
    let (_, mut helm) = helm(None);
    let half = whole(snapshot(7)) + &whole(snapshot(8))[..50];
    let (_, ended) = converse(&mut helm, &half, 1).await;
    assert_eq!(ended.why, "it hung up amid a line");
    let long = delta(7, 9, vec![]) + &"x".repeat(LINE_BYTES_MAX + 1);
    let (said, ended) = converse(&mut helm, &long, 2).await;
    assert_eq!(said[1..], [adopted(9)]);
    assert!(ended.heard && ended.why.contains("longer than"), "{}", ended.why);
    assert_eq!(helm.in_force().expect("adopted").revision, Revision(9));
}

#[tokio::test]
async fn what_was_adopted_is_in_force_after_a_start_without_control() {
    let scratch = Scratch::new();
    let path = scratch.path("deep/steer.json");
    let (front, mut first) = helm(Some(&path));
    first.restore().expect("nothing there");
    assert!(!front.fabric.admits(&LAPTOP), "nobody knows yet who may");
    assert_eq!(front.unready(), [Unready::Unsteered]);
    assert_eq!(answer_to(&mut first, &whole(snapshot(7))), adopted(7));
    first.keep();
    assert_eq!(answer_to(&mut first, &delta(7, 8, vec![])), adopted(8));
    first.settle().await;
    let mode = std::fs::metadata(&path).expect("kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (front, mut second) = helm(Some(&path));
    second.restore().expect("ours");
    assert!(front.fabric.admits(&LAPTOP) && !front.fabric.admits(&PHONE));
    assert_eq!(commands(&front), ["tune", "register"]);
    let expected = Snapshot { past: "p8".to_owned(), ..snapshot(8) };
    assert_eq!(second.in_force().expect("restored").to_text(), expected.to_text());
    assert_eq!(front.unready(), []);
    assert_eq!(second.cells().revision.value(), 8);
    assert!(second.cells().confirmed_unix_s.value() > 0);
}

#[test]
fn a_file_that_is_no_snapshot_ends_the_start() {
    let scratch = Scratch::new();
    let whole = snapshot(7).to_text();
    for text in ["", "{}", &whole[..whole.len() - 1], &whole.replace("\"drain\"", "\"rain\"")] {
        let path = scratch.write("steer.json", text);
        let (_, mut helm) = helm(Some(&path));
        let fault = helm.restore().expect_err("no snapshot");
        assert_eq!(fault.code(), ExitCode::Config);
        let words = scratch.strip(&fault.to_string());
        assert!(words.starts_with("steer.json: is no snapshot (malformed"), "{words}");
        assert!(words.contains("; remove it"), "{words}");
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_in_force_all_the_same() {
    let scratch = Scratch::new();
    let file = scratch.write("file", "");
    let (front, mut helm) = helm(Some(&file.join("steer.json")));
    assert_eq!(answer_to(&mut helm, &whole(snapshot(7))), adopted(7));
    helm.keep();
    helm.settle().await;
    assert_eq!(helm.cells().keep_failures.value(), 1);
    assert!(!front.fabric.admits(&PHONE));
}

#[tokio::test]
async fn what_was_not_kept_is_kept_while_control_is_away() {
    let scratch = Scratch::new();
    let folder = scratch.write("folder", "");
    let state = folder.join("steer.json");
    let (front, mut helm) = helm(Some(&state));
    assert_eq!(answer_to(&mut helm, &whole(snapshot(7))), adopted(7));
    helm.keep();
    helm.kept().await;
    let failures = || front.registry.steer.keep_failures.value();
    assert_eq!(failures(), 1, "a file is where the folder should be");
    let dialer = Dialer::new(None).expect("no files");
    let settings = Steering {
        controls: vec![Control::Unix(scratch.path("control.sock"))],
        node: "fra-1".to_owned(),
        state: Some(state.clone()),
        tls: None,
    };
    let mended = async {
        until(|| failures() == 2).await;
        std::fs::remove_file(&folder).expect("it was written");
        until(|| state.exists()).await;
    };
    tokio::select! {
        () = follow(&mut helm, &dialer, &settings) => unreachable!("it dials for ever"),
        kept = timeout(PAUSE_MAX, mended) => kept.expect("it is tried between the rounds"),
    }
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

fn certificate(name: &str) -> steer::Certificate {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = SecretPem::new(made.signing_key.serialize_pem());
    steer::Certificate { chain: made.cert.pem(), key }
}

fn with_certificate(revision: u64, certificate: steer::Certificate) -> Snapshot {
    Snapshot { certificates: [("relay".to_owned(), certificate)].into(), ..snapshot(revision) }
}

#[test]
fn certificates_take_the_place_of_the_own_ones_until_there_are_none() {
    let own = Source::SelfSigned;
    let meta = rustls::pki_types::CertificateDer::from(vec![0]);
    let name: HostName = "relay.example.com".parse().expect("a name");
    let now = std::time::SystemTime::now();
    let resolver = Resolver::new(own, Some(name), meta, now).expect("self-signed");
    let resolver = Arc::new(resolver);
    let front = Arc::new(testing::front(10));
    let mut helm = Helm::new(
        Arc::clone(&front),
        Some(Arc::clone(&resolver)),
        None,
        Sessions::default(),
        Vec::new(),
        None,
    );
    let good = Snapshot {
        certificates: [("relay".to_owned(), certificate("*.example.com"))].into(),
        ..snapshot(7)
    };
    assert_eq!(answer_to(&mut helm, &whole(good)), adopted(7));
    assert_eq!(resolver.names(now), ["*.example.com"]);
    let mixed =
        steer::Certificate { key: certificate("b").key, ..certificate("relay.example.com") };
    let cut = steer::Certificate { chain: "no PEM".to_owned(), ..certificate("relay.example.com") };
    for (bad, word) in
        [(mixed, "relay: key: is not the key"), (cut, "relay: chain: holds no certificate")]
    {
        let bad = Snapshot { drain: true, ..with_certificate(8, bad) };
        assert_refused(&answer_to(&mut helm, &whole(bad)), 8, word);
        assert_eq!(resolver.names(now), ["*.example.com"]);
        assert!(!front.is_draining());
    }
    let none = delta(7, 8, vec![Step::DropCertificate { name: "relay".to_owned() }]);
    assert_eq!(answer_to(&mut helm, &none), adopted(8));
    assert!(resolver.names(now).contains(&"localhost".to_owned()), "self-signed ones have it");
}

#[test]
fn certificates_that_are_of_no_use_here_hold_up_nothing_else() {
    let meta = rustls::pki_types::CertificateDer::from(vec![0]);
    let name: HostName = "relay.example.com".parse().expect("a name");
    let now = std::time::SystemTime::now();
    let resolver = Resolver::new(Source::SelfSigned, Some(name), meta, now).expect("self-signed");
    let (resolver, front) = (Arc::new(resolver), Arc::new(testing::front(10)));
    let own_sessions = Sessions::default();
    let steered = Some(Arc::clone(&resolver));
    let mut helm = Helm::new(Arc::clone(&front), steered, None, own_sessions, Vec::new(), None);
    let own = resolver.names(now);
    let elsewhere = with_certificate(7, certificate("other.example.org"));
    assert_eq!(answer_to(&mut helm, &whole(elsewhere)), adopted(7));
    assert_eq!(resolver.names(now), own, "another relay's is not presented");
    assert!(!front.fabric.admits(&PHONE), "and everything else is in force");

    let key = rcgen::KeyPair::generate().expect("random bytes");
    let names = vec!["relay.example.com".to_owned(), "old".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let chain = params.self_signed(&key).expect("it signs itself").pem();
    let expired = steer::Certificate { chain, key: SecretPem::new(key.serialize_pem()) };
    let put = |name: &str, certificate| Step::PutCertificate { name: name.to_owned(), certificate };
    let gone = Step::DropClient { name: "laptop".to_owned() };
    let line = delta(7, 8, vec![put("relay", expired), gone]);
    assert_eq!(answer_to(&mut helm, &line), adopted(8));
    assert!(!front.fabric.admits(&LAPTOP), "a revocation waits for no certificate");
    assert_eq!(resolver.names(now), own, "the own one is better than an expired one");
    let line = delta(8, 9, vec![put("second", certificate("relay.example.com"))]);
    assert_eq!(answer_to(&mut helm, &line), adopted(9));
    assert_eq!(resolver.names(now), ["relay.example.com"], "and control's than a self-made one");
}

#[test]
fn a_drain_begins_and_ends() {
    let (front, mut helm) = helm(None);
    let draining = |helm: &Helm| match helm.report() {
        Said::Report { draining, .. } => draining,
        other => panic!("{other:?}"),
    };
    assert_eq!(answer_to(&mut helm, &whole(snapshot(7))), adopted(7));
    commands(&front);
    assert!(!draining(&helm));
    assert_eq!(answer_to(&mut helm, &delta(7, 8, vec![Step::Drain(true)])), adopted(8));
    assert!(draining(&helm) && front.is_draining());
    assert_eq!(commands(&front), ["drain"]);
    assert_eq!(answer_to(&mut helm, &delta(8, 9, vec![Step::Drain(false)])), adopted(9));
    assert!(!draining(&helm) && front.unready().is_empty());
    assert_eq!(commands(&front), ["resume"]);
}

#[test]
fn pauses_grow_up_to_a_bound_and_begin_again() {
    let mut pauses = Pauses::new();
    let all: Vec<_> = (0..20).map(|_| pauses.next()).collect();
    assert!(all[0] >= PAUSE_MIN / 2 && all[0] <= PAUSE_MIN, "{all:?}");
    assert!(all.iter().all(|pause| *pause <= PAUSE_MAX));
    assert!(all[19] >= PAUSE_MAX / 2, "{all:?}");
    pauses.begin_again();
    assert!(pauses.next() <= PAUSE_MIN);
}

#[tokio::test]
async fn nobody_there_is_said_in_words() {
    let scratch = Scratch::new();
    let dialer = Dialer::new(None).expect("no files");
    let control = Control::Unix(scratch.path("control.sock"));
    let why = dialer.dial(&control).await.err().expect("nobody listens");
    let expected = io::Error::from_raw_os_error(libc::ENOENT).to_string();
    assert_eq!(why, expected);
}
