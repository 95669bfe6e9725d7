//! A stock derper that asks control whom to admit.
#![forbid(unsafe_code)]

mod harness;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use harness::{Control, PATIENCE, Scratch, write};
use proto::derp::hello::{NONCE_LEN, Shared};
use serde_json::{Value, json};
use wire::derp::{FrameType, HEADER_LEN, Header, MAGIC};
use wire::key::Key;
use zeroize::Zeroizing;

/// The newest stable release that builds, as of 2026-11.
const VERSION: &str = "v1.102.4";

/// Stock derper, built from its public module into the target folder. Without Go there is none; then
/// `PERIGEE_REQUIRE` says whether that is a failure.
fn derper() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target");
    let folder = target.join("peers").join(format!("derper-{VERSION}"));
    let program = folder.join("derper");
    if program.is_file() {
        return Some(program);
    }
    let module = format!("tailscale.com/cmd/derper@{VERSION}");
    let built = Command::new("go").args(["install", &module]).env("GOBIN", &folder).output();
    let why = match built {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    let required = std::env::var("PERIGEE_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "go"), "no stock derper: {why}");
    let _ = writeln!(io::stderr(), "skipped: no stock derper: {why}");
    None
}

/// A running derper.
struct Derper {
    child: Child,
    address: SocketAddr,
    log: mpsc::Receiver<String>,
    _folder: Scratch,
}

impl Derper {
    fn start(program: &Path, verify_url: &str) -> Self {
        let folder = Scratch::new();
        // It tells no port it was given by the system, so one is looked for.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = free.expect("loopback binds");
        let mut child = Command::new(program)
            .args(["-a", &address.to_string(), "-http-port", "-1", "-stun=false"])
            .arg("-c")
            .arg(folder.path("derper.key"))
            .args(["-verify-client-url", verify_url, "-verify-client-url-fail-open=false"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let errors = child.stderr.take().expect("standard error is piped");
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                // Whoever read the log may have seen enough.
                let _ = lines.send(line);
            }
        });
        let derper = Self { child, address, log, _folder: folder };
        derper.wait_for("derper: serving on");
        derper
    }

    fn wait_for(&self, what: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no {what:?} in the log:\n{}", seen.join("\n")),
            }
        }
    }

    /// Introduces a client with this key; whether it is let in.
    fn admits(&self, private: &PrivateKey) -> io::Result<bool> {
        let stream = self.upgrade()?;
        let mut stream = BufReader::new(stream);
        let (kind, payload) = read_frame(&mut stream)?;
        let server = payload.strip_prefix(MAGIC.as_slice()).and_then(Key::read);
        let server = server.filter(|_| kind == FrameType::ServerKey as u8);
        let server = server.ok_or_else(|| io::Error::other("no ServerKey"))?;
        let shared = shared(private, &server);
        let info = shared.client_info(&public(private), r#"{"version":2}"#, [7; NONCE_LEN]);
        stream.get_mut().write_all(&info)?;
        match read_frame(&mut stream) {
            Ok((kind, sealed)) => {
                Ok(kind == FrameType::ServerInfo as u8 && shared.open(&sealed).is_some())
            }
            // A refused client is hung up on.
            Err(_) => Ok(false),
        }
    }

    fn upgrade(&self) -> io::Result<TcpStream> {
        // The log tells of the start before the port is bound.
        let until = std::time::Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => break stream,
                Err(error) if std::time::Instant::now() >= until => return Err(error),
                Err(_) => std::thread::yield_now(),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(
            b"GET /derp HTTP/1.1\r\nHost: derp\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n",
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Ok(stream)
    }
}

impl Drop for Derper {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_frame(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head)?;
    let header = Header::read(&head).ok_or_else(|| io::Error::other("no header"))?;
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload)?;
    Ok((header.kind, payload))
}

fn public(private: &PrivateKey) -> Key {
    let public = private.compute_public_key().expect("a private key has a public one");
    Key::read(public.as_ref()).expect("it has 32 bytes")
}

fn shared(private: &PrivateKey, server: &Key) -> Shared {
    let mut point = Zeroizing::new([0; 32]);
    let server = UnparsedPublicKey::new(&X25519, &server.0);
    let agreed = agree(private, server, aws_lc_rs::error::Unspecified, |secret| {
        point.copy_from_slice(secret);
        Ok(())
    });
    agreed.expect("the server's key is one");
    Shared::new(&point)
}

/// How node 900a is, once that is `state`.
fn wait_for_health(control: &Control, fits: impl Fn(&Value) -> bool) -> Value {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let listed = control.cli(&["nodes", "ls", "--output", "json"]).expect_success().json();
        let health = listed["items"][0]["health"].clone();
        if fits(&health) {
            return health;
        }
        assert!(std::time::Instant::now() < until, "{health}");
    }
}

#[test]
fn controls_own_probes_are_let_in_and_a_stranger_is_seen_to_be_none() {
    let Some(program) = derper() else { return };
    let probing = || Control::start_with(&["--probe-every", "100ms"]);
    let (control, stranger) = (probing(), probing());
    let derper = Derper::start(&program, &format!("http://{}/verify", control.address));
    let node = json!({"Name": "900a", "RegionID": 900, "HostName": "127.0.0.1", "IPv6": "none",
        "DERPPort": derper.address.port(), "STUNPort": -1, "ForceHTTP": true});
    let region = json!({"RegionID": 900, "RegionCode": "mine", "Nodes": [node]});
    let map = json!({"Regions": {"900": region}}).to_string();
    for control in [&control, &stranger] {
        let file = write(&control.scratch, "map.json", &map);
        control.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
    }
    let own = wait_for_health(&control, |health| health["state"] == "healthy");
    assert!(own["latency_ms"]["derp"].is_f64() && own["why"].is_null(), "{own}");
    // One that knows its clients is well, even if we are none of them.
    let other = wait_for_health(&stranger, |health| health["state"] == "healthy");
    assert!(other["latency_ms"]["derp"].is_null(), "{other}");
    assert!(other["why"].as_str().is_some_and(|why| why.contains("turned us away")), "{other}");
    // One that has let us in and does so no more is not: its control is gone, and it fails closed.
    let mut own_again = control;
    own_again.kill();
    let own = own_again.start_again();
    drop(derper);
    wait_for_health(&own, |health| health["state"] == "unhealthy");
}

#[test]
fn a_stock_derper_admits_a_registered_client_and_refuses_another() {
    let Some(program) = derper() else { return };
    let control = Control::start();
    let derper = Derper::start(&program, &format!("http://{}/verify", control.address));
    let [known, stranger] =
        [(); 2].map(|()| PrivateKey::generate(&X25519).expect("the system has random bytes"));
    let key = format!("nodekey:{}", public(&known));
    control.cli(&["clients", "create", "laptop", &key]).expect_success();
    assert!(derper.admits(&known).expect("it answers"));
    assert!(!derper.admits(&stranger).expect("it answers"));
    let refusal = derper.wait_for("not allowed");
    assert!(refusal.contains("admission controller"), "{refusal}");
    control.cli(&["clients", "rm", "laptop", "--yes"]).expect_success();
    assert!(!derper.admits(&known).expect("it answers"), "a removed one is refused at once");
}
