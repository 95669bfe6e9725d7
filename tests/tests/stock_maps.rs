//! Stock programs that take control's DERP map as it is: Tailscale's `derpprobe`, which probes our relay
//! by it, and headscale, which hands it to clients.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tests::process::{PATIENCE, eventually};
use tests::relay::Relay;
use tests::scratch::Scratch;
use tests::serving::Serving;
use tests::skip::{skip, slow};

/// The newest stable releases that build, as of 2026-11.
const DERPPROBE: &str = "v1.102.4";
const HEADSCALE: &str = "v0.28.0";

fn text(path: &Path) -> String {
    path.to_str().expect("scratch paths are UTF-8").to_owned()
}

/// Where the program `name` of this version is built once.
fn place(name: &str, version: &str) -> PathBuf {
    // <target>/tmp is the tests' own folder.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("..");
    target.join("peers").join(format!("{name}-{version}"))
}

/// Runs `go`; what it says, or why it does not work.
fn go(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Stock derpprobe; `None` where there is no Go.
fn derpprobe() -> Option<PathBuf> {
    let folder = place("derpprobe", DERPPROBE);
    let program = folder.join("derpprobe");
    if !program.is_file() {
        let module = format!("tailscale.com/cmd/derpprobe@{DERPPROBE}");
        let built = go(Command::new("go").args(["install", &module]).env("GOBIN", &folder));
        built.inspect_err(|why| skip("go", why)).ok()?;
    }
    Some(program)
}

/// Stock headscale, built where its module is, by the sums it brings; `None` where there is no Go.
fn headscale() -> Option<PathBuf> {
    let folder = place("headscale", HEADSCALE);
    let program = folder.join("headscale");
    if program.is_file() {
        return Some(program);
    }
    let build = || {
        let module = format!("github.com/juanfont/headscale@{HEADSCALE}");
        // Outside of the module that the folder it runs in may belong to.
        let mut download = Command::new("go");
        download.args(["mod", "download", "-json", &module]).current_dir(std::env::temp_dir());
        let told: Value =
            serde_json::from_slice(&go(&mut download)?).map_err(|error| error.to_string())?;
        let source = told["Dir"].as_str().ok_or("go names no folder")?;
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let mut build = Command::new("go");
        build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg("./cmd/headscale");
        go(build.current_dir(source)).map(drop)
    };
    build().inspect_err(|why| skip("go", why)).ok()?;
    Some(program)
}

/// A relay called localhost, a control that has it as its only node, and the authority of its
/// certificate.
struct Fleet {
    relay: Relay,
    control: Serving,
    authority: String,
    scratch: Scratch,
}

impl Fleet {
    fn start() -> Self {
        let scratch = Scratch::new();
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().expect("the system has random bytes");
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("it signs itself");
        let names = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let own = key();
        let certificate = names.signed_by(&own, &issuer).expect("the authority signs");
        let chain = text(&scratch.write("relay.pem", certificate.pem()));
        let own = text(&scratch.write("relay.key", own.serialize_pem()));
        let authority = text(&scratch.write("authority.pem", issuer.pem()));
        let pair = format!("{chain},{own}");
        let any = "127.0.0.1:0";
        let relay = Relay::start(
            &[
                &["--io", "epoll", "--cores", "1", "--hostname", "localhost", "--cert", &pair][..],
                &["--listen", any, "--http-listen", any, "--stun-listen", any],
            ]
            .concat(),
        );
        let control = Serving::start(&scratch);
        let port = relay.derp().port().to_string();
        let stun = relay.ready.stun.first().expect("it answers STUN").port().to_string();
        control.cli(&["regions", "create", "mine", "900", "--title", "Mine"]);
        let node = ["nodes", "create", "900a", "mine", "localhost", "--ipv4", "127.0.0.1"];
        control.cli(&[&node[..], &["--derp-port", &port, "--stun-port", &stun]].concat());
        Self { relay, control, authority, scratch }
    }

    fn map_url(&self) -> String {
        format!("http://{}/derpmap/default", self.control.address)
    }
}

#[test]
fn derpprobe_finds_our_relay_well_by_our_map_and_notices_when_it_is_gone() {
    let Some(program) = derpprobe() else { return };
    let mut fleet = Fleet::start();
    let (url, authority) = (fleet.map_url(), fleet.authority.clone());
    let probe = || {
        let mut command = Command::new(&program);
        // The intervals bound how long an answer is waited for.
        command.args(["-once", "-spread=false", "-stun-interval", "2s", "-derp-map", &url]);
        let ran = command.env("SSL_CERT_FILE", &authority).output().expect("it starts");
        let said = String::from_utf8(ran.stderr).expect("it logs UTF-8");
        let found = |word: &str| {
            let lines = said.lines().filter_map(|line| line.split_once(word));
            let names = lines.filter_map(|(_, rest)| rest.split_once(": "));
            names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        (ran.status.code(), found(" good: "), found(" bad: "))
    };
    let of_relay = ["derp/mine/900a/900a/mesh", "derp/mine/900a/tls", "derp/mine/900a/udp"];
    let (code, good, bad) = probe();
    assert_eq!((code, bad), (Some(0), Vec::new()));
    assert_eq!(good, [&of_relay[..], &["derpmap-probe"]].concat());
    fleet.relay.process.signal(rustix::process::Signal::TERM);
    fleet.relay.process.wait();
    let (code, good, bad) = probe();
    assert_eq!((code, good), (Some(1), vec!["derpmap-probe".to_owned()]));
    assert_eq!(bad, of_relay);
}

/// A child that goes with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body that plain HTTP gives for `path`.
fn page(address: SocketAddr, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head =
            format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok(body.to_owned())
}

/// Building headscale takes minutes.
#[test]
fn headscale_serves_our_map_and_follows_it() {
    if !slow() {
        return;
    }
    let Some(program) = headscale() else { return };
    let fleet = Fleet::start();
    // It tells no port that it was given, so it gets an address that nobody else has.
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 200, high, low.max(1));
    let free = || {
        let listener = TcpListener::bind((own, 0)).expect("loopback is a whole network");
        listener.local_addr().expect("bound")
    };
    let [http, debug, grpc] = [free(), free(), free()];
    let file = "regions: {901: {regionid: 901, regioncode: file, regionname: File, nodes: []}}";
    let file = text(&fleet.scratch.write("map.yaml", file));
    let path = |name: &str| text(&fleet.scratch.path(name));
    let config = format!(
        "server_url: http://{http}\nlisten_addr: {http}\nmetrics_listen_addr: {debug}\n\
         grpc_listen_addr: {grpc}\nnoise: {{private_key_path: {noise}}}\n\
         prefixes: {{v4: 100.64.0.0/10, allocation: sequential}}\n\
         derp: {{server: {{enabled: false}}, urls: ['{url}'], paths: ['{file}'],\n  \
         auto_update_enabled: true, update_frequency: 1s}}\n\
         database: {{type: sqlite, sqlite: {{path: {database}}}}}\n\
         dns: {{magic_dns: false, override_local_dns: false, base_domain: example.com}}\n\
         unix_socket: {socket}\nunix_socket_permission: '0700'\ndisable_check_updates: true\n",
        noise = path("noise.key"),
        url = fleet.map_url(),
        database = path("headscale.db"),
        socket = path("headscale.sock"),
    );
    let config = fleet.scratch.write("config.yaml", config);
    let mut command = Command::new(program);
    command.arg("--config").arg(config).arg("serve").env_clear();
    command.env("HOME", path("home")).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn().expect("it starts"));
    let regions = || -> Result<Value, String> {
        let told = page(debug, "/debug/derp")?;
        let told: Value = serde_json::from_str(&told).map_err(|error| error.to_string())?;
        Ok(told["regions"].clone())
    };
    let shown = eventually("the map in headscale", || {
        regions()
            .and_then(|regions| if regions.is_null() { Err("none".into()) } else { Ok(regions) })
    });
    let node = &shown["900"]["nodes"][0];
    assert_eq!((&node["name"], &node["hostname"]), (&"900a".into(), &"localhost".into()));
    assert_eq!(node["derp_port"], fleet.relay.derp().port());
    assert_eq!(shown["901"]["region_name"], "File", "that of the file is beside it");
    fleet.control.cli(&["nodes", "create", "900b", "mine", "two.example.com"]);
    eventually("the new node in headscale", || match regions()?["900"]["nodes"].as_array() {
        Some(nodes) if nodes.len() == 2 => Ok(()),
        nodes => Err(format!("{nodes:?}")),
    });
}
