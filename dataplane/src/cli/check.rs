//! `dataplane check`: everything a start would refuse, short of binding and of writing files.

use std::fmt::Write;
use std::time::SystemTime;

use crate::certs::Source;
use crate::config::Checked;
use crate::fault::OperatorFault;
use crate::identity::Identity;
use crate::launch;
use crate::offload;

/// Loads what `checked` names and says what a start would use, below `effective`.
///
/// Files that a start would make are not made.
///
/// # Errors
/// When a start would end for want of a CPU, of io_uring or of XDP, at a certificate or at the key
/// file.
pub fn report(
    checked: &Checked,
    effective: &str,
    now: SystemTime,
) -> Result<String, OperatorFault> {
    let mut text = effective.to_owned();
    let mut say = |what: &str, says: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# {what}: {says}");
    };
    launch::own_sessions(checked)?;
    let (cpus, choice) = launch::place(checked)?;
    say("cpus", &format!("{cpus:?}"));
    say("io", &format!("{}: {}", choice.driver, choice.why));
    say("xdp", &offload::examine(&checked.fast_path)?);
    for link in &checked.wireguard.links {
        say("wireguard link", &checked.wireguard.link_name(link));
    }
    let peers = checked.wireguard.peers.len();
    if peers > 0 {
        say("wireguard", &format!("{peers} peers, {} links", checked.wireguard.links.len()));
    }
    match &checked.key_file {
        None => say("identity", "a new one at each start"),
        Some(path) if !path.exists() => {
            say("identity", &format!("would be made in {}", path.display()))
        }
        Some(path) => say("identity", &Identity::load_or_create(path)?.public().to_string()),
    }
    match &checked.tls {
        None => say("tls", "off, everything is served in clear text"),
        Some(Source::SelfSigned) => say("certificate", "self-signed, a new one at each start"),
        Some(source @ Source::Directory(directory))
            if source.would_make(checked.hostname.as_ref()) =>
        {
            say("certificate", &format!("self-signed, would be made in {}", directory.display()));
        }
        Some(source) => {
            for certificate in source.load(checked.hostname.as_ref(), now)? {
                say("certificate", &certificate.names().join(", "));
            }
        }
    }
    Ok(text)
}
