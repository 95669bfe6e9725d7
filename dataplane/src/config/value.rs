//! From text to values. An error is the rest of a sentence that begins with the text.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use reqwest::Url;

use super::{Cores, Home, LogFormat};
use crate::certs::{CertFiles, HostName};
use crate::io::probe::Wanted;
use crate::satellite::report::alive_url;

/// Why a text is not a value, and what to write instead.
pub(super) type Refusal = String;

/// CPU numbers that the kernel's affinity masks can hold.
const CPUS_MAX: usize = 1024;

pub(super) fn cores(text: &str) -> Result<Cores, Refusal> {
    let refusal =
        || "is not a set of cores; write auto, a number, or a list such as 2-9,12".to_owned();
    if text == "auto" {
        return Ok(Cores::Auto);
    }
    if let Ok(count) = text.parse::<usize>() {
        return if (1..=CPUS_MAX).contains(&count) {
            Ok(Cores::Count(count))
        } else {
            Err(refusal())
        };
    }
    let mut cpus = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(refusal());
        };
        if first > last || last >= CPUS_MAX {
            return Err(refusal());
        }
        cpus.extend(first..=last);
    }
    if cpus.is_empty() { Err(refusal()) } else { Ok(Cores::List(cpus.into_iter().collect())) }
}

pub(super) fn io(text: &str) -> Result<Wanted, Refusal> {
    match text {
        "auto" => Ok(Wanted::Auto),
        "uring" => Ok(Wanted::Uring),
        "epoll" => Ok(Wanted::Epoll),
        _ => Err("is no way of input and output; write auto, uring or epoll".into()),
    }
}

/// How to attach XDP programs; `None` for not at all.
pub(super) fn xdp(text: &str) -> Result<Option<crate::xdp::Wanted>, Refusal> {
    match text {
        "auto" => Ok(Some(crate::xdp::Wanted::Auto)),
        "native" => Ok(Some(crate::xdp::Wanted::Native)),
        "generic" => Ok(Some(crate::xdp::Wanted::Generic)),
        "tcx" => Ok(Some(crate::xdp::Wanted::Tcx)),
        "off" => Ok(None),
        _ => Err("is no way of attaching; write auto, native, generic, tcx or off".into()),
    }
}

/// The name of a network interface, at most 15 bytes (`IFNAMSIZ` of Linux).
pub(super) fn interface(text: &str) -> Result<String, Refusal> {
    const NAME_LEN_MAX: usize = 15;
    let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if text.len() > NAME_LEN_MAX || text.contains(odd) || matches!(text, "." | "..") {
        return Err("is no name of an interface; write one that `ip link` shows".into());
    }
    Ok(text.to_owned())
}

pub(super) fn on_off(text: &str) -> Result<bool, Refusal> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("is neither on nor off; write one of them".into()),
    }
}

/// `IP:PORT`, `[IPv6]:PORT` or `:PORT`, the latter on every address of both families.
pub(crate) fn address(text: &str) -> Result<SocketAddr, Refusal> {
    let refusal =
        || "is not an address to listen on; write IP:PORT, [IPv6]:PORT or :PORT".to_owned();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(refusal)?;
    let port = match port {
        "https" => 443,
        "http" => 80,
        port => port.parse().map_err(|_| refusal())?,
    };
    match host {
        "" => Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        "localhost" => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        host => {
            let bare =
                host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            bare.parse().map(|ip| SocketAddr::new(ip, port)).map_err(|_| refusal())
        }
    }
}

/// An address, or `None` for `off`.
pub(super) fn address_or_off(text: &str) -> Result<Option<SocketAddr>, Refusal> {
    if text == "off" {
        Ok(None)
    } else {
        address(text).map(Some).map_err(|refusal| format!("{refusal}, or off"))
    }
}

pub(super) fn hostname(text: &str) -> Result<HostName, Refusal> {
    text.parse().map_err(|fault| {
        format!("{fault}; write the name or address that clients dial, without port")
    })
}

pub(super) fn dns_name(text: &str) -> Result<String, Refusal> {
    match text.parse() {
        Ok(HostName::Dns(name)) => Ok(name.as_ref().to_owned()),
        Ok(HostName::Ip(_)) | Err(_) => Err("is not a DNS name; write names to resolve".into()),
    }
}

pub(super) fn cert(text: &str) -> Result<CertFiles, Refusal> {
    match text.split_once(',') {
        Some((certificate, key))
            if !certificate.is_empty() && !key.is_empty() && !key.contains(',') =>
        {
            Ok(CertFiles { cert_file: certificate.trim().into(), key_file: key.trim().into() })
        }
        Some(_) | None => Err("is not a certificate and its key; write CERT.pem,KEY.pem".into()),
    }
}

pub(super) fn home(text: &str) -> Result<Home, Refusal> {
    match text {
        "" => Ok(Home::Page),
        "blank" => Ok(Home::Blank),
        url if (url.starts_with("http://") || url.starts_with("https://"))
            && url.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(Home::Redirect(url.to_owned()))
        }
        _ => Err("is no home page; write blank, a URL, or nothing for ours".into()),
    }
}

/// Where control takes signs of life, from the address of its API.
pub(super) fn primary_url(text: &str) -> Result<Url, Refusal> {
    let url = http_url(text)?;
    match url.path() {
        "/" => Ok(alive_url(&url)),
        _ => Err("has a path; write https:// and a host".into()),
    }
}

pub(super) fn access_url(text: &str) -> Result<String, Refusal> {
    http_url(text).map(|url| url.as_str().trim_end_matches('/').to_owned())
}

/// A web address of nothing but scheme, host, port and path.
fn http_url(text: &str) -> Result<Url, Refusal> {
    let url = Url::parse(text).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme())
            && (url.has_host(), url.query(), url.fragment()) == (true, None, None)
            && (url.username(), url.password()) == ("", None)
    });
    url.ok_or_else(|| "is no web address; write https:// and a host".into())
}

pub(super) fn filter(text: &str) -> Result<String, Refusal> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            Err("is not a log filter; write a level such as info, or target=level pairs".into())
        }
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Refusal> {
    match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("is no log format; write human or json".into()),
    }
}

/// A whole number within `range`, in a type that holds all of it.
pub(super) fn number<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, Refusal> {
    move |text| {
        let refusal = || match *range.end() {
            u64::MAX => format!("is not a whole number from {} up; write one", range.start()),
            end => format!("is not a whole number from {} to {end}; write one", range.start()),
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(refusal)
    }
}
