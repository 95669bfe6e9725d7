//! Steering over the network: who has no certificate of the right authority and name is not steered.
#![forbid(unsafe_code)]

mod harness;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use harness::dataplane::Dataplane;
use harness::{Control, Scratch, command, run, write};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
struct Pair {
    certificate: CertificateDer<'static>,
    chain: String,
    key: KeyPair,
}

fn key() -> KeyPair {
    KeyPair::generate().expect("the system has random bytes")
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, key()).expect("it signs itself"))
    }

    fn sign(&self, name: &str) -> Pair {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = key();
        let signed = params.signed_by(&key, &self.0).expect("it signs");
        Pair { certificate: signed.der().clone(), chain: signed.pem(), key }
    }
}

/// A control that steers over TLS, who signs for it, and where it listens.
struct Steered {
    control: Control,
    authority: Authority,
    address: SocketAddr,
    files: Scratch,
}

impl Steered {
    fn start() -> Self {
        let (authority, files) = (Authority::new(), Scratch::new());
        let own = authority.sign("127.0.0.1");
        let cert = write(&files, "cert.pem", &own.chain);
        let key = write(&files, "key.pem", &own.key.serialize_pem());
        let ca = write(&files, "ca.pem", &authority.0.pem());
        let control = Control::start_with(&[
            "--steer-listen",
            "127.0.0.1:0",
            "--steer-cert",
            &cert,
            "--steer-key",
            &key,
            "--steer-client-ca",
            &ca,
        ]);
        let address = control.ready.split("tls://").nth(1).expect("it steers over TLS");
        let address = address.split([',', ']']).next().unwrap_or_default();
        let address = address.parse().expect("an address");
        for command in [
            &["regions", "create", "fra", "900"][..],
            &["nodes", "create", "fra-1", "fra", "a.example.com"],
            &["nodes", "create", "fra-2", "fra", "a.example.com"],
        ] {
            control.cli(command).expect_success();
        }
        Self { control, authority, address, files }
    }

    /// A TLS connection by a client with this certificate, if it has one.
    fn dial(
        &self,
        own: Option<Pair>,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).expect("it is an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .expect("the provider knows it")
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(Pair { certificate, key, .. }) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
                config.with_client_auth_cert(vec![certificate], key).expect("they fit")
            }
        };
        let name = ServerName::from(self.address.ip());
        let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(harness::PATIENCE))?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        // In TLS 1.3 the client is done before its certificate was judged: only the first read tells.
        Ok(stream)
    }

    fn dataplane(&self, own: Pair) -> Dataplane {
        Dataplane::over(Box::new(self.dial(Some(own), &TLS13).expect("it is let in")))
    }
}

#[test]
fn a_dataplane_of_the_right_name_is_steered() {
    let steered = Steered::start();
    let mut dataplane = steered.dataplane(steered.authority.sign("fra-1"));
    dataplane.hello("fra-1");
    assert_eq!(dataplane.adopt(), "whole");
    steered.control.cli(&["nodes", "drain", "fra-1"]).expect_success();
    assert_eq!(dataplane.adopt(), "delta");
    assert!(dataplane.snapshot.drain);
    let listed = steered.control.cli(&["dataplanes", "ls"]).expect_success().out;
    assert!(listed.contains("127.0.0.1:"), "{listed}");
}

#[test]
fn a_certificate_is_for_its_own_name_alone() {
    let steered = Steered::start();
    let mut dataplane = steered.dataplane(steered.authority.sign("fra-2"));
    dataplane.hello("fra-1");
    let why = dataplane.goodbye();
    assert!(why.contains(r#"for ["fra-2"] and not for "fra-1""#), "{why}");
    let mut dataplane = steered.dataplane(steered.authority.sign("*"));
    dataplane.hello("fra-1");
    assert!(dataplane.goodbye().contains("not for"));
    steered.control.wait_for("a dataplane was refused");
}

#[test]
fn strangers_get_no_word() {
    let steered = Steered::start();
    let stranger = Authority::new().sign("fra-1");
    for own in [None, Some(stranger)] {
        let Ok(stream) = steered.dial(own, &TLS13) else { continue };
        let mut dataplane = Dataplane::over(Box::new(stream));
        assert!(dataplane.next().is_none());
    }
    steered.control.wait_for("has no certificate to be let in");
    let own = steered.authority.sign("fra-1");
    assert!(steered.dial(Some(own), &TLS12).is_err(), "an older TLS is not spoken");
    let mut plain = TcpStream::connect(steered.address).expect("it listens");
    io::Write::write_all(&mut plain, b"{\"hello\":{}}\n").expect("it is read");
    let mut rest = Vec::new();
    let _ = io::Read::read_to_end(&mut plain, &mut rest);
    assert!(!rest.starts_with(b"{"));
    let mut good = steered.dataplane(steered.authority.sign("fra-1"));
    good.hello("fra-1");
    assert_eq!(good.adopt(), "whole");
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    // More than may be in a handshake at a time.
    const MANY: usize = 1100;
    let steered = Steered::start();
    let silent: Vec<_> = (0..MANY)
        .map(|_| TcpStream::connect(steered.address).expect("connections are accepted"))
        .collect();
    let mut dataplane = steered.dataplane(steered.authority.sign("fra-1"));
    dataplane.hello("fra-1");
    assert_eq!(dataplane.adopt(), "whole");
    let mut first = &silent[0];
    first.set_read_timeout(Some(harness::PATIENCE)).expect("a time-out is taken");
    assert_eq!(io::Read::read(&mut first, &mut [0]).unwrap_or(0), 0, "the oldest had to go");
}

#[test]
fn certificates_are_read_again_without_a_restart_all_or_none() {
    let mut steered = Steered::start();
    let old = steered.authority.sign("fra-1");
    let mut dataplane = steered.dataplane(steered.authority.sign("fra-2"));
    dataplane.hello("fra-2");
    dataplane.adopt();
    write(&steered.files, "ca.pem", "no certificate");
    steered.control.signal(rustix::process::Signal::HUP);
    let line = steered.control.wait_for("all files stay as they were");
    assert!(line.contains("ca.pem: has no certificate in PEM"), "{line}");
    steered.dial(Some(old), &TLS13).expect("the old authority still counts");

    let old = std::mem::replace(&mut steered.authority, Authority::new());
    let own = steered.authority.sign("127.0.0.1");
    write(&steered.files, "cert.pem", &own.chain);
    write(&steered.files, "key.pem", &own.key.serialize_pem());
    write(&steered.files, "ca.pem", &steered.authority.0.pem());
    steered.control.cli(&["reload"]).expect_success();
    let mut stranger = Dataplane::over(Box::new(
        steered.dial(Some(old.sign("fra-1")), &TLS13).expect("only a read tells"),
    ));
    assert!(stranger.next().is_none(), "the old authority counts no more");
    let mut new = steered.dataplane(steered.authority.sign("fra-1"));
    new.hello("fra-1");
    assert_eq!(new.adopt(), "whole");
    steered.control.cli(&["nodes", "drain", "fra-2"]).expect_success();
    assert_eq!(dataplane.adopt(), "delta", "who was connected stays so");
}

#[test]
fn wrong_settings_are_one_line_that_names_them() {
    let files = Scratch::new();
    let pair = Authority::new().sign("a");
    let cert = write(&files, "cert.pem", &pair.chain);
    let key = write(&files, "key.pem", &key().serialize_pem());
    let state = files.path("state").display().to_string();
    let socket = files.path("s").display().to_string();
    let base = ["serve", "--listen", "off", "--state-dir", &state, "--socket", &socket];
    let serve = |more: &[&str]| run(command().args(base).args(more));
    let missing = serve(&["--steer-listen", "127.0.0.1:0", "--steer-cert", &cert]);
    assert_eq!(missing.code, 78, "{}", missing.errors);
    assert!(missing.errors.contains("steer-key: is missing"), "{}", missing.errors);
    let with = |cert: &str, key: &str, ca: &str| {
        let tls = ["--steer-cert", cert, "--steer-key", key, "--steer-client-ca", ca];
        serve(&[&["--steer-listen", "127.0.0.1:0"][..], &tls].concat())
    };
    for (fault, words) in [
        (with(&cert, &key, &cert), "--steer-key must be its key"),
        (with(&cert, &key, &key), "key.pem: has no certificate in PEM"),
        (with(&cert, &cert, &cert), "cert.pem: has no private key"),
        (with("/nowhere", &key, &cert), "/nowhere: no such file"),
    ] {
        assert_eq!(fault.code, 78, "{}", fault.errors);
        assert!(fault.errors.contains(words), "{}", fault.errors);
        assert_eq!(fault.errors.trim_end().lines().count(), 1, "{}", fault.errors);
    }
    let taken = write(&files, "taken", "");
    let fault = serve(&["--steer-socket", &taken]);
    assert!(fault.errors.contains("steer-socket: cannot listen on"), "{}", fault.errors);
}
