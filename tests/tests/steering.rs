//! The relay under a scripted control: what it is told takes effect at once and whole, what is wrong
//! changes nothing, and without control it goes on as it was told last.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair,
    generate_simple_self_signed,
};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use steer::{
    Admission, Certificate, Delta, NodeKey, Order, Revision, Said, SecretPem, SessionLimits,
    Snapshot, Step,
};
use tests::client::{Client, pin, presented_pin};
use tests::control::{Control, Dataplane, TlsControl};
use tests::process::{Process, eventually, program};
use tests::relay::{Relay, loopback};
use tests::scratch::Scratch;
use tests::stun::{ask, is_answered};
use tests::wireguard::{ALICE, BOB, Identity, Peer, Stream, idle, loopback as socket, ping, reach};
use wire::derp::{FrameType, GoneReason};
use wire::key::Key;

/// Long enough for anything on loopback that should not happen.
const PAUSE: Duration = Duration::from_millis(300);
/// Time for packets on their way.
const ON_THEIR_WAY: Duration = Duration::from_secs(5);

/// A control, a relay that it steers, and their files, which are to outlive both: a relay makes the
/// folder of what it keeps anew.
struct Steered {
    relay: Relay,
    control: Control,
    /// The relay's connection, after hello.
    line: Dataplane,
    scratch: Scratch,
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

/// Arguments that have a relay steered from `control` and keep what it says at `state`.
fn arguments<'a>(io: &'a str, cores: &'a str, control: &'a str, state: &'a str) -> Vec<&'a str> {
    let mut args = loopback(io, cores);
    args.extend(["--steer", control, "--steer-node", "fra-1", "--steer-state", state]);
    args
}

fn state_of(scratch: &Scratch) -> PathBuf {
    scratch.path("steer.json")
}

fn start(io: &str, cores: &str) -> Steered {
    let scratch = Scratch::new();
    let control = Control::listen(&scratch.path("control.sock"));
    let state = state_of(&scratch);
    let relay = Relay::start(&arguments(io, cores, &control.setting(), text_of(&state)));
    let mut line = control.accept();
    assert_eq!(line.hello(), (None, Revision(0)));
    Steered { relay, control, line, scratch }
}

/// Lets everybody in and knows no peers.
fn snapshot(revision: u64) -> Snapshot {
    Snapshot { store: "main".to_owned(), revision: Revision(revision), ..Snapshot::default() }
}

fn whole(snapshot: Snapshot) -> Order {
    Order::Whole(Box::new(snapshot))
}

fn delta(from: u64, changes: Vec<Step>) -> Order {
    let (from, to, past) = (Revision(from), Revision(from + 1), String::new());
    Order::Delta(Delta { from, to, past, changes })
}

fn linked(revision: u64) -> Snapshot {
    let name = |it: Identity| it.name.to_owned();
    Snapshot {
        peers: [ALICE, BOB].map(|it| (name(it), it.peer_key())).into(),
        links: [[name(ALICE), name(BOB)]].into(),
        ..snapshot(revision)
    }
}

fn registered(revision: u64, clients: &[(&str, Key)]) -> Snapshot {
    let clients = clients.iter().map(|(name, key)| ((*name).to_owned(), NodeKey(*key)));
    Snapshot { admission: Admission::Registered, clients: clients.collect(), ..snapshot(revision) }
}

fn metric(relay: &Relay, family: &str, labels: &[&str], value: u64) {
    eventually(family, || match relay.metrics().sum(family, labels) {
        now if now == value => Ok(()),
        now => Err(format!("{labels:?}: {now}, not {value}")),
    });
}

fn client(relay: &Relay) -> Client {
    Client::connect(relay.derp()).expect("it lets everybody in")
}

fn peer(own: Identity, other: Identity, relay: SocketAddr) -> Peer {
    Peer::new(own, other, socket(relay))
}

/// Sends from one client to the other and waits for it.
fn deliver(from: &mut Client, to: &mut Client, packet: &[u8]) {
    from.send(&to.key, packet).expect("it is connected");
    assert_eq!(to.receive_packet().expect("it is connected"), (from.key, packet.to_vec()));
}

#[test]
fn peers_talk_once_control_says_so_and_no_longer_than_that() {
    for (io, cores) in [("epoll", "1"), ("auto", "2")] {
        let Steered { scratch: _scratch, relay, mut line, .. } = start(io, cores);
        let at = relay.ready.stun[0];
        line.steer(&whole(snapshot(1)));
        let (mut alice, mut bob) = (peer(ALICE, BOB, at), peer(BOB, ALICE, at));
        alice.send(b"too early");
        bob.begin();
        idle([&mut alice, &mut bob], PAUSE);
        assert_eq!((alice.heard, bob.heard), (0, 0), "{io}");

        line.steer(&whole(linked(2)));
        let (mut alice, mut bob) = (peer(ALICE, BOB, at), peer(BOB, ALICE, at));
        bob.begin();
        reach(&mut alice, &mut bob, b"now I may");
        ping(&mut bob, &mut alice, b"both ways");
        let handshakes = (alice.handshakes, bob.handshakes);
        line.steer(&delta(2, vec![Step::Admission(Admission::Registered)]));
        ping(&mut alice, &mut bob, b"of no concern to peers");
        assert_eq!((alice.handshakes, bob.handshakes), handshakes, "{io}");

        let link = ["alice", "bob"].map(str::to_owned);
        line.steer(&delta(3, vec![Step::DropLink { peers: link.clone() }]));
        let heard = bob.heard;
        alice.send(b"too late");
        idle([&mut alice, &mut bob], PAUSE);
        assert_eq!(bob.heard, heard, "{io}");
        line.steer(&delta(4, vec![Step::PutLink { peers: link }]));
        let (mut alice, mut bob) = (peer(ALICE, BOB, at), peer(BOB, ALICE, at));
        bob.begin();
        reach(&mut alice, &mut bob, b"once more");
        eventually("the balance", || relay.metrics().balance());
    }
}

#[test]
fn clients_are_let_in_and_out_as_control_says() {
    for (io, cores) in [("epoll", "1"), ("auto", "2")] {
        let Steered { scratch: _scratch, relay, mut line, .. } = start(io, cores);
        line.steer(&whole(snapshot(1)));
        let (mut stays, mut goes) = (client(&relay), client(&relay));
        deliver(&mut goes, &mut stays, b"you will miss me");

        line.steer(&whole(registered(2, &[("stays", stays.key), ("spare", Key([9; 32]))])));
        goes.drain().expect("the relay ends its session");
        let gone = loop {
            let frame = stays.receive().expect("its session goes on");
            if frame.kind == Some(FrameType::PeerGone) {
                break frame.payload;
            }
        };
        let reason = [GoneReason::Disconnected as u8];
        assert_eq!(gone, [&goes.key.0[..], &reason].concat(), "{io}");
        stays.ping([1; 8]).expect("its session goes on");
        Client::connect(relay.derp()).expect_err("nobody registered it");
        metric(&relay, "relay_sessions_closed_total", &["revoked"], 1);
        metric(&relay, "relay_logins_failed_total", &["not_admitted"], 1);

        line.steer(&delta(2, vec![Step::DropClient { name: "stays".to_owned() }]));
        stays.drain().expect("the relay ends its session");
        metric(&relay, "relay_sessions_closed_total", &["revoked"], 2);
        line.steer(&delta(3, vec![Step::Admission(Admission::Open)]));
        let (mut one, mut other) = (client(&relay), client(&relay));
        deliver(&mut one, &mut other, b"everybody is in");
        eventually("the balance", || relay.metrics().balance());
    }
}

#[test]
fn a_key_that_is_registered_anew_ends_the_session_of_the_old_one() {
    let Steered { scratch: _scratch, relay, mut line, .. } = start("auto", "2");
    line.steer(&whole(snapshot(1)));
    let mut old = client(&relay);
    line.steer(&whole(registered(2, &[("laptop", old.key)])));
    old.ping([2; 8]).expect("it is registered");
    let new = Step::PutClient { name: "laptop".to_owned(), key: NodeKey(Key([7; 32])) };
    line.steer(&delta(2, vec![new]));
    old.drain().expect("the relay ends its session");
}

fn certificate(name: &str) -> (Certificate, String) {
    let made = generate_simple_self_signed([name.to_owned()]).expect("rcgen makes certificates");
    let pin = pin(made.cert.der());
    let key = SecretPem::new(made.signing_key.serialize_pem());
    (Certificate { chain: made.cert.pem(), key }, pin)
}

fn put(name: &str, certificate: Certificate) -> Step {
    Step::PutCertificate { name: name.to_owned(), certificate }
}

#[test]
fn certificates_are_swapped_under_sessions_and_wrong_ones_are_not() {
    let Steered { scratch: _scratch, relay, mut line, .. } = start("auto", "2");
    line.steer(&whole(snapshot(1)));
    let own = presented_pin(relay.derp()).expect("TLS");
    let mut client = client(&relay);
    let ((first, first_pin), (second, second_pin)) =
        (certificate("127.0.0.1"), certificate("127.0.0.1"));
    let mixed = Certificate { chain: first.chain.clone(), key: second.key.clone() };
    line.steer(&delta(1, vec![put("relay", first)]));
    assert_eq!(presented_pin(relay.derp()).expect("TLS"), first_pin);
    line.steer(&delta(2, vec![put("relay", second)]));
    assert_eq!(presented_pin(relay.derp()).expect("TLS"), second_pin);
    client.ping([3; 8]).expect("its session goes on");

    line.order(&delta(3, vec![put("relay", mixed), Step::Drain(true)]));
    match line.answer() {
        Said::Refused { revision: Revision(4), why } => {
            assert!(why.contains("relay: key: is not the key"), "{why}");
        }
        said => panic!("{said:?}"),
    }
    assert_eq!(presented_pin(relay.derp()).expect("TLS"), second_pin);
    ask(&UdpSocket::bind("127.0.0.1:0").expect("a port"), relay.ready.stun[0]);
    line.steer(&delta(3, vec![Step::DropCertificate { name: "relay".to_owned() }]));
    assert_eq!(presented_pin(relay.derp()).expect("TLS"), own);
    let log = relay.process.log().join("\n");
    assert!(!log.contains("PRIVATE KEY") && !log.contains("BEGIN CERTIFICATE"), "{log}");
}

#[test]
fn a_drain_sends_clients_elsewhere_until_it_is_over() {
    let Steered { scratch: _scratch, relay, mut line, .. } = start("auto", "2");
    line.steer(&whole(snapshot(1)));
    let (mut one, mut other) = (client(&relay), client(&relay));
    let asker = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let stun = relay.ready.stun[0];
    line.steer(&delta(1, vec![Step::Drain(true)]));
    for client in [&mut one, &mut other] {
        while client.receive().expect("its session goes on").kind != Some(FrameType::Restarting) {}
    }
    deliver(&mut one, &mut other, b"those who stay are served");
    Client::connect(relay.derp()).expect_err("it sends clients elsewhere");
    assert!(!is_answered(&asker, stun, PAUSE));
    let ready = relay.answer("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("draining"), "{ready}");
    assert!(relay.answer("/livez").starts_with("HTTP/1.1 200 "));
    metric(&relay, "relay_logins_failed_total", &["draining"], 1);
    eventually("a report", || match line.hear() {
        Ok(Said::Report { draining: true, sessions: 2, .. }) => Ok(()),
        said => Err(format!("{said:?}")),
    });

    line.steer(&delta(2, vec![Step::Drain(false)]));
    eventually("an answer", || {
        is_answered(&asker, stun, PAUSE).then_some(()).ok_or_else(|| "none".to_owned())
    });
    assert!(relay.answer("/readyz").starts_with("HTTP/1.1 200 "));
    let mut third = client(&relay);
    deliver(&mut one, &mut third, b"welcome");
    eventually("the balance", || relay.metrics().balance());
}

#[test]
fn limits_change_while_sessions_go_on() {
    let Steered { scratch: _scratch, relay, mut line, .. } = start("auto", "1");
    line.steer(&whole(snapshot(1)));
    let mut before = client(&relay);
    let brisk = SessionLimits {
        keepalive_ms: Some(50),
        keepalive_jitter_ms: Some(0),
        queue_packets_max: Some(9),
        ..SessionLimits::default()
    };
    line.steer(&delta(1, vec![Step::Sessions(brisk)]));
    let mut after = client(&relay);
    while after.receive().expect("its session goes on").kind != Some(FrameType::KeepAlive) {}
    before.ping([4; 8]).expect("its session goes on");
    let own = line_of(&relay, "snapshot adopted", 2);
    assert!(own.contains("\"revision\":2"), "{own}");
}

/// The first line of the log with these words that names this revision.
fn line_of(relay: &Relay, words: &str, revision: u64) -> String {
    let revision = format!("\"revision\":{revision}");
    relay.process.wait_for(words, |line| {
        (line.contains(words) && line.contains(&revision)).then(|| line.to_owned())
    })
}

/// Traffic of both kinds that counts what is lost.
struct Traffic {
    alice: Peer,
    bob: Peer,
    peers: Stream,
    one: Client,
    other: Client,
    sent: u64,
}

impl Traffic {
    fn begin(relay: &Relay) -> Self {
        let at = relay.ready.stun[0];
        let (mut alice, mut bob) = (peer(ALICE, BOB, at), peer(BOB, ALICE, at));
        bob.begin();
        reach(&mut alice, &mut bob, b"begin");
        ping(&mut bob, &mut alice, b"both ways");
        let (one, other) = (client(relay), client(relay));
        Self { alice, bob, peers: Stream::default(), one, other, sent: 0 }
    }

    /// So many packets each way.
    fn flow(&mut self, packets: u64) {
        for _ in 0..packets {
            self.peers.step(&mut self.alice, &mut self.bob);
            deliver(&mut self.one, &mut self.other, &self.sent.to_be_bytes());
            self.sent += 1;
        }
    }

    /// Nothing was lost.
    fn end(mut self) {
        let missing = self.peers.missing(&mut self.alice, &mut self.bob, ON_THEIR_WAY);
        let lost = missing.iter().filter(|number| !self.peers.is_doubtful(**number));
        assert_eq!(lost.count(), 0, "of {}: {missing:?}", self.peers.len());
    }
}

#[test]
fn a_control_that_dies_costs_no_packet_and_what_it_said_outlives_a_restart() {
    let Steered { scratch, relay, control, mut line } = start("auto", "2");
    line.steer(&whole(linked(1)));
    metric(&relay, "relay_steer_connected", &[], 1);
    let mut traffic = Traffic::begin(&relay);
    traffic.flow(100);
    drop(line);
    drop(control);
    traffic.flow(300);
    metric(&relay, "relay_steer_connected", &[], 0);
    let control = Control::listen(&scratch.path("control.sock"));
    let mut line = control.accept();
    assert_eq!(line.hello(), (Some("main".to_owned()), Revision(1)));
    line.order(&Order::Current { revision: Revision(1) });
    metric(&relay, "relay_steer_connected", &[], 1);
    traffic.flow(100);
    let keys = [("one", traffic.one.key), ("other", traffic.other.key)];
    let known = Snapshot { peers: linked(2).peers, links: linked(2).links, ..registered(2, &keys) };
    line.steer(&whole(known));
    traffic.flow(100);
    traffic.end();
    eventually("the balance", || relay.metrics().balance());
    drop(line);
    let state = state_of(&scratch);
    eventually("the file", || {
        let kept = std::fs::read_to_string(&state).map_err(|error| error.to_string())?;
        kept.contains("\"revision\":2").then_some(()).ok_or(kept)
    });
    relay.process.signal(Signal::KILL);
    drop((relay, control));

    let gone = format!("unix:{}", scratch.path("nobody.sock").display());
    let relay = Relay::start(&arguments("auto", "2", &gone, text_of(&state)));
    let at = relay.ready.stun[0];
    let (mut alice, mut bob) = (peer(ALICE, BOB, at), peer(BOB, ALICE, at));
    bob.begin();
    reach(&mut alice, &mut bob, b"without control");
    Client::connect(relay.derp()).expect_err("nobody registered it");
    metric(&relay, "relay_steer_revision", &[], 2);
    metric(&relay, "relay_steer_connected", &[], 0);
}

#[test]
fn what_is_wrong_is_refused_in_words_and_changes_nothing() {
    let Steered { scratch: _scratch, relay, control, mut line, .. } = start("auto", "2");
    line.steer(&whole(linked(5)));
    let mut traffic = Traffic::begin(&relay);
    let loose = delta(5, vec![Step::DropPeer { name: "alice".to_owned() }]).to_line();
    let refused = [
        ("no JSON\n".to_owned(), "malformed"),
        ("{\"whole\":{\"store\":\"main\"}}\n".to_owned(), "malformed: missing field"),
        ("{\"delta\":{\"from\":\"5\"}}\n".to_owned(), "malformed: invalid type"),
        (whole(snapshot(4)).to_line(), "revision 4 is below 5"),
        (delta(7, vec![]).to_line(), "does not fit 5"),
        (loose, "no peer is named"),
    ];
    for (line_of_control, word) in &refused {
        line.write(line_of_control.as_bytes()).expect("the relay listens");
        match line.answer() {
            Said::Refused { why, .. } => assert!(why.contains(word), "{why}"),
            said => panic!("{said:?}"),
        }
        traffic.flow(5);
    }
    let count = refused.len() as u64;
    metric(&relay, "relay_steer_refused_total", &[], count);
    let lines = relay.process.log();
    let lines = lines.iter().filter(|line| line.contains("snapshot refused"));
    assert_eq!(lines.count() as u64, count);
    line.write(b"{\"weather\":{\"rain\":true}}\n").expect("the relay listens");
    metric(&relay, "relay_steer_unknown_total", &[], 1);

    line.write(b"{\"current\":{\"revi").expect("the relay listens");
    drop(line);
    let hung_up = |line: &str| line.contains("hung up amid a line").then_some(());
    relay.process.wait_for("word of a half line", hung_up);
    let mut line = control.accept();
    assert_eq!(line.hello(), (Some("main".to_owned()), Revision(5)));
    // The relay hangs up before it has taken all of it.
    let _ = line.write(&vec![b'x'; steer::LINE_BYTES_MAX + 1]);
    line.wait_for_end();
    let too_long = |line: &str| line.contains("a line is longer than").then_some(());
    relay.process.wait_for("word of a long line", too_long);
    traffic.flow(50);
    traffic.end();
    metric(&relay, "relay_steer_revision", &[], 5);
    metric(&relay, "relay_steer_adopted_total", &[], 1);

    let mut line = control.accept();
    assert_eq!(line.hello(), (Some("main".to_owned()), Revision(5)));
    line.steer(&whole(Snapshot { store: "spare".to_owned(), ..snapshot(1) }));
    line.order(&Order::goodbye(&"enough"));
    line.wait_for_end();
    let goodbye = |line: &str| line.contains("goodbye: enough").then_some(());
    relay.process.wait_for("word of the goodbye", goodbye);
    assert_eq!(control.accept().hello(), (Some("spare".to_owned()), Revision(1)));
}

#[test]
fn of_several_controls_the_first_that_answers_steers() {
    let scratch = Scratch::new();
    let second = Control::listen(&scratch.path("second.sock"));
    let first = scratch.path("first.sock");
    let both = format!("unix:{},{}", first.display(), second.setting());
    let state = state_of(&scratch);
    let relay = Relay::start(&arguments("auto", "1", &both, text_of(&state)));
    let mut line = second.accept();
    line.hello();
    line.steer(&whole(snapshot(1)));
    let first = Control::listen(&first);
    drop(line);
    let mut line = first.accept();
    assert_eq!(line.hello(), (Some("main".to_owned()), Revision(1)));
    line.steer(&whole(snapshot(2)));
    metric(&relay, "relay_steer_revision", &[], 2);
}

/// How long a change takes from the order's write to its answer; under load of both kinds.
#[test]
fn a_change_takes_effect_within_milliseconds() {
    const CHANGES: u64 = 200;
    /// Half of them, for this machine may be busy with other tests.
    const P50_MAX: Duration = Duration::from_millis(50);
    let Steered { scratch: _scratch, relay, mut line, .. } = start("auto", "2");
    let clients: Vec<_> = (0..2_000_u32)
        .map(|number| {
            let mut key = Key([8; 32]);
            key.0[..4].copy_from_slice(&number.to_be_bytes());
            (format!("client-{number}"), key)
        })
        .collect();
    let clients = clients.iter().map(|(name, key)| (name.clone(), NodeKey(*key))).collect();
    line.steer(&whole(Snapshot { clients, ..linked(1) }));
    let mut traffic = Traffic::begin(&relay);
    let mut times: Vec<_> = (1..=CHANGES)
        .map(|revision| {
            traffic.flow(1);
            let name = "newcomer".to_owned();
            let change = match revision % 2 {
                1 => Step::PutClient { name, key: NodeKey(Key([6; 32])) },
                _ => Step::DropClient { name },
            };
            let order = delta(revision, vec![change]);
            let began = Instant::now();
            line.steer(&order);
            began.elapsed()
        })
        .collect();
    traffic.end();
    times.sort_unstable();
    let [p50, p99, worst] = [50, 99, 100].map(|part| times[times.len() * part / 100 - 1]);
    println!("order to adopted, {CHANGES} changes: p50 {p50:?}, p99 {p99:?}, worst {worst:?}");
    assert!(p50 < P50_MAX, "{p50:?}");
}

/// Who vouches for both sides of mutual TLS.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// A certificate for `name` and its key, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// What a control shows that is called `name`, and whom it lets in.
    fn server(&self, name: &str) -> ServerConfig {
        let (certificate, key) = self.issue(name);
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("ours");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .expect("one root");
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .expect("they fit")
    }
}

/// Arguments for a relay steered by `control`, with a certificate of `own` and trust in `ca`.
fn tls_arguments(scratch: &Scratch, control: &str, own: &Authority, ca: &Authority) -> Vec<String> {
    let (certificate, key) = own.issue("fra-1");
    let files = [("cert", certificate), ("key", key), ("ca", ca.0.pem())].map(|(name, pem)| {
        let path = scratch.write(&format!("{name}.pem"), pem);
        [format!("--steer-{name}"), text_of(&path).to_owned()]
    });
    let mut args: Vec<_> = loopback("auto", "1").into_iter().map(str::to_owned).collect();
    args.extend(["--steer", control, "--steer-node", "fra-1"].map(str::to_owned));
    args.extend(files.concat());
    args
}

fn start_with(args: &[String]) -> Relay {
    Relay::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A relay with a certificate of `own` and trust in `ca`, and what comes of its dialling a control
/// that is called `name` and vouched for by `ours`, which is to fail; with the relay's files.
fn fails(ours: &Authority, name: &str, own: &Authority, ca: &Authority) -> (Relay, Scratch) {
    let scratch = Scratch::new();
    let control = TlsControl::listen(ours.server(name));
    let place = format!("tls://{}", control.address());
    let relay = start_with(&tls_arguments(&scratch, &place, own, ca));
    control.accept().expect_err("one side refuses");
    (relay, scratch)
}

#[test]
fn mutual_tls_steers_and_wrong_certificates_do_not() {
    let (ours, strange) = (Authority::new(), Authority::new());
    let scratch = Scratch::new();
    let control = TlsControl::listen(ours.server("127.0.0.1"));
    let place = format!("tls://{}", control.address());
    let steered = start_with(&tls_arguments(&scratch, &place, &ours, &ours));
    let mut line = control.accept().expect("both are vouched for");
    assert_eq!(line.hello(), (None, Revision(0)));
    line.steer(&whole(snapshot(1)));
    metric(&steered, "relay_steer_revision", &[], 1);

    let says = |relay: &Relay, words: &str| {
        let found = |line: &str| line.contains(words).then_some(());
        relay.process.wait_for(words, found);
    };
    let (relay, _files) = fails(&ours, "127.0.0.1", &ours, &strange);
    says(&relay, "invalid peer certificate");
    let (relay, _files) = fails(&ours, "control.example", &ours, &ours);
    says(&relay, "certificate not valid for name");
    let (relay, _files) = fails(&ours, "127.0.0.1", &strange, &ours);
    says(&relay, "received fatal alert");
    assert!(Client::connect(relay.derp()).is_err(), "nobody has said who may come in");
    metric(&relay, "relay_steer_connected", &[], 0);
}

/// What `dataplane` says to `args` when it must not start, and its exit code.
fn refusal(args: &[&str]) -> (Option<i32>, String) {
    let (status, lines) = Process::start(args).wait();
    (status.code(), lines.join("\n"))
}

#[test]
fn wrong_settings_and_files_end_the_start_in_words() {
    let scratch = Scratch::new();
    let peers = scratch.write("peers.toml", ALICE.table());
    let bad = scratch.write("bad.json", "{\"store\":\"main\"}");
    for (args, words) in [
        (vec!["--steer", "http://control"], "write unix:PATH or tls://HOST:PORT"),
        (vec!["--steer", "tls://control"], "write unix:PATH or tls://HOST:PORT"),
        (vec!["--steer", "tls://control:1"], "steer_cert: is missing"),
        (vec!["--steer", "unix:/x", "--steer-node", "a b"], "is not a node's name"),
        (vec!["--steer", "unix:/x", "--config", text_of(&peers)], "steer is set"),
        (vec!["--steer", "unix:/x", "--steer-state", text_of(&bad)], "is no snapshot"),
    ] {
        let args: Vec<_> = loopback("auto", "1").into_iter().chain(args).collect();
        let (code, log) = refusal(&args);
        assert!(matches!(code, Some(2 | 78)), "{code:?}: {log}");
        assert!(log.contains(words), "{log}");
    }
}

#[test]
fn check_shows_who_steers_and_judges_what_is_kept() {
    let scratch = Scratch::new();
    let good = scratch.write("good.json", linked(7).to_text());
    let check = |state: &Path| {
        let args = ["check", "--cores", "1", "--steer", "unix:/run/control.sock"];
        let more = ["--steer-node", "fra-1", "--steer-state", text_of(state)];
        std::process::Command::new(program()).args(args).args(more).output().expect("it starts")
    };
    let shown = String::from_utf8(check(&good).stdout).expect("UTF-8");
    for words in [
        "steer = [\"unix:/run/control.sock\"]",
        "# steered: fra-1 by unix:/run/control.sock",
        "# steered: revision 7 of main is in ",
    ] {
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    let shown = String::from_utf8(check(&scratch.path("none.json")).stdout).expect("UTF-8");
    assert!(shown.contains("# steered: nothing is in "), "{shown}");
    let cut = &linked(7).to_text()[..40];
    let output = check(&scratch.write("cut.json", cut));
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && said.contains("cut.json: is no snapshot"), "{said}");
}
