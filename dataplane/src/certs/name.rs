//! Host names: what this relay is called, and which certificate answers for which name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use rustls::server::ParsedCertificate;

/// A DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostName {
    /// A DNS name, in lower case, without a final dot.
    Dns(DnsName<'static>),
    /// An address, never v4-mapped.
    Ip(IpAddr),
}

/// The text is neither a DNS name nor an IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither a DNS name nor an IP address")]
pub struct NotAHostName;

impl HostName {
    /// 127.0.0.1, the name of a relay that was given none.
    pub const LOOPBACK: Self = Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// The address, if the name is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Dns(_) => None,
            Self::Ip(address) => Some(*address),
        }
    }

    fn server_name(&self) -> ServerName<'_> {
        match self {
            Self::Dns(name) => ServerName::DnsName(name.borrow()),
            Self::Ip(address) => ServerName::IpAddress((*address).into()),
        }
    }
}

impl FromStr for HostName {
    type Err = NotAHostName;

    fn from_str(text: &str) -> Result<Self, NotAHostName> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // A last label of digits is a mistyped address, never a name (RFC 3696 section 2).
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAHostName);
        }
        DnsName::try_from(name).map(Self::Dns).map_err(|_| NotAHostName)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name.as_ref()),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Whether `certificate` is for `hostname`, by the rules that clients apply.
pub(super) fn is_for(certificate: &CertificateDer<'_>, hostname: &HostName) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &hostname.server_name()).is_ok())
}

/// Whether a name of a certificate, perhaps with a first label `*`, stands for `name`.
///
/// A wildcard stands for exactly one label (RFC 6125 section 6.4.3). Case does not matter.
pub(super) fn stands_for(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => {
            name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent))
        }
        None => pattern.eq_ignore_ascii_case(name),
    }
}
