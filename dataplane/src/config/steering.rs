//! By whom this relay is steered: where control is, who we are there, what is kept for starts without it.
//!
//! Owns the way from the keys `steer*` to a [`Steering`]. It dials nobody and reads no file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::system::uname;
use steer::{NAME_BYTES_MAX, is_name};

use super::keys::Key;
use super::raw::Raw;
use super::value::Refusal;
use crate::certs::{CertFiles, HostName};
use crate::fault::OperatorFault;

/// By whom the relay is steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    /// Where control is, in the order to try; at least one.
    pub controls: Vec<Control>,
    /// The name under which control knows this relay.
    pub node: String,
    /// Where the last good snapshot is kept.
    pub state: Option<PathBuf>,
    /// What mutual TLS takes; present if a control is reached by it.
    pub tls: Option<TlsFiles>,
}

/// Where control is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// On this host, behind this socket.
    Unix(PathBuf),
    /// Behind mutual TLS.
    Tls {
        /// What its certificate is for.
        host: HostName,
        /// Its TCP port.
        port: u16,
    },
}

/// The files of mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate by which control knows this relay, and its key.
    pub own: CertFiles,
    /// PEM: who vouches for control's certificate.
    pub ca_file: PathBuf,
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port } if host.ip().is_some_and(|ip| ip.is_ipv6()) => {
                write!(f, "tls://[{host}]:{port}")
            }
            Self::Tls { host, port } => write!(f, "tls://{host}:{port}"),
        }
    }
}

impl FromStr for Control {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refusal = || "is no place of control; write unix:PATH or tls://HOST:PORT".to_owned();
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("tls://").and_then(|place| place.rsplit_once(':'));
        let (host, port) = place.ok_or_else(refusal)?;
        match (host.parse(), port.parse()) {
            (Ok(host), Ok(port)) if port > 0 => Ok(Self::Tls { host, port }),
            _ => Err(refusal()),
        }
    }
}

impl Steering {
    /// What the keys of `raw` say; `None` without a place of control.
    pub(super) fn from_raw(raw: &Raw) -> Result<Option<Self>, OperatorFault> {
        let controls = super::several(raw, Key::Steer, Control::from_str)?;
        if controls.is_empty() {
            return Ok(None);
        }
        if let Some((path, _)) = raw.wireguard() {
            return Err(OperatorFault::config(format_args!(
                "{}: wireguard: steer is set, and control names peers and links; leave one of them out",
                path.display()
            )));
        }
        let by_tls = controls.iter().any(|control| matches!(control, Control::Tls { .. }));
        Ok(Some(Self {
            node: node(raw)?,
            state: super::some(raw, Key::SteerState, super::path)?,
            tls: if by_tls { Some(tls(raw)?) } else { None },
            controls,
        }))
    }
}

fn node(raw: &Raw) -> Result<String, OperatorFault> {
    let checked = |text: &str| match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "is not a node's name; write up to {NAME_BYTES_MAX} letters, digits, dots, hyphens and underscores"
        )),
    };
    if let Some(node) = super::some(raw, Key::SteerNode, checked)? {
        return Ok(node);
    }
    let host = uname().nodename().to_string_lossy().into_owned();
    checked(&host).map_err(|refusal| {
        OperatorFault::config(format_args!("steer_node: the host's name, {host:?}, {refusal}"))
    })
}

fn tls(raw: &Raw) -> Result<TlsFiles, OperatorFault> {
    let file = |key| {
        super::some(raw, key, super::path)?.ok_or_else(|| {
            OperatorFault::config(format_args!(
                "{}: is missing, and steer names tls://; name a PEM file",
                Key::file_name(key)
            ))
        })
    };
    Ok(TlsFiles {
        own: CertFiles { cert_file: file(Key::SteerCert)?, key_file: file(Key::SteerKeyFile)? },
        ca_file: file(Key::SteerCa)?,
    })
}
