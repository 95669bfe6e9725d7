//! The bare handshake loop: accept, handshake, wait for the client to close, close.
//!
//! Blocking and one connection at a time, with the certificate kind and the key exchange that every compared
//! server uses and no session tickets. Started by the runner as `limit tls-accept`.

use crate::tls;
use anyhow::Result;
use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

pub(super) fn run(listener: &TcpListener) -> Result<()> {
    let config = tls::server_config()?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        if tls::accept(&config, &mut stream).is_ok() {
            // The client says no more; its close is all there is to read.
            let _ = stream.read(&mut [0; 64]);
        }
    }
}
