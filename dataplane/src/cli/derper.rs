//! derper's command line, translated into our settings. Facts: derper 1.102, `-help`.
//!
//! Flags are in Go's syntax: one dash or two, `-flag value` or `-flag=value`, and a switch takes
//! its value only after `=`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Command, version};
use crate::config::keys::Key;
use crate::config::raw::{self, Origin, Raw};
use crate::config::value;
use crate::config::{Checked, TCP_KEEPALIVE_S_MAX, TIME_S_MAX};
use crate::fault::OperatorFault;

/// derper's own default name; a relay of somebody else is never called so.
const HOSTNAME_DEFAULT: &str = "derp.tailscale.com";
/// Where derper keeps its key when root starts it without `-c`.
const KEY_FILE_OF_ROOT: &str = "/var/lib/derper/derper.key";
/// Where `-dev` listens.
const DEV_ADDRESS: &str = ":3340";
/// The port that asks for TLS by itself.
const HTTPS_PORT: u16 = 443;

/// What we do about a flag.
enum Treatment {
    /// It has a meaning here.
    Used,
    /// It means something only beside a flag that we refuse.
    Inert,
    /// Only its default does; for any other value, what to do instead.
    Refused(&'static str),
}

struct Flag {
    name: &'static str,
    /// derper's default. `true` and `false` mark a switch.
    default: &'static str,
    treatment: Treatment,
    help: &'static str,
}

const fn used(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, default, treatment: Treatment::Used, help }
}

const fn inert(name: &'static str, default: &'static str) -> Flag {
    Flag { name, default, treatment: Treatment::Inert, help: "" }
}

const fn refused(name: &'static str, default: &'static str, advice: &'static str) -> Flag {
    Flag { name, default, treatment: Treatment::Refused(advice), help: "" }
}

const NO_ADMISSION: &str =
    "this relay admits every client: leave it out, or keep derper where clients must be verified";
const NO_MESH: &str = "this relay meshes with no other: leave it out and give the region one node";
const NO_SETEC: &str = "it fetches a mesh key, and this relay meshes with no other: leave it out";
const NO_ACME: &str = "get a certificate by other means and use -certmode manual";

const FLAGS: &[Flag] = &[
    used(
        "a",
        ":443",
        "address to serve DERP and HTTP on; with TLS if its port is 443 or -certmode is manual",
    ),
    used("http-port", "80", "port for plain HTTP, on the same IP; -1 for none"),
    used("stun", "true", "answer STUN, on the same IP"),
    used("stun-port", "3478", "port for STUN"),
    used("derp", "true", "relay"),
    used("c", "", "key file; made if missing"),
    used("certmode", "letsencrypt", "only manual is supported"),
    used("certdir", "", "directory of HOSTNAME.crt and HOSTNAME.key"),
    used("hostname", HOSTNAME_DEFAULT, "name or IP address that clients dial"),
    used("home", "", "home page: empty, blank, or where to redirect to"),
    used("bootstrap-dns-names", "", "names to resolve at /bootstrap-dns, with commas between"),
    used("accept-connection-limit", "+Inf", "connections accepted a second"),
    used("accept-connection-burst", "9223372036854775807", "connections accepted at once"),
    used("tcp-keepalive-time", "10m", "idle time before a TCP keepalive"),
    used("tcp-user-timeout", "15s", "longest wait for a TCP acknowledgement"),
    used("tcp-write-timeout", "2s", "longest wait for a client to take a byte; 0 for no limit"),
    used("dev", "false", "listen on :3340 without TLS, with a new key"),
    used("version", "false", "print the version"),
    used("cores", "auto", "not derper's: relay cores, as dataplane --cores"),
    used("io", "auto", "not derper's: auto, uring or epoll"),
    inert("verify-client-url-fail-open", "true"),
    inert("socket", ""),
    inert("secrets-path-prefix", "prod/derp"),
    inert("secrets-cache-dir", ""),
    inert("acme-email", ""),
    refused("verify-clients", "false", NO_ADMISSION),
    refused("verify-client-url", "", NO_ADMISSION),
    refused("mesh-psk-file", "", NO_MESH),
    refused("mesh-with", "", NO_MESH),
    refused("secrets-url", "", NO_SETEC),
    refused("acme-ip-certs", "false", NO_ACME),
    refused("acme-eab-kid", "", NO_ACME),
    refused("acme-eab-key", "", NO_ACME),
    refused("unpublished-bootstrap-dns-names", "", "publish the names with -bootstrap-dns-names"),
    refused("rate-config", "", "this relay limits no client's rate: leave it out"),
    refused("ace", "false", "this relay is no CONNECT proxy: leave it out"),
];

/// Variables that derper heeds and this relay does not, and what it does instead.
const IGNORED_VARIABLES: [(&str, &str); 3] = [
    ("TS_ALLOW_DEBUG_IP", "debug pages are for loopback and Tailscale addresses"),
    ("TS_DEBUG_TRUSTED_CIDRS", "debug pages are for loopback and Tailscale addresses"),
    ("TS_DEBUG_KEY_PATH", "debug pages take no key and are for loopback and Tailscale addresses"),
];

/// What derper's `args`, without the program name, ask for. `variable` reads the environment, which
/// derper itself uses for nothing that is set here but the place of the default `-certdir`.
pub(super) fn parse(
    args: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Command, OperatorFault> {
    let Some(given) = read(args)? else { return Ok(Command::Print(help())) };
    if given.switch("version")? {
        return Ok(Command::Print(version()));
    }
    refuse_unsupported(&given)?;
    let raw = translate(&given, &variable)?;
    let mut checked = Checked::from_raw(&raw)?;
    let set = IGNORED_VARIABLES.iter().filter(|(name, _)| variable(name).is_some());
    checked.warnings.extend(set.map(|(name, instead)| format!("{name} has no effect; {instead}")));
    Ok(Command::Run(Box::new(checked)))
}

/// Flags as given, the last of each name counting.
struct Given(Vec<(&'static Flag, String)>);

impl Given {
    fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(flag, _)| flag.name == name).map(|(_, value)| value.as_str())
    }

    fn value(&self, name: &str) -> &str {
        let default =
            || FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default);
        self.find(name).unwrap_or_else(default)
    }

    fn switch(&self, name: &str) -> Result<bool, OperatorFault> {
        let value = self.value(name);
        boolean(value)
            .ok_or_else(|| refuse(name, value, "is neither true nor false; write one of them"))
    }
}

/// The flags of `args`, or `None` where they ask for help.
fn read(args: &[String]) -> Result<Option<Given>, OperatorFault> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|text| !text.is_empty())
        else {
            return Err(OperatorFault::usage(format_args!(
                "{arg:?} is no flag; derper takes flags only, see -help"
            )));
        };
        let (name, value) =
            text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        if name == "h" || name == "help" {
            return Ok(None);
        }
        let flag = FLAGS.iter().find(|flag| flag.name == name).ok_or_else(|| unknown(name))?;
        let value = match (value, boolean(flag.default)) {
            (Some(value), _) => value,
            (None, Some(_)) => "true",
            (None, None) => args
                .next()
                .ok_or_else(|| refuse(name, "", "is no value; write one after the flag"))?,
        };
        given.push((flag, value.to_owned()));
    }
    Ok(Some(Given(given)))
}

fn refuse_unsupported(given: &Given) -> Result<(), OperatorFault> {
    for (flag, value) in &given.0 {
        let Treatment::Refused(advice) = flag.treatment else { continue };
        let harmless = match boolean(flag.default) {
            Some(default) => boolean(value) == Some(default),
            None => value == flag.default,
        };
        if !harmless {
            let message = format_args!("-{}: not supported; {advice}", flag.name);
            return Err(OperatorFault::usage(message));
        }
    }
    Ok(())
}

fn translate(
    given: &Given,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Raw, OperatorFault> {
    let mut raw = Raw::default();
    let mut set = |key, flag: &str, value: String| {
        raw.set(key, vec![value], Origin::Flag(format!("-{flag}")))
    };
    let dev = given.switch("dev")?;
    let listen = listen(given, dev)?;
    let beside = |port: u16| SocketAddr::new(listen.ip(), port).to_string();
    let tls = serves_tls(given, listen, dev)?;

    set(Key::Listen, "a", listen.to_string());
    set(Key::Tls, "certmode", if tls { "on" } else { "off" }.into());
    let http_port = port(given, "http-port")?.filter(|_| tls);
    set(Key::HttpListen, "http-port", http_port.map_or("off".into(), beside));
    let stun = given.switch("stun")?;
    let stun_port = port(given, "stun-port")?.filter(|_| stun);
    set(Key::StunListen, "stun-port", stun_port.map_or("off".into(), beside));
    set(Key::Derp, "derp", given.switch("derp")?.to_string());
    if tls {
        set(Key::Hostname, "hostname", given.value("hostname").into());
        set(Key::CertDir, "certdir", cert_dir(given, variable)?);
    }
    if !dev {
        set(Key::IdentityFile, "c", key_file(given)?);
    }
    for (flag, key) in [
        ("home", Key::Home),
        ("bootstrap-dns-names", Key::BootstrapDns),
        ("cores", Key::Cores),
        ("io", Key::Io),
    ] {
        set(key, flag, given.value(flag).into());
    }
    let (limit, burst) = accept_rate(given)?;
    set(Key::AcceptRate, "accept-connection-limit", limit);
    set(Key::AcceptBurst, "accept-connection-burst", burst);
    for (flag, key, unit_ms, max_s) in [
        ("tcp-keepalive-time", Key::TcpKeepaliveS, 1000, TCP_KEEPALIVE_S_MAX),
        ("tcp-user-timeout", Key::TcpUserTimeoutMs, 1, TIME_S_MAX),
        ("tcp-write-timeout", Key::WriteTimeoutMs, 1, TIME_S_MAX),
    ] {
        set(key, flag, duration(given, flag, max_s)?.div_ceil(unit_ms).to_string());
    }
    Ok(raw)
}

/// Where `-a`, or `-dev`, says to listen.
fn listen(given: &Given, dev: bool) -> Result<SocketAddr, OperatorFault> {
    let text = if dev { DEV_ADDRESS } else { given.value("a") };
    value::address(text).map_err(|refusal| refuse("a", text, &refusal))
}

/// derper serves TLS on port 443 and with `-certmode manual`, and clear text otherwise. Unlike
/// derper we refuse a mode that was asked for and would not be used.
fn serves_tls(given: &Given, listen: SocketAddr, dev: bool) -> Result<bool, OperatorFault> {
    match given.find("certmode") {
        Some("manual") => Ok(true),
        Some(mode @ ("letsencrypt" | "gcp")) => Err(OperatorFault::usage(format_args!(
            "-certmode: {mode:?} is not supported; {NO_ACME} and -certdir"
        ))),
        Some(mode) => Err(refuse("certmode", mode, "is no mode; write manual")),
        None if !dev && listen.port() == HTTPS_PORT => Err(OperatorFault::usage(format_args!(
            "-certmode: \"letsencrypt\", derper's default on port {HTTPS_PORT}, is not supported; {NO_ACME} and -certdir"
        ))),
        None => Ok(false),
    }
}

fn cert_dir(
    given: &Given,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, OperatorFault> {
    if let Some(directory) = given.find("certdir").filter(|directory| !directory.is_empty()) {
        return Ok(directory.to_owned());
    }
    let set = |name: &str| variable(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let missing =
        || OperatorFault::usage("-certdir: is missing; name the directory of the certificate");
    let directory = cache.ok_or_else(missing)?.join("tailscale").join("derper-certs");
    Ok(directory.to_string_lossy().into_owned())
}

fn key_file(given: &Given) -> Result<String, OperatorFault> {
    match given.value("c") {
        "" if rustix::process::getuid().is_root() => Ok(KEY_FILE_OF_ROOT.to_owned()),
        "" => Err(OperatorFault::usage(
            "-c: is missing; name the key file, which is made if it does not exist",
        )),
        path => Ok(path.to_owned()),
    }
}

/// A port, or `None` for -1.
fn port(given: &Given, flag: &str) -> Result<Option<u16>, OperatorFault> {
    match given.value(flag) {
        "-1" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            refuse(flag, text, "is no port; write one from 0 to 65535, or -1 for none")
        }),
    }
}

/// Connections a second and at once, as our settings have them: 0 for no limit.
fn accept_rate(given: &Given) -> Result<(String, String), OperatorFault> {
    let (limit, burst) =
        (given.value("accept-connection-limit"), given.value("accept-connection-burst"));
    let bad = |flag, text| refuse(flag, text, "is no number of connections; write a positive one");
    let per_s: f64 = limit.parse().map_err(|_| bad("accept-connection-limit", limit))?;
    let at_once: u64 = burst.parse().map_err(|_| bad("accept-connection-burst", burst))?;
    if per_s.is_nan() || per_s <= 0.0 {
        return Err(bad("accept-connection-limit", limit));
    }
    // A fraction is rounded up, so that no limit becomes 0, which would mean none.
    let per_s = if per_s > f64::from(u32::MAX) { 0 } else { per_s.ceil() as u64 };
    Ok((per_s.to_string(), at_once.min(u64::from(u32::MAX)).to_string()))
}

/// A Go duration of at most `max_s` seconds, in milliseconds.
fn duration(given: &Given, flag: &str, max_s: u64) -> Result<u64, OperatorFault> {
    let text = given.value(flag);
    let ms = go_duration_ms(text)
        .ok_or_else(|| refuse(flag, text, "is no duration; write one such as 10m, 15s or 500ms"))?;
    if ms > max_s * 1000 {
        return Err(refuse(flag, text, &format!("is too long; write {max_s}s or less")));
    }
    Ok(ms)
}

/// Milliseconds of a Go duration that is not negative: `0`, or numbers each with a unit.
fn go_duration_ms(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total_ms = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit_ms = match &rest[..end] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            "us" | "µs" => 1e-3,
            "ns" => 1e-6,
            _ => return None,
        };
        rest = &rest[end..];
        total_ms += number * unit_ms;
    }
    // Rounded up, so that a short time does not become none.
    Some(f64::ceil(total_ms) as u64)
}

/// The spellings of a switch that Go takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn unknown(name: &str) -> OperatorFault {
    let fix = match raw::nearest(name, FLAGS.iter().map(|flag| flag.name)) {
        Some(nearest) => format!("did you mean -{nearest}?"),
        None => "see -help".to_owned(),
    };
    OperatorFault::usage(format_args!("-{name}: derper has no such flag; {fix}"))
}

fn refuse(flag: &str, text: &str, refusal: &str) -> OperatorFault {
    OperatorFault::usage(format_args!("-{flag}: {text:?} {refusal}"))
}

fn help() -> String {
    let mut text = String::from(
        "Examples:\n  dataplane derper -hostname relay.example.com -certmode manual -certdir certs -c derper.key\n  \
         dataplane derper -dev\n\nFlags, as derper takes them:\n",
    );
    for flag in FLAGS.iter().filter(|flag| matches!(flag.treatment, Treatment::Used)) {
        let default = if flag.default.is_empty() { "none" } else { flag.default };
        text.push_str(&format!("  -{}\n        {} (default {default})\n", flag.name, flag.help));
    }
    text
}

#[cfg(test)]
mod tests;
