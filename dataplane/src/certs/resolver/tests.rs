//! The resolver under real handshakes in memory: choice, chain, ALPN, suites and reload.

use std::io::Cursor;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, Error, HandshakeKind, ServerConnection,
    SupportedProtocolVersion,
};

#[path = "../../../tests/common/any_chain.rs"]
mod any_chain;

use self::any_chain::TakesAnyChain;
use super::super::ServerConfigs;
use super::super::tests::{DAY, issue, issue_until, make, now};
use super::*;
use crate::testing::Scratch;

/// Stands for the meta certificate, whose content no one here reads.
const META: &[u8] = b"\x30\x03\x02\x01\x02";

fn resolver(source: Source, hostname: Option<&str>) -> Arc<Resolver> {
    let hostname = hostname.map(|name| name.parse().expect("a host name"));
    let at = if source == Source::SelfSigned { SystemTime::now() } else { now() };
    Arc::new(
        Resolver::new(source, hostname, CertificateDer::from(META), at)
            .expect("the certificates are good"),
    )
}

fn client(alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = TakesAnyChain(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider has both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// Both ends after a handshake to `name`, or the server's error.
fn handshake(
    resolver: &Arc<Resolver>,
    config: ClientConfig,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), Error> {
    let configs = ServerConfigs::new(Arc::clone(resolver)).expect("TLS is available");
    let name = ServerName::try_from(name.to_owned()).expect("a server name");
    let mut client =
        ClientConnection::new(Arc::new(config), name).expect("the configuration is good");
    let mut flight = Vec::new();
    client.write_tls(&mut flight).expect("memory takes everything");
    let hello = flight.clone();
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut Cursor::new(flight)).expect("the hello fits");
    let accepted = acceptor.accept().map_err(|(fault, _)| fault)?.expect("the hello is whole");
    let config = Arc::clone(configs.for_hello(&hello));
    let mut server = accepted.into_connection(config).map_err(|(fault, _)| fault)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        server.write_tls(&mut flight).expect("memory takes everything");
        client.read_tls(&mut Cursor::new(flight)).expect("the flight fits");
        client.process_new_packets()?;
        let mut flight = Vec::new();
        client.write_tls(&mut flight).expect("memory takes everything");
        server.read_tls(&mut Cursor::new(flight)).expect("the flight fits");
        server.process_new_packets()?;
    }
    Ok((client, server))
}

fn names_presented(client: &ClientConnection) -> Vec<String> {
    let chain = client.peer_certificates().expect("the server presented a chain");
    assert_eq!(chain.last().map(AsRef::as_ref), Some(META), "the meta certificate is last");
    names_of(&chain[0])
}

fn names_of(leaf: &CertificateDer<'_>) -> Vec<String> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).expect("the leaf is X.509");
    let names = leaf.subject_alternative_name().expect("names parse").expect("there are names");
    names.value.general_names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_self_signed_relay_presents_its_certificate_and_the_meta_certificate_to_every_name() {
    let resolver = resolver(Source::SelfSigned, Some("relay.example.com"));
    for name in ["relay.example.com", "elsewhere.example.com", "127.0.0.1"] {
        for version in rustls::ALL_VERSIONS {
            let (client, _) = handshake(&resolver, client(&[], &[version]), name)
                .expect("the handshake succeeds");
            assert_eq!(client.peer_certificates().map(<[_]>::len), Some(2));
            assert_eq!(names_presented(&client)[0], "DNSName(relay.example.com)");
        }
    }
    assert!(resolver.pin(SystemTime::now()).is_some_and(|pin| pin.starts_with("sha256-raw:")));
}

#[test]
fn chooses_by_name_with_wildcards_and_a_default() {
    let scratch = Scratch::new();
    let files = vec![
        issue(&scratch, "one", &["one.example"]),
        issue(&scratch, "wild", &["*.two.example"]),
        issue(&scratch, "exact", &["three.example"]),
    ];
    let resolver = resolver(Source::Files(files), None);
    for (asked, presented) in [
        ("one.example", Some("one.example")),
        ("ONE.example", Some("one.example")),
        ("a.two.example", Some("*.two.example")),
        ("a.b.two.example", None),
        ("two.example", None),
        ("three.example", Some("three.example")),
        ("unknown.example", None),
        // An address is never sent as a server name, so this client asks for none.
        ("192.0.2.1", Some("one.example")),
    ] {
        let outcome = handshake(&resolver, client(&[], rustls::ALL_VERSIONS), asked);
        match (outcome, presented) {
            (Ok((client, _)), Some(name)) => {
                assert_eq!(names_presented(&client), [format!("DNSName({name})")], "{asked}")
            }
            (Err(_), None) => {}
            (outcome, _) => panic!("{asked}: {:?}", outcome.map(|_| ())),
        }
    }
    assert_eq!(resolver.pin(now()), None, "a public authority vouches for names");
}

#[test]
fn a_relay_known_by_address_answers_every_name_and_is_pinned() {
    let scratch = Scratch::new();
    let resolver =
        resolver(Source::Files(vec![issue(&scratch, "ip", &["192.0.2.1"])]), Some("192.0.2.1"));
    assert!(handshake(&resolver, client(&[], rustls::ALL_VERSIONS), "whatever.example").is_ok());
    assert!(resolver.pin(now()).is_some());
}

#[test]
fn alpn_selects_http1_and_fails_nobody() {
    let resolver = resolver(Source::SelfSigned, None);
    for (offered, selected) in [
        (&[][..], None),
        (&["http/1.1"], Some("http/1.1")),
        (&["h2", "http/1.1"], Some("http/1.1")),
        (&["h2"], None),
        (&["acme-tls/1"], None),
    ] {
        let (client, _) = handshake(&resolver, client(offered, rustls::ALL_VERSIONS), "a.example")
            .expect("it succeeds");
        assert_eq!(client.alpn_protocol(), selected.map(str::as_bytes), "{offered:?}");
    }
}

#[test]
fn prefers_the_cheap_suite_and_remembers_no_session() {
    let resolver = resolver(Source::SelfSigned, None);
    let config = client(&[], rustls::ALL_VERSIONS);
    for _ in 0..2 {
        let (client, server) =
            handshake(&resolver, config.clone(), "a.example").expect("it succeeds");
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        let suite = server.negotiated_cipher_suite().expect("a suite was agreed").suite();
        if std::arch::is_x86_feature_detected!("aes") {
            assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        }
        assert!(server.dangerous_extract_secrets().is_ok());
    }
}

#[test]
fn a_reload_takes_new_files_and_refuses_bad_ones() {
    let scratch = Scratch::new();
    let files = issue(&scratch, "relay", &["old.example"]);
    let resolver = resolver(Source::Files(vec![files]), None);
    issue(&scratch, "relay", &["new.example"]);
    resolver.reload(now()).expect("the new pair is good");
    assert_eq!(resolver.names(now()), ["new.example"]);
    scratch.write("relay.crt", "garbage");
    assert!(resolver.reload(now()).is_err());
    assert_eq!(resolver.names(now()), ["new.example"], "the old certificates stay");
    assert!(resolver.reload(now() + Duration::from_secs(30 * 24 * 3600)).is_err());
    assert_eq!(resolver.expiry_unix_s(now()), 20_010 * 24 * 3600);
}

#[test]
fn a_self_signed_certificate_outlives_a_reload() {
    let resolver = resolver(Source::SelfSigned, None);
    let pin = resolver.pin(SystemTime::now());
    resolver.reload(SystemTime::now()).expect("nothing can go wrong");
    assert_eq!(resolver.pin(SystemTime::now()), pin);
}

/// A certificate of control's, valid until `end`.
fn of_control(names: &[&str], end: SystemTime) -> Certificate {
    let (chain, key) = make(names, end);
    let texts = steer::Certificate { chain, key: steer::SecretPem::new(key) };
    Certificate::steered("relay", &texts).expect("the pair is good")
}

fn steer(resolver: &Resolver, certificates: Vec<Certificate>) {
    resolver.steer(resolver.prepare(certificates).expect("the pairs are good"));
}

/// The first name of what a client gets that asks for `name`.
fn presented(resolver: &Arc<Resolver>, name: &str) -> Option<String> {
    let outcome = handshake(resolver, client(&[], rustls::ALL_VERSIONS), name);
    outcome.ok().map(|(client, _)| names_presented(&client).remove(0))
}

#[test]
fn the_own_one_stays_for_names_that_none_of_controls_is_for() {
    let scratch = Scratch::new();
    let end = SystemTime::now() + 10 * DAY;
    let own = issue_until(&scratch, "own", &["a.example"], end);
    let source = Source::Files(vec![own]);
    let at = SystemTime::now();
    let resolver = Resolver::new(source, None, CertificateDer::from(META), at).expect("good");
    let resolver = Arc::new(resolver);
    steer(&resolver, vec![of_control(&["b.example"], end)]);
    let no_name = "192.0.2.1";
    for (asked, name) in [
        ("a.example", Some("DNSName(a.example)")),
        ("b.example", Some("DNSName(b.example)")),
        ("c.example", None),
        (no_name, Some("DNSName(a.example)")),
    ] {
        assert_eq!(presented(&resolver, asked).as_deref(), name, "{asked}");
    }
    assert_eq!(resolver.names(at), ["b.example", "a.example"]);
    // Its first name tells it from the own one.
    let better = of_control(&["c.example", "a.example"], end);
    steer(&resolver, vec![better, of_control(&["b.example"], end + DAY)]);
    for asked in ["a.example", "c.example", no_name] {
        let name = presented(&resolver, asked);
        assert_eq!(name.as_deref(), Some("DNSName(c.example)"), "{asked}");
    }
    assert_eq!(
        resolver.names(at),
        ["b.example", "c.example", "a.example"],
        "the own one counts no more"
    );
    steer(&resolver, Vec::new());
    assert_eq!(presented(&resolver, "b.example"), None);
}

#[test]
fn an_expired_one_of_controls_gives_way_to_a_valid_own_one() {
    let scratch = Scratch::new();
    let at = SystemTime::now();
    let own = issue_until(&scratch, "own", &["a.example"], at + 10 * DAY);
    let name = "a.example".parse().expect("a host name");
    let meta = CertificateDer::from(META);
    let resolver = Resolver::new(Source::Files(vec![own]), Some(name), meta, at).expect("good");
    let resolver = Arc::new(resolver);
    for (end, name) in [(at - DAY, "DNSName(a.example)"), (at + DAY, "DNSName(control.example)")] {
        steer(&resolver, vec![of_control(&["control.example", "a.example"], end)]);
        for asked in ["a.example", "192.0.2.1"] {
            assert_eq!(presented(&resolver, asked).as_deref(), Some(name), "{asked}");
        }
    }
    let unix_s = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).expect("past 1970").as_secs().cast_signed()
    };
    // The last one stays in force, as time goes by: it expires, and then the own one does.
    for (days, who, expiry) in [
        (0, "control.example", at + DAY),
        (2, "a.example", at + 10 * DAY),
        (11, "control.example", at + 10 * DAY),
    ] {
        let then = at + days * DAY;
        for asked in [Some("a.example"), None] {
            let chosen = resolver.choose(asked, then, |_| true).expect("there is one");
            assert_eq!(names_of(&chosen.cert[0])[0], format!("DNSName({who})"), "{days} {asked:?}");
        }
        assert_eq!(resolver.expiry_unix_s(then), unix_s(expiry), "{days}");
    }
    let own_alone = |pair: &CertifiedKey| names_of(&pair.cert[0]) == ["DNSName(a.example)"];
    let chosen = resolver.choose(Some("a.example"), at, own_alone).expect("there is one");
    assert!(own_alone(&chosen), "the client cannot check control's");
}
