//! The settings of the process: read as text, used as [`Checked`].
//!
//! Defaults, a TOML file, the environment and flags lie over each other in this order. Every key
//! exists in all of them under names that follow from one table, and a wrong value is refused with
//! one line that says where it stands and what to write. `cli` fills this; everything else only
//! reads [`Checked`]. Nothing here touches the network or the files that settings name.

pub(crate) mod keys;
pub(crate) mod raw;
pub mod steering;
pub(crate) mod value;
pub mod wireguard;

use std::collections::HashSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::bucket::Rate;
use proto::derp::Limits;
use reqwest::Url;
use steer::QUEUE_BYTES_MIN;

use crate::certs::{self, HostName};
use crate::fault::OperatorFault;
use crate::io::probe::Wanted;
use crate::offload::Wish;
use crate::xdp;
use keys::Key;
use raw::Raw;
use steering::Steering;
use value::Refusal;
use wireguard::Wireguard;

/// Longest time a setting may name, in seconds: a day.
pub(crate) const TIME_S_MAX: u64 = 24 * 3600;
/// Longest keepalive time that Linux takes, in seconds (`MAX_TCP_KEEPIDLE` of `net/tcp.h`).
pub(crate) const TCP_KEEPALIVE_S_MAX: u64 = 32_767;

/// Which cores relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// One worker for each CPU this process may use.
    Auto,
    /// So many workers, on the first CPUs this process may use. At least one.
    Count(usize),
    /// One worker on each of these CPUs, in ascending order, none twice, at least one.
    List(Vec<usize>),
}

/// What the home page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Our own.
    Page,
    /// An empty one.
    Blank,
    /// A redirection to this URL, which is fit for a header.
    Redirect(String),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For reading.
    Human,
    /// One JSON object a line.
    Json,
}

/// Bounds on one client's TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpLimits {
    /// A write that moves no byte for so long ends the session; `None`: never.
    pub write_timeout: Option<Duration>,
    /// `TCP_USER_TIMEOUT`; `None`: the kernel's way.
    pub user_timeout: Option<Duration>,
    /// Idle time before the first keepalive probe; `None`: no probes.
    pub keepalive: Option<Duration>,
    /// `TCP_NOTSENT_LOWAT` in bytes.
    pub notsent_lowat_bytes: u32,
}

/// Settings that can be used as they are.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Which cores relay.
    pub cores: Cores,
    /// How to ask the kernel for input and output.
    pub io: Wanted,
    /// Where DERP and HTTP are served; at least one address.
    pub listen: Vec<SocketAddr>,
    /// Where plain HTTP is served.
    pub http_listen: Vec<SocketAddr>,
    /// Where STUN is answered and WireGuard relayed, on the same ports.
    pub udp_listen: Vec<SocketAddr>,
    /// WireGuard peers and links.
    pub wireguard: Wireguard,
    /// By whom the relay is steered, if it is.
    pub steering: Option<Steering>,
    /// The configuration file, which a reload reads again.
    pub file: Option<PathBuf>,
    /// Whether `/derp` relays.
    pub derp: bool,
    /// Where certificates come from; `None` serves clear text on `listen`.
    pub tls: Option<certs::Source>,
    /// What clients call this relay, if the operator said so; see [`Checked::name`].
    pub hostname: Option<HostName>,
    /// The relay's key file; `None` makes a new identity at each start.
    pub key_file: Option<PathBuf>,
    /// The satellite's key file; `None`: this is no satellite.
    pub satellite_key_file: Option<PathBuf>,
    /// Where the primary sides take signs of life; none without a key file.
    pub primary_urls: Vec<Url>,
    /// Certificates to trust there instead of the system's.
    pub primary_ca: Option<PathBuf>,
    /// Where users reach this satellite.
    pub access_url: Option<String>,
    /// What the home page is.
    pub home: Home,
    /// DNS names to resolve for `/bootstrap-dns`.
    pub bootstrap_dns: Vec<String>,
    /// Bounds of each client's queue, for each of its lanes.
    pub queue: Limits,
    /// Bytes that may wait in all queues together.
    pub queued_bytes_max: usize,
    /// Bounds on each client's TCP connection.
    pub tcp: TcpLimits,
    /// Handshakes under way at a time.
    pub handshakes_max: usize,
    /// Connections accepted; `None`: no limit.
    pub accept_rate: Option<Rate>,
    /// DERP sessions at a time.
    pub sessions_max: usize,
    /// STUN answers for one source prefix.
    pub stun_rate: Rate,
    /// XDP: how, on which interfaces.
    pub fast_path: Wish,
    /// What to log, a filter that `tracing-subscriber` takes.
    pub log: String,
    /// How to log.
    pub log_format: LogFormat,
    /// What the operator calls `listen`, `http_listen` and `stun_listen`, for faults of theirs.
    pub listen_names: [String; 3],
    /// What a start should tell the operator at once, a line each.
    pub warnings: Vec<String>,
}

impl Checked {
    /// The settings of `raw`, with defaults for what it leaves out.
    pub(crate) fn from_raw(raw: &Raw) -> Result<Self, OperatorFault> {
        let hostname = some(raw, Key::Hostname, value::hostname)?;
        let queue_bytes = value::number(QUEUE_BYTES_MIN..=u64::from(u32::MAX));
        let queue = Limits {
            queue_bytes_max: one(raw, Key::QueueBytesMax, queue_bytes)?,
            queue_packets_max: one(raw, Key::QueuePacketsMax, value::number(1..=1 << 20))?,
        };
        let udp_key = udp_key(raw)?;
        let udp_listen: Vec<_> =
            several(raw, udp_key, value::address_or_off)?.into_iter().flatten().collect();
        let wireguard = wireguard(raw)?;
        let steering = Steering::from_raw(raw)?;
        if udp_listen.is_empty() && !wireguard.peers.is_empty() {
            return Err(OperatorFault::config(format_args!(
                "{}: is off, but the file names WireGuard peers; name an address",
                udp_key.file_name()
            )));
        }
        Ok(Self {
            cores: one(raw, Key::Cores, value::cores)?,
            io: one(raw, Key::Io, value::io)?,
            listen: listen(raw)?,
            http_listen: several(raw, Key::HttpListen, value::address_or_off)?
                .into_iter()
                .flatten()
                .collect(),
            udp_listen,
            wireguard,
            steering,
            file: None,
            derp: one(raw, Key::Derp, value::on_off)?,
            tls: tls(raw)?,
            hostname,
            key_file: some(raw, Key::IdentityFile, path)?,
            satellite_key_file: some(raw, Key::SatelliteKeyFile, path)?,
            primary_urls: primary_urls(raw)?,
            primary_ca: some(raw, Key::PrimaryCa, path)?,
            access_url: some(raw, Key::AccessUrl, value::access_url)?,
            home: one(raw, Key::Home, value::home)?,
            bootstrap_dns: several(raw, Key::BootstrapDns, value::dns_name)?,
            queue,
            queued_bytes_max: queued_bytes_max(raw, &queue)?,
            tcp: tcp(raw)?,
            handshakes_max: one(raw, Key::HandshakesMax, value::number(1..=1 << 20))?,
            accept_rate: rate(raw, Key::AcceptRate, Key::AcceptBurst, 0)?,
            sessions_max: one(raw, Key::SessionsMax, value::number(1..=u64::from(u32::MAX)))?,
            stun_rate: rate(raw, Key::StunRatePerS, Key::StunBurst, 1)?
                .unwrap_or(proto::stun::RATE_DEFAULT),
            fast_path: fast_path(raw)?,
            log: one(raw, Key::Log, value::filter)?,
            log_format: one(raw, Key::LogFormat, value::log_format)?,
            listen_names: [Key::Listen, Key::HttpListen, udp_key].map(|key| {
                let setting = raw.find(key);
                setting.map_or_else(|| key.file_name(), |setting| setting.origin.name(key))
            }),
            warnings: Vec::new(),
        })
    }

    /// What clients call this relay: as the operator said, else the loopback address.
    #[must_use]
    pub fn name(&self) -> &HostName {
        self.hostname.as_ref().unwrap_or(&HostName::LOOPBACK)
    }
}

/// The peers and links that the file at `path` names now.
///
/// # Errors
/// When it cannot be read, is no such file, or is inconsistent.
pub(crate) fn reread(path: &Path) -> Result<Wireguard, OperatorFault> {
    wireguard(&Raw::from_file(path)?)
}

/// Where to listen instead of `address` on a host whose IPv6 is off: every IPv4 address, if
/// `address` stands for every address.
#[must_use]
pub fn ipv4_fallback(address: SocketAddr) -> Option<SocketAddr> {
    let every = address.is_ipv6() && address.ip().is_unspecified();
    every.then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// Every key of `raw` as a configuration file would have it, with its origin; of the two keys for
/// UDP the one in use.
pub(crate) fn effective(raw: &Raw) -> String {
    let mut text = String::new();
    let unused = match udp_key(raw) {
        Ok(Key::UdpListen) => Key::StunListen,
        Ok(_) | Err(_) => Key::UdpListen,
    };
    for key in Key::ALL.iter().filter(|key| **key != unused) {
        let (values, origin) = match raw.find(*key) {
            Some(setting) => (setting.values.clone(), setting.origin.to_string()),
            None => (vec![key.spec().default.to_owned()], "default".to_owned()),
        };
        let values: Vec<_> = values
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| format!("{value:?}"))
            .collect();
        let value = match key.spec().separator {
            None => values.first().cloned().unwrap_or_else(|| "\"\"".into()),
            Some(_) => format!("[{}]", values.join(", ")),
        };
        let _ = writeln!(text, "{} = {value}  # {origin}", key.file_name());
    }
    text
}

fn listen(raw: &Raw) -> Result<Vec<SocketAddr>, OperatorFault> {
    let listen = several(raw, Key::Listen, value::address)?;
    if listen.is_empty() {
        return Err(OperatorFault::config(
            "listen: names no address; write IP:PORT, [IPv6]:PORT or :PORT",
        ));
    }
    Ok(listen)
}

/// The key that says where STUN and WireGuard are served.
fn udp_key(raw: &Raw) -> Result<Key, OperatorFault> {
    match (raw.find(Key::UdpListen), raw.find(Key::StunListen)) {
        (None, _) => Ok(Key::StunListen),
        (Some(udp), _) if udp.values.is_empty() => Ok(Key::StunListen),
        (Some(_), None) => Ok(Key::UdpListen),
        (Some(udp), Some(_)) => Err(OperatorFault::new(
            udp.origin.code(),
            format_args!(
                "{}: stun_listen is set too; leave one of them out",
                udp.origin.name(Key::UdpListen)
            ),
        )),
    }
}

fn wireguard(raw: &Raw) -> Result<Wireguard, OperatorFault> {
    raw.wireguard().map_or_else(
        || Ok(Wireguard::default()),
        |(path, table)| Wireguard::from_table(path, table),
    )
}

/// Where to report, which takes a key to sign with.
fn primary_urls(raw: &Raw) -> Result<Vec<Url>, OperatorFault> {
    let urls = several(raw, Key::PrimaryUrl, value::primary_url)?;
    let has_key = texts(raw, Key::SatelliteKeyFile).last().is_some_and(|text| !text.is_empty());
    match texts(raw, Key::PrimaryUrl).last() {
        Some(text) if !urls.is_empty() && !has_key => {
            let refusal = "takes signed requests alone; name a satellite_key_file, too";
            Err(refuse(raw, Key::PrimaryUrl, text, refusal))
        }
        Some(_) | None => Ok(urls),
    }
}

fn fast_path(raw: &Raw) -> Result<Wish, OperatorFault> {
    let mode = one(raw, Key::Xdp, value::xdp)?;
    let mut interfaces = several(raw, Key::XdpInterface, value::interface)?;
    let mut seen = HashSet::new();
    interfaces.retain(|name| seen.insert(name.clone()));
    let max = wire::maps::EXITS_MAX as usize;
    if interfaces.len() > max {
        return Err(OperatorFault::config(format_args!(
            "xdp_interface: names more than {max} interfaces; leave some out"
        )));
    }
    if interfaces.is_empty() && !matches!(mode, None | Some(xdp::Wanted::Auto)) {
        let text = texts(raw, Key::Xdp).last().map_or("", |text| *text);
        let refusal = "needs an interface that packets come in by; name one with xdp_interface";
        return Err(refuse(raw, Key::Xdp, text, refusal));
    }
    Ok(Wish { mode, interfaces, pins: some(raw, Key::XdpPin, path)? })
}

/// Where certificates come from. Of settings that exclude each other, the one of the higher origin
/// wins; of one origin, they are a conflict.
fn tls(raw: &Raw) -> Result<Option<certs::Source>, OperatorFault> {
    let rank =
        |key, set: bool| raw.find(key).filter(|_| set).map_or(0, |setting| setting.origin.rank());
    let files = several(raw, Key::Cert, value::cert)?;
    let directory = some(raw, Key::CertDir, path)?;
    let on = one(raw, Key::Tls, value::on_off)?;
    let (by_files, by_directory) =
        (rank(Key::Cert, !files.is_empty()), rank(Key::CertDir, directory.is_some()));
    let (off, certified) = (rank(Key::Tls, !on), by_files.max(by_directory));
    if off > certified {
        return Ok(None);
    }
    if off > 0 && off == certified {
        return Err(OperatorFault::config(
            "tls: is off, but certificates are set; leave out cert and cert_dir, or turn tls on",
        ));
    }
    if by_files > 0 && by_files == by_directory {
        return Err(OperatorFault::config("cert_dir: cert is set too; leave one of them out"));
    }
    Ok(Some(match directory {
        Some(directory) if by_directory > by_files => certs::Source::Directory(directory),
        Some(_) | None if by_files > 0 => certs::Source::Files(files),
        Some(_) | None => certs::Source::SelfSigned,
    }))
}

/// The bound of all queues together, which must hold a single one.
fn queued_bytes_max(raw: &Raw, queue: &Limits) -> Result<usize, OperatorFault> {
    let min = queue.queue_bytes_max;
    let number = value::number::<usize>(QUEUE_BYTES_MIN..=u64::MAX);
    one(raw, Key::QueuedBytesMax, |text| match number(text)? {
        bytes if bytes < min => Err(format!(
            "is below queue_bytes_max; write {min} or more, or set queue_bytes_max lower, too"
        )),
        bytes => Ok(bytes),
    })
}

fn tcp(raw: &Raw) -> Result<TcpLimits, OperatorFault> {
    let time_ms = |key| {
        let ms: u64 = one(raw, key, value::number(0..=TIME_S_MAX * 1000))?;
        Ok::<_, OperatorFault>((ms > 0).then(|| Duration::from_millis(ms)))
    };
    let keepalive_s: u64 = one(raw, Key::TcpKeepaliveS, value::number(0..=TCP_KEEPALIVE_S_MAX))?;
    Ok(TcpLimits {
        write_timeout: time_ms(Key::WriteTimeoutMs)?,
        user_timeout: time_ms(Key::TcpUserTimeoutMs)?,
        keepalive: (keepalive_s > 0).then(|| Duration::from_secs(keepalive_s)),
        notsent_lowat_bytes: one(raw, Key::NotsentLowatBytes, value::number(4096..=1 << 30))?,
    })
}

/// A rate, or `None` where it is 0 and `per_second_min` allows that.
fn rate(
    raw: &Raw,
    per_second: Key,
    burst: Key,
    per_second_min: u64,
) -> Result<Option<Rate>, OperatorFault> {
    let per_second = one(raw, per_second, value::number(per_second_min..=u64::from(u32::MAX)))?;
    let burst = one(raw, burst, value::number(1..=u64::from(u32::MAX)))?;
    Ok((per_second > 0).then_some(Rate { per_second, burst }))
}

#[allow(clippy::unnecessary_wraps, reason = "parsers share one shape")]
fn path(text: &str) -> Result<PathBuf, Refusal> {
    Ok(text.into())
}

/// The one value of `key`, or its default.
fn one<T>(
    raw: &Raw,
    key: Key,
    parse: impl Fn(&str) -> Result<T, Refusal>,
) -> Result<T, OperatorFault> {
    let values = texts(raw, key);
    let text = values.last().map_or("", |text| *text);
    parse(text).map_err(|refusal| refuse(raw, key, text, &refusal))
}

/// The one value of `key`, or `None` where it is empty.
fn some<T>(
    raw: &Raw,
    key: Key,
    parse: impl Fn(&str) -> Result<T, Refusal>,
) -> Result<Option<T>, OperatorFault> {
    one(raw, key, |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
}

/// Every value of `key`.
fn several<T>(
    raw: &Raw,
    key: Key,
    parse: impl Fn(&str) -> Result<T, Refusal>,
) -> Result<Vec<T>, OperatorFault> {
    let texts = texts(raw, key).into_iter().filter(|text| !text.is_empty());
    texts.map(|text| parse(text).map_err(|refusal| refuse(raw, key, text, &refusal))).collect()
}

fn texts(raw: &Raw, key: Key) -> Vec<&str> {
    match raw.find(key) {
        Some(setting) => setting.values.iter().map(String::as_str).collect(),
        None => vec![key.spec().default],
    }
}

fn refuse(raw: &Raw, key: Key, text: &str, refusal: &str) -> OperatorFault {
    match raw.find(key).map(|setting| &setting.origin) {
        Some(origin) => OperatorFault::new(
            origin.code(),
            format_args!("{}: {text:?} {refusal}", origin.name(key)),
        ),
        // Defaults are tested to be good; this names the one that is not.
        None => OperatorFault::config(format_args!(
            "default of {}: {text:?} {refusal}",
            key.file_name()
        )),
    }
}

#[cfg(test)]
mod tests;
