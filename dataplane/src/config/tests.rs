//! Settings: their order, their defaults and the line that refuses each.

use super::raw::Origin;
use super::*;
use crate::certs::{CertFiles, Source};
use crate::fault::ExitCode;
use crate::testing::Scratch;

fn file(text: &str) -> Result<Checked, String> {
    let scratch = Scratch::new();
    let path = scratch.write("relay.toml", text);
    let checked = Raw::from_file(&path).and_then(|raw| Checked::from_raw(&raw));
    checked.map_err(|fault| {
        assert_eq!(fault.code(), ExitCode::Config, "{fault}");
        scratch.strip(&fault.to_string())
    })
}

fn flag(key: Key, text: &str) -> Result<Checked, OperatorFault> {
    let mut raw = Raw::default();
    raw.set(key, vec![text.to_owned()], Origin::Flag(format!("--{}", key.spec().flag)));
    Checked::from_raw(&raw)
}

#[test]
fn defaults_are_good_and_as_documented() {
    let checked = Checked::from_raw(&Raw::default()).expect("defaults are good");
    assert_eq!(checked.cores, Cores::Auto);
    assert_eq!(checked.listen, ["[::]:8443".parse().expect("an address")]);
    assert!(checked.http_listen.is_empty());
    assert_eq!(checked.udp_listen, ["[::]:3478".parse().expect("an address")]);
    assert_eq!(checked.tls, Some(Source::SelfSigned));
    assert_eq!(*checked.name(), HostName::LOOPBACK);
    assert_eq!(checked.queue, Limits { queue_bytes_max: 2 << 20, queue_packets_max: 512 });
    assert_eq!(checked.tcp.write_timeout, Some(Duration::from_secs(2)));
    assert_eq!(checked.accept_rate, None);
    assert_eq!(checked.stun_rate, proto::stun::RATE_DEFAULT);
}

#[test]
fn every_key_can_be_set_in_a_file() {
    let checked = file(
        r#"
        cores = "2-3,5"
        io = "epoll"
        listen = ["127.0.0.1:443", ":8443"]
        http_listen = ":80"
        stun_listen = "off"
        derp = false
        tls = true
        hostname = "relay.example.com"
        key_file = "relay.key"
        satellite_key_file = "satellite.pem"
        primary_url = ["https://one.example", "http://two.example:8090/"]
        primary_ca = "ca.pem"
        access_url = "https://sydney.example/"
        home = "https://example.com/"
        bootstrap_dns = ["a.example", "b.example"]
        queue_bytes_max = 1048576
        queue_packets_max = 64
        queued_bytes_max = 1_000_000_000
        write_timeout_ms = 0
        tcp_user_timeout_ms = 1
        tcp_keepalive_s = 60
        notsent_lowat_bytes = 16384
        handshakes_max = 7
        accept_rate = 100
        accept_burst = 10
        sessions_max = 9
        stun_rate_per_s = 5
        stun_burst = 6
        log = "info,dataplane=debug"
        log_format = "json"

        [[cert]]
        cert_file = "a.pem"
        key_file = "a.key"

        [[cert]]
        cert_file = "b.pem"
        key_file = "b.key"
        "#,
    )
    .expect("the file is good");
    assert_eq!(checked.cores, Cores::List(vec![2, 3, 5]));
    assert_eq!(checked.listen.len(), 2);
    assert_eq!(checked.http_listen, ["[::]:80".parse().expect("an address")]);
    assert!(checked.udp_listen.is_empty() && !checked.derp);
    let files = |stem| CertFiles {
        cert_file: format!("{stem}.pem").into(),
        key_file: format!("{stem}.key").into(),
    };
    assert_eq!(checked.tls, Some(Source::Files(vec![files("a"), files("b")])));
    assert_eq!(checked.home, Home::Redirect("https://example.com/".into()));
    let control: Vec<_> = checked.primary_urls.iter().map(Url::as_str).collect();
    let path = steer::satellite::ALIVE_PATH;
    assert_eq!(
        control,
        ["https://one.example", "http://two.example:8090"].map(|at| format!("{at}{path}"))
    );
    assert_eq!(checked.access_url.as_deref(), Some("https://sydney.example"));
    assert_eq!(checked.bootstrap_dns, ["a.example", "b.example"]);
    assert_eq!(checked.tcp.write_timeout, None);
    assert_eq!(checked.accept_rate, Some(Rate { per_second: 100, burst: 10 }));
    assert_eq!(checked.log_format, LogFormat::Json);
}

#[test]
fn flags_lie_over_the_environment_and_that_over_the_file() {
    let scratch = Scratch::new();
    let path = scratch.write("relay.toml", "cores = 1\nio = \"epoll\"\nlog = \"warn\"");
    let environment = Raw::from_environment(|name| match name {
        "PERIGEE_CORES" => Some("2".into()),
        "PERIGEE_IO" => Some("uring".into()),
        "PERIGEE_LOG" => Some(String::new()),
        _ => None,
    });
    let mut flags = Raw::default();
    flags.set(Key::Cores, vec!["3".into()], Origin::Flag("--cores".into()));
    let raw = Raw::from_file(&path).expect("a good file").overlaid(environment).overlaid(flags);
    let checked = Checked::from_raw(&raw).expect("good settings");
    assert_eq!(
        (checked.cores, checked.io, &*checked.log),
        (Cores::Count(3), Wanted::Uring, "warn")
    );
    let shown = scratch.strip(&effective(&raw));
    assert!(
        shown.starts_with("cores = \"3\"  # --cores\nio = \"uring\"  # environment\n"),
        "{shown}"
    );
    assert!(
        shown.contains("\nlog = \"warn\"  # relay.toml\n")
            && shown.contains("\nhome = \"\"  # default\n")
    );
}

#[test]
fn of_settings_that_exclude_each_other_the_higher_origin_wins() {
    let scratch = Scratch::new();
    let tls = |file: &str, key: Key, flag: &str| {
        let path = scratch.write("relay.toml", file);
        let mut flags = Raw::default();
        flags.set(key, vec![flag.into()], Origin::Flag("--flag".into()));
        let raw = Raw::from_file(&path).expect("a good file").overlaid(flags);
        Checked::from_raw(&raw).expect("no conflict").tls
    };
    let pair = CertFiles { cert_file: "a".into(), key_file: "b".into() };
    let files = Some(Source::Files(vec![pair]));
    assert_eq!(tls("cert_dir = \"d\"", Key::Cert, "a,b"), files);
    assert_eq!(tls("cert = \"a,b\"", Key::CertDir, "d"), Some(Source::Directory("d".into())));
    assert_eq!(tls("cert = \"a,b\"", Key::Tls, "off"), None);
    assert_eq!(tls("tls = false", Key::Cert, "a,b"), files);
    assert_eq!(tls("cert = \"a,b\"", Key::Tls, "on"), files);
    assert_eq!(tls("cert_dir = \"d\"", Key::CertDir, ""), Some(Source::SelfSigned));
}

#[test]
fn what_check_prints_is_a_file_that_means_the_same() {
    let shown = effective(&Raw::default());
    file(&shown).expect("the defaults as a file");
}

#[test]
fn a_bad_file_is_refused_in_one_line() {
    for (text, message) in [
        ("coers = 2", "relay.toml: unknown key coers; did you mean cores?"),
        ("frobnicate = 2", "relay.toml: unknown key frobnicate; see dataplane --help for the keys"),
        ("[[cert]]\ncert = \"a\"", "relay.toml: unknown key cert.cert; did you mean cert_file?"),
        ("[[cert]]\ncert_file = \"a\"", "relay.toml: cert: key_file is missing; name a PEM file"),
        (
            "io = \"epoll\"\ncores = ",
            "relay.toml:2: string values must be quoted, expected literal string; correct the TOML",
        ),
        ("cores = 1\ncores = 2", "relay.toml:2: duplicate key; correct the TOML"),
        ("cores = [1]", "relay.toml: cores: takes one value; write N|auto|LIST"),
        ("cores = 1.5", "relay.toml: cores: takes no fraction; write N|auto|LIST"),
        (
            "cores = \"many\"",
            "relay.toml: cores: \"many\" is not a set of cores; write auto, a number, or a list such as 2-9,12",
        ),
        (
            "queue_packets_max = -1",
            "relay.toml: queue_packets_max: \"-1\" is not a whole number from 1 to 1048576; write one",
        ),
        (
            "queue_bytes_max = 1000",
            "relay.toml: queue_bytes_max: \"1000\" is not a whole number from 65573 to 4294967295; write one",
        ),
        (
            "queued_bytes_max = 70000",
            "relay.toml: queued_bytes_max: \"70000\" is below queue_bytes_max; write 2097152 or more, or set queue_bytes_max lower, too",
        ),
        (
            "tcp_keepalive_s = 32768",
            "relay.toml: tcp_keepalive_s: \"32768\" is not a whole number from 0 to 32767; write one",
        ),
        (
            "primary_url = \"https://primary.example\"",
            "relay.toml: primary_url: \"https://primary.example\" takes signed requests alone; name a satellite_key_file, too",
        ),
        (
            "primary_url = \"primary.example\"",
            "relay.toml: primary_url: \"primary.example\" is no web address; write https:// and a host",
        ),
        (
            "primary_url = \"https://primary.example/api\"",
            "relay.toml: primary_url: \"https://primary.example/api\" has a path; write https:// and a host",
        ),
        (
            "access_url = \"https://user@sydney.example\"",
            "relay.toml: access_url: \"https://user@sydney.example\" is no web address; write https:// and a host",
        ),
        ("listen = []", "listen: names no address; write IP:PORT, [IPv6]:PORT or :PORT"),
        ("cert = \"a,b\"\ncert_dir = \"d\"", "cert_dir: cert is set too; leave one of them out"),
        (
            "tls = false\ncert = \"a,b\"",
            "tls: is off, but certificates are set; leave out cert and cert_dir, or turn tls on",
        ),
    ] {
        assert_eq!(file(text).expect_err(text), message);
    }
}

const PEERS: &str = r#"
    [[wireguard.peer]]
    name = "alice"
    public_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
    [[wireguard.peer]]
    name = "bob"
    public_key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
"#;

#[test]
fn a_file_with_udp_and_wireguard_alone_is_complete() {
    let text = format!(
        "[udp]\nlisten = [\"192.0.2.1:3478\", \"[2001:db8::1]:3478\"]\n{PEERS}\
         [[wireguard.link]]\npeers = [\"bob\", \"alice\"]"
    );
    let checked = file(&text).expect("the file is good");
    assert_eq!(
        checked.udp_listen,
        ["192.0.2.1:3478", "[2001:db8::1]:3478"].map(|text| text.parse().expect("an address"))
    );
    let [link] = checked.wireguard.links[..] else { panic!("one link") };
    assert_eq!((link.peers, checked.wireguard.link_name(&link).as_str()), ([1, 0], "bob/alice"));
    assert_eq!(checked.wireguard.peers[1].key, wire::key::Key([2; 32]));
    assert!(checked.derp);

    let again = file(&checked.wireguard.to_toml()).expect("it reads what it writes");
    assert_eq!(again.wireguard, checked.wireguard);
    assert_eq!(again.udp_listen, ["[::]:3478".parse().expect("an address")]);
}

#[test]
fn bad_peers_and_tables_are_refused_in_one_line() {
    let linked = |links: &str| format!("{PEERS}{links}");
    for (text, message) in [
        (
            "[udp]\nlisten = \":1\"\nport = 2".into(),
            "relay.toml: unknown key udp.port; see dataplane --help for the keys",
        ),
        ("udp = 3".into(), "relay.toml: udp: takes a table; see README.md for its keys"),
        (
            "stun_listen = \":1\"\n[udp]\nlisten = \":2\"".into(),
            "relay.toml: udp.listen: stun_listen is set too; leave one of them out",
        ),
        ("wiregard = 1".into(), "relay.toml: unknown key wiregard; did you mean wireguard?"),
        (
            "[[wireguard.peers]]".into(),
            "relay.toml: unknown key wireguard.peers; did you mean peer?",
        ),
        (
            "[wireguard.peer]\nname = \"a\"".into(),
            "relay.toml: wireguard.peer: takes tables; write [[wireguard.peer]] above each",
        ),
        (
            "[[wireguard.peer]]\nname = \"a\"\nkey = \"b\"".into(),
            "relay.toml: unknown key wireguard.peer.key; see dataplane --help for the keys",
        ),
        (
            "[[wireguard.peer]]\npublic_key = \"b\"".into(),
            "relay.toml: wireguard.peer: name is missing; give the peer a name of its own",
        ),
        (
            "[[wireguard.peer]]\nname = \"a b\"".into(),
            "relay.toml: wireguard.peer: name: \"a b\" is not a peer's name; write up to 63 letters, digits, dots, hyphens and underscores",
        ),
        (
            "[[wireguard.peer]]\nname = \"a\"".into(),
            "relay.toml: wireguard.peer a: public_key is missing; write what wg pubkey prints",
        ),
        (
            "[[wireguard.peer]]\nname = \"a\"\npublic_key = \"AQEBAQ==\"".into(),
            "relay.toml: wireguard.peer a: public_key: \"AQEBAQ==\" is not the base64 of a public key's 32 bytes; write what wg pubkey prints",
        ),
        (
            linked(
                "[[wireguard.peer]]\nname = \"alice\"\npublic_key = \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"",
            ),
            "relay.toml: wireguard.peer alice: name: is taken; give each peer a name of its own",
        ),
        (
            linked(
                "[[wireguard.peer]]\nname = \"carol\"\npublic_key = \"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\"",
            ),
            "relay.toml: wireguard.peer carol: public_key: is that of bob; leave one of them out",
        ),
    ] {
        assert_eq!(file(&text).expect_err(&text), message);
    }
}

#[test]
fn bad_links_are_refused_in_one_line() {
    let linked = |links: &str| format!("{PEERS}{links}");
    for (text, message) in [
        (
            format!("stun_listen = \"off\"\n{PEERS}"),
            "stun_listen: is off, but the file names WireGuard peers; name an address",
        ),
        (
            linked("[[wireguard.link]]\npeers = [\"alice\"]"),
            "relay.toml: wireguard.link: peers: takes the names of two peers; write peers = [\"a\", \"b\"]",
        ),
        (
            linked("[[wireguard.link]]\npeers = [\"alcie\", \"bob\"]"),
            "relay.toml: wireguard.link: peers: no peer is named \"alcie\"; did you mean alice?",
        ),
        (
            linked("[[wireguard.link]]\npeers = [\"bob\", \"bob\"]"),
            "relay.toml: wireguard.link: peers: bob needs no link to itself; name two peers",
        ),
        (
            linked(
                "[[wireguard.link]]\npeers = [\"bob\", \"alice\"]\n[[wireguard.link]]\npeers = [\"alice\", \"bob\"]",
            ),
            "relay.toml: wireguard.link: peers: alice and bob are linked twice; leave one link out",
        ),
    ] {
        assert_eq!(file(&text).expect_err(&text), message);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let scratch = Scratch::new();
    let fault = Raw::from_file(&scratch.path("none.toml")).expect_err("no such file");
    assert_eq!(
        scratch.strip(&fault.to_string()),
        "none.toml: no such file or directory; --config must name a readable TOML file"
    );
}

#[test]
fn a_bad_value_is_refused_under_the_name_it_was_set_by() {
    for (key, text, message) in [
        (
            Key::Cores,
            "0",
            "--cores: \"0\" is not a set of cores; write auto, a number, or a list such as 2-9,12",
        ),
        (
            Key::Cores,
            "9-2",
            "--cores: \"9-2\" is not a set of cores; write auto, a number, or a list such as 2-9,12",
        ),
        (Key::Io, "xdp", "--io: \"xdp\" is no way of input and output; write auto, uring or epoll"),
        (
            Key::Listen,
            "relay.example:443",
            "--listen: \"relay.example:443\" is not an address to listen on; write IP:PORT, [IPv6]:PORT or :PORT",
        ),
        (
            Key::StunListen,
            "3478",
            "--stun-listen: \"3478\" is not an address to listen on; write IP:PORT, [IPv6]:PORT or :PORT, or off",
        ),
        (
            Key::Hostname,
            "a b",
            "--hostname: \"a b\" is neither a DNS name nor an IP address; write the name or address that clients dial, without port",
        ),
        (
            Key::Cert,
            "a.pem",
            "--cert: \"a.pem\" is not a certificate and its key; write CERT.pem,KEY.pem",
        ),
        (
            Key::Home,
            "ftp://x",
            "--home: \"ftp://x\" is no home page; write blank, a URL, or nothing for ours",
        ),
        (
            Key::BootstrapDns,
            "192.0.2.1",
            "--bootstrap-dns: \"192.0.2.1\" is not a DNS name; write names to resolve",
        ),
        (Key::Derp, "maybe", "--derp: \"maybe\" is neither on nor off; write one of them"),
        (
            Key::StunBurst,
            "0",
            "--stun-burst: \"0\" is not a whole number from 1 to 4294967295; write one",
        ),
        (
            Key::Log,
            "a=b=c",
            "--log: \"a=b=c\" is not a log filter; write a level such as info, or target=level pairs",
        ),
        (Key::LogFormat, "xml", "--log-format: \"xml\" is no log format; write human or json"),
    ] {
        let fault = flag(key, text).expect_err(text);
        assert_eq!((fault.to_string(), fault.code()), (message.to_owned(), ExitCode::Usage));
    }
}

#[test]
fn cores_and_addresses_have_several_forms() {
    for (text, cores) in [
        ("auto", Cores::Auto),
        ("4", Cores::Count(4)),
        ("4,", Cores::List(vec![4])),
        ("12, 2-4,3", Cores::List(vec![2, 3, 4, 12])),
    ] {
        assert_eq!(value::cores(text), Ok(cores), "{text}");
    }
    for (text, address) in [
        (":443", "[::]:443"),
        (":https", "[::]:443"),
        ("localhost:0", "127.0.0.1:0"),
        ("[::1]:80", "[::1]:80"),
        ("0.0.0.0:80", "0.0.0.0:80"),
    ] {
        assert_eq!(value::address(text).map(|address| address.to_string()), Ok(address.to_owned()));
    }
}

#[test]
fn only_the_address_for_all_falls_back_to_ipv4() {
    let fallback = |text: &str| {
        ipv4_fallback(text.parse().expect("an address")).map(|address| address.to_string())
    };
    assert_eq!(fallback("[::]:443").as_deref(), Some("0.0.0.0:443"));
    assert_eq!(fallback("[::1]:443"), None);
    assert_eq!(fallback("0.0.0.0:443"), None);
}

#[test]
fn xdp_is_refused_by_a_wrong_way_interface_or_none() {
    for (key, text, message) in [
        (
            Key::Xdp,
            "on",
            "--xdp: \"on\" is no way of attaching; write auto, native, generic, tcx or off",
        ),
        (
            Key::Xdp,
            "native",
            "--xdp: \"native\" needs an interface that packets come in by; name one with xdp_interface",
        ),
        (
            Key::XdpInterface,
            "/dev/eth0",
            "--xdp-interface: \"/dev/eth0\" is no name of an interface; write one that `ip link` shows",
        ),
    ] {
        let mut raw = Raw::default();
        let origin = Origin::Flag(format!("--{}", key.spec().flag));
        raw.set(key, vec![text.to_owned()], origin);
        let fault = Checked::from_raw(&raw).expect_err(text);
        assert_eq!((fault.to_string().as_str(), fault.code()), (message, ExitCode::Usage));
    }
}

#[test]
fn interfaces_are_attached_once_each() {
    let mut raw = Raw::default();
    let names = ["eth0", "eth1", "eth0"].map(str::to_owned).to_vec();
    raw.set(Key::XdpInterface, names, Origin::Flag("--xdp-interface".into()));
    let wish = Checked::from_raw(&raw).expect("it is good").fast_path;
    assert_eq!(wish.interfaces, ["eth0", "eth1"]);
    assert_eq!((wish.mode, wish.pins), (Some(xdp::Wanted::Auto), None));
}
