//! derper's command line: Go's syntax, derper's meaning, and refusals that say what to do.

use std::time::Duration;

use proto::bucket::Rate;

use super::*;
use crate::certs::Source;
use crate::config::{Cores, Home};
use crate::fault::ExitCode;

fn parse_words(words: &str) -> Result<Command, OperatorFault> {
    let args: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    parse(&args, |name| (name == "HOME").then(|| "home".into()))
}

fn runs(words: &str) -> Checked {
    match parse_words(words) {
        Ok(Command::Run(checked)) => *checked,
        other => panic!("{words}: {other:?}"),
    }
}

#[test]
fn variables_that_only_derper_heeds_are_named() {
    let args = ["-dev".to_owned()];
    let warnings = |set: &str| match parse(&args, |name| (name == set).then(String::new)) {
        Ok(Command::Run(checked)) => checked.warnings,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        warnings("TS_ALLOW_DEBUG_IP"),
        ["TS_ALLOW_DEBUG_IP has no effect; debug pages are for loopback and Tailscale addresses"]
    );
    assert!(warnings("HOME").is_empty());
}

#[test]
fn the_command_line_of_the_bench_starts_this_relay_too() {
    let checked = runs(
        "-a 127.0.0.1:443 -http-port 80 -stun -stun-port 3479 -hostname relay.example.com -certmode manual \
         -certdir certs -c derper.key --cores 2 --io=epoll",
    );
    assert_eq!(checked.listen, ["127.0.0.1:443".parse().expect("an address")]);
    assert_eq!(checked.http_listen, ["127.0.0.1:80".parse().expect("an address")]);
    assert_eq!(checked.udp_listen, ["127.0.0.1:3479".parse().expect("an address")]);
    assert_eq!(checked.tls, Some(Source::Directory("certs".into())));
    assert_eq!(checked.name().to_string(), "relay.example.com");
    assert_eq!(checked.key_file.as_deref(), Some("derper.key".as_ref()));
    assert_eq!(checked.cores, Cores::Count(2));
    assert!(checked.derp);
    assert_eq!(checked.accept_rate, None);
    assert_eq!(checked.tcp.keepalive, Some(Duration::from_secs(600)));
    assert_eq!(checked.tcp.user_timeout, Some(Duration::from_secs(15)));
    assert_eq!(checked.tcp.write_timeout, Some(Duration::from_secs(2)));
}

#[test]
fn every_supported_flag_has_derpers_meaning() {
    let checked = runs(
        "--a=[::1]:8443 --http-port=-1 -stun=f -derp=false -certmode=manual -hostname 192.0.2.1 -c k -home blank \
         -bootstrap-dns-names a.example,b.example -accept-connection-limit 12.5 -accept-connection-burst 30 \
         -tcp-keepalive-time 1h2m -tcp-user-timeout 1.5s -tcp-write-timeout 0",
    );
    assert!(checked.http_listen.is_empty() && checked.udp_listen.is_empty() && !checked.derp);
    let cache = PathBuf::from("home").join(".cache").join("tailscale").join("derper-certs");
    assert_eq!(checked.tls, Some(Source::Directory(cache)));
    assert_eq!(checked.home, Home::Blank);
    assert_eq!(checked.bootstrap_dns, ["a.example", "b.example"]);
    assert_eq!(checked.accept_rate, Some(Rate { per_second: 13, burst: 30 }));
    assert_eq!(checked.tcp.keepalive, Some(Duration::from_secs(3720)));
    assert_eq!(checked.tcp.user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(checked.tcp.write_timeout, None);
}

#[test]
fn without_a_certificate_another_port_serves_clear_text_as_derper_does() {
    let checked = runs("-a :8080 -c k");
    assert_eq!(checked.tls, None);
    assert!(checked.http_listen.is_empty(), "derper opens its plain port beside TLS only");
    assert_eq!(checked.udp_listen, ["[::]:3478".parse().expect("an address")]);
}

#[test]
fn flags_that_would_have_no_effect_are_taken() {
    runs(
        "-a :1 -c k -verify-clients=false -mesh-with= -acme-email a@b.example -socket s -ace=false -rate-config=",
    );
}

#[test]
fn help_and_version_print() {
    for words in ["-h", "--help", "-a :1 -help"] {
        assert!(
            matches!(parse_words(words), Ok(Command::Print(text)) if text.starts_with("Examples:\n  dataplane derper "))
        );
    }
    assert!(
        matches!(parse_words("-version"), Ok(Command::Print(text)) if text.starts_with("perigee dataplane "))
    );
}

#[test]
fn what_we_lack_ends_the_start_with_what_to_do() {
    let manual = "get a certificate by other means and use -certmode manual";
    for (words, message) in [
        ("-verify-clients", format!("-verify-clients: not supported; {NO_ADMISSION}")),
        ("-verify-client-url http://x", format!("-verify-client-url: not supported; {NO_ADMISSION}")),
        ("-mesh-with a,b", format!("-mesh-with: not supported; {NO_MESH}")),
        ("-mesh-psk-file f", format!("-mesh-psk-file: not supported; {NO_MESH}")),
        ("-secrets-url http://x", format!("-secrets-url: not supported; {NO_SETEC}")),
        ("-acme-ip-certs", format!("-acme-ip-certs: not supported; {manual}")),
        (
            "-unpublished-bootstrap-dns-names a",
            "-unpublished-bootstrap-dns-names: not supported; publish the names with -bootstrap-dns-names".into(),
        ),
        ("-rate-config f", "-rate-config: not supported; this relay limits no client's rate: leave it out".into()),
        ("-ace", "-ace: not supported; this relay is no CONNECT proxy: leave it out".into()),
        ("-c k", format!("-certmode: \"letsencrypt\", derper's default on port 443, is not supported; {manual} and -certdir")),
        ("-a :1 -certmode gcp", format!("-certmode: \"gcp\" is not supported; {manual} and -certdir")),
        ("-a :1 -certmode manuel", "-certmode: \"manuel\" is no mode; write manual".into()),
    ] {
        let fault = parse_words(words).expect_err(words);
        assert_eq!((fault.to_string(), fault.code()), (message, ExitCode::Usage), "{words}");
    }
}

#[test]
fn a_wrong_flag_is_one_line_with_the_fix() {
    for (words, message) in [
        ("-hostnam x", "-hostnam: derper has no such flag; did you mean -hostname?"),
        ("-zzz", "-zzz: derper has no such flag; see -help"),
        ("serve", "\"serve\" is no flag; derper takes flags only, see -help"),
        ("-stun=maybe -a :1 -c k", "-stun: \"maybe\" is neither true nor false; write one of them"),
        (
            "-stun-port x -a :1 -c k",
            "-stun-port: \"x\" is no port; write one from 0 to 65535, or -1 for none",
        ),
        ("-a", "-a: \"\" is no value; write one after the flag"),
        (
            "-a 443",
            "-a: \"443\" is not an address to listen on; write IP:PORT, [IPv6]:PORT or :PORT",
        ),
        (
            "-a :1 -c k -tcp-user-timeout 15",
            "-tcp-user-timeout: \"15\" is no duration; write one such as 10m, 15s or 500ms",
        ),
        (
            "-a :1 -c k -tcp-keepalive-time 10h",
            "-tcp-keepalive-time: \"10h\" is too long; write 32767s or less",
        ),
        (
            "-a :1 -c k -tcp-write-timeout 25h",
            "-tcp-write-timeout: \"25h\" is too long; write 86400s or less",
        ),
        (
            "-a :1 -c k -accept-connection-limit -3",
            "-accept-connection-limit: \"-3\" is no number of connections; write a positive one",
        ),
        (
            "-a :1 -c k -home nowhere",
            "-home: \"nowhere\" is no home page; write blank, a URL, or nothing for ours",
        ),
        (
            "-a :1 -c k -cores x",
            "-cores: \"x\" is not a set of cores; write auto, a number, or a list such as 2-9,12",
        ),
    ] {
        let fault = parse_words(words).expect_err(words);
        assert_eq!(
            (fault.to_string().as_str(), fault.code()),
            (message, ExitCode::Usage),
            "{words}"
        );
    }
}

#[test]
fn durations_are_gos() {
    for (text, ms) in [
        ("0", Some(0)),
        ("2s", Some(2000)),
        ("1m30s", Some(90_000)),
        ("1.5h", Some(5_400_000)),
        (".5s", Some(500)),
        ("1us", Some(1)),
        ("+1ms", Some(1)),
        ("", None),
        ("5", None),
        ("-1s", None),
        ("1x", None),
        ("1..2s", None),
        ("s", None),
    ] {
        assert_eq!(go_duration_ms(text), ms, "{text:?}");
    }
}
