//! A relay that is ready for clients, on loopback and on ports of the kernel's choice.
//!
//! Owns the way from a `dataplane` process to its addresses, key and pin, which it takes from the
//! log as an operator would. The integration tests call it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use wire::key::Key;

use crate::metrics::Metrics;
use crate::process::{PATIENCE, Process, program};

/// What the relay says of itself when it is ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its public key.
    pub key: Key,
    /// Where it serves DERP.
    pub derp: Vec<SocketAddr>,
    /// Where it serves plain HTTP.
    pub http: Vec<SocketAddr>,
    /// Where it answers STUN.
    pub stun: Vec<SocketAddr>,
    /// The pin of its certificate; `None` without TLS, or with a chain.
    pub pin: Option<String>,
    /// What clients call it.
    pub hostname: String,
}

/// A ready relay.
#[derive(Debug)]
pub struct Relay {
    /// The process.
    pub process: Process,
    /// Where and who it is.
    pub ready: Ready,
}

/// Arguments for a relay on `cores` cores over `io` that takes every kind of traffic on loopback.
#[must_use]
pub fn loopback<'a>(io: &'a str, cores: &'a str) -> Vec<&'a str> {
    vec![
        "--io",
        io,
        "--cores",
        cores,
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--stun-listen",
        "127.0.0.1:0,[::1]:0",
        "--log-format",
        "json",
    ]
}

impl Relay {
    /// Starts `dataplane` with `args` and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn start(args: &[&str]) -> Self {
        Self::from_process(Process::start(args))
    }

    /// Waits until `process` is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn from_process(process: Process) -> Self {
        let mut ready = process.wait_for("ready line", read_ready);
        let node = process.wait_for("DERP map node or word of clear text", |line| {
            match line_message(line)?.split_once("DERP map node: ") {
                Some((_, node)) => Some(serde_json::from_str::<serde_json::Value>(node).ok()),
                None => line.contains("DERP is served in clear").then_some(None),
            }
        });
        if let Some(node) = node {
            ready.pin = node["CertName"].as_str().map(str::to_owned);
            node["HostName"].as_str().unwrap_or_default().clone_into(&mut ready.hostname);
        }
        Self { process, ready }
    }

    /// Its DERP address.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn derp(&self) -> SocketAddr {
        *self.ready.derp.first().expect("a relay listens for DERP")
    }

    /// The body of `path` on the plain port.
    ///
    /// # Panics
    /// When the page does not come.
    #[must_use]
    pub fn page(&self, path: &str) -> String {
        let answer = self.answer(path);
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        body.to_owned()
    }

    /// The answer to a request for `path` on the plain port, with its head.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn answer(&self, path: &str) -> String {
        let address = self.ready.http.first().expect("the relay has a plain port");
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let head =
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().expect("the plain port answers")
    }

    /// Its counters now.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.page("/metrics"))
    }
}

/// The words of a line of the log, in either of its formats.
fn line_message(line: &str) -> Option<String> {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(event) => event["fields"]["message"].as_str().map(str::to_owned),
        Err(_) => Some(line.to_owned()),
    }
}

fn read_ready(line: &str) -> Option<Ready> {
    if !line_message(line)?.contains("relay ready") {
        return None;
    }
    Some(Ready {
        key: Key::from_hex(&field(line, "key")?)?,
        derp: addresses(&field(line, "derp")?),
        http: addresses(&field(line, "http")?),
        stun: addresses(&field(line, "stun")?),
        pin: None,
        hostname: String::new(),
    })
}

/// A field of a line of the log; in the format for people it ends where the next `name=` begins.
#[must_use]
pub fn field(line: &str, name: &str) -> Option<String> {
    if let Ok(event) = serde_json::from_str::<serde_json::Value>(line) {
        return event["fields"][name].as_str().map(str::to_owned);
    }
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    let words = rest.split(' ').enumerate();
    let own = words.take_while(|(at, word)| *at == 0 || !word.contains('='));
    Some(own.map(|(_, word)| word).collect::<Vec<_>>().join(" "))
}

/// The addresses of a list such as `[127.0.0.1:80, [::1]:80]`. A wildcard stands for loopback.
fn addresses(list: &str) -> Vec<SocketAddr> {
    let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(list);
    let parsed = list.split(", ").filter_map(|address| address.parse::<SocketAddr>().ok());
    parsed
        .map(|address| match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
            // A wildcard of both families is dialled over the commoner one.
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => ([127, 0, 0, 1], v6.port()).into(),
            SocketAddr::V4(_) | SocketAddr::V6(_) => address,
        })
        .collect()
}

/// Why this machine cannot run a relay with these arguments, from `dataplane check`.
///
/// # Panics
/// When the program cannot be started.
pub fn refusal(args: &[&str]) -> Option<String> {
    let output = Command::new(program()).arg("check").args(args).output().expect("it starts");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_ready_line_of_both_formats() {
        let key = "0a".repeat(32);
        let human = format!(
            "2026-01-01T00:00:00Z  INFO relay ready key={key} derp=[127.0.0.1:1, [::1]:2] http=[] stun=[[::]:3]"
        );
        let fields = format!(
            r#""key":"{key}","derp":"[127.0.0.1:1, [::1]:2]","http":"[]","stun":"[[::]:3]""#
        );
        let json = format!(r#"{{"level":"INFO","fields":{{"message":"relay ready",{fields}}}}}"#);
        for line in [human, json] {
            let ready = read_ready(&line).expect("a ready line");
            assert_eq!(ready.key, Key([10; 32]));
            assert_eq!(
                ready.derp,
                [([127, 0, 0, 1], 1).into(), "[::1]:2".parse().expect("an address")]
            );
            assert!(ready.http.is_empty());
            assert_eq!(ready.stun, [([127, 0, 0, 1], 3).into()]);
        }
    }
}
