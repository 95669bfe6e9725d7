//! The commands by which relays are steered: draining nodes, the policy, certificates.

use std::path::Path;

use super::client::Client;
use super::commands::create;
use super::output::{Output, say};
use super::{CertificateArgs, Limit, PolicyArgs, PolicyCommand};
use crate::clock::{self, Stamp};
use crate::fault::{ExitCode, OperatorFault};
use crate::file::{TEXT_BYTES_MAX, read_text};
use crate::resource::{Certificate, KeyPem, Node, POLICY, Policy, Resource, Row};
use crate::serve::DataplaneListing;
use crate::steering::{Dataplane, DataplaneState};

/// Sets whether a node drains.
pub(super) async fn drain(
    name: &str,
    drain: bool,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let mut row: Row<Node> = client.get(&[Node::PLURAL, name], &[]).await?;
    let word = if drain { "drains" } else { "takes sessions" };
    if row.resource.drain == drain {
        return output.show(&row, &format!("node {name} {word} already"));
    }
    row.resource.drain = drain;
    let path = [Node::PLURAL, &row.id];
    let row: Row<Node> = client.put(&path, &[], Some(row.revision), &row.resource).await?;
    output.show(&row, &format!("node {name} {word}"))
}

/// Shows the policy, or changes it.
pub(super) async fn policy(
    command: PolicyCommand,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let found = match client.get::<Row<Policy>>(&[Policy::PLURAL, POLICY], &[]).await {
        Ok(row) => Some(row),
        Err(fault) if fault.code() == ExitCode::NotFound => None,
        Err(fault) => return Err(fault),
    };
    let mut policy = found.as_ref().map(|row| row.resource.clone()).unwrap_or_default();
    let args = match command {
        PolicyCommand::Show => return show_policy(&policy, output),
        PolicyCommand::Set(args) => args,
    };
    change(&mut policy, args);
    let row: Row<Policy> = match found {
        Some(old) => {
            client.put(&[Policy::PLURAL, &old.id], &[], Some(old.revision), &policy).await?
        }
        None => client.post(&[Policy::PLURAL], &policy).await?,
    };
    show_policy(&row.resource, output)
}

fn change(policy: &mut Policy, args: PolicyArgs) {
    fn set<T>(limit: &mut Option<T>, wanted: Option<Limit<T>>) {
        if let Some(Limit(wanted)) = wanted {
            *limit = wanted;
        }
    }
    policy.admission = args.admission.unwrap_or(policy.admission);
    let sessions = &mut policy.sessions;
    set(&mut sessions.queue_bytes_max, args.queue_bytes_max);
    set(&mut sessions.queue_packets_max, args.queue_packets_max);
    set(&mut sessions.queued_bytes_max, args.queued_bytes_max);
    set(&mut sessions.write_timeout_ms, args.write_timeout_ms);
    set(&mut sessions.keepalive_ms, args.keepalive_ms);
    set(&mut sessions.keepalive_jitter_ms, args.keepalive_jitter_ms);
}

fn show_policy(policy: &Policy, output: &Output) -> Result<(), OperatorFault> {
    let limit = |number: Option<u64>| number.map_or("none".to_owned(), |number| number.to_string());
    let sessions = &policy.sessions;
    let rows = [
        ("admission", format!("{:?}", policy.admission).to_ascii_lowercase()),
        ("queue_bytes_max", limit(sessions.queue_bytes_max)),
        ("queue_packets_max", limit(sessions.queue_packets_max.map(u64::from))),
        ("queued_bytes_max", limit(sessions.queued_bytes_max)),
        ("write_timeout_ms", limit(sessions.write_timeout_ms)),
        ("keepalive_ms", limit(sessions.keepalive_ms)),
        ("keepalive_jitter_ms", limit(sessions.keepalive_jitter_ms)),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
    output.table(policy, &["SETTING", "VALUE"], &rows)
}

/// Registers a certificate.
pub(super) async fn create_certificate(
    args: CertificateArgs,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let mut certificate = read(args)?;
    warn_if_past(&mut certificate);
    create(certificate, client, output).await
}

/// Puts another chain and key in the place of a certificate's.
pub(super) async fn replace_certificate(
    args: CertificateArgs,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let mut certificate = read(args)?;
    warn_if_past(&mut certificate);
    let path = [Certificate::PLURAL, certificate.name.as_str()];
    let row: Row<Certificate> = client.put(&path, &[], None, &certificate).await?;
    output.show(&row, &format!("replaced certificate {}", row.resource.name))
}

fn read(args: CertificateArgs) -> Result<Certificate, OperatorFault> {
    let text = |path: &Path, flag: &str| {
        read_text(path, TEXT_BYTES_MAX).map_err(|error| {
            OperatorFault::file(path, &error, format_args!("{flag} must name a readable PEM file"))
        })
    };
    let chain = text(&args.chain, "--chain")?;
    let key = KeyPem::new(text(&args.key, "--key")?);
    Ok(Certificate { name: args.name, chain, key, ..Certificate::default() })
}

/// Says so when a certificate has ended; control takes it all the same. What is no certificate is
/// left for control to refuse.
fn warn_if_past(certificate: &mut Certificate) {
    if certificate.check().is_ok()
        && let Some(end) = certificate.expires_at.filter(|end| is_past(*end))
    {
        say(&format!("control: this certificate ended on {end}; clients will refuse it"));
    }
}

/// Whether a time has come.
pub(super) fn is_past(end: Stamp) -> bool {
    end.0 <= clock::now()
}

/// Lists who is connected.
pub(super) async fn dataplanes(client: &Client, output: &Output) -> Result<(), OperatorFault> {
    let listing: DataplaneListing = client.get(&["dataplanes"], &[]).await?;
    let cells = |dataplane: &Dataplane| {
        let state = match (dataplane.state, &dataplane.refusal) {
            (DataplaneState::Current, _) if dataplane.draining => "drains".to_owned(),
            (DataplaneState::Current, _) => "current".to_owned(),
            (DataplaneState::Behind, _) => "behind".to_owned(),
            (DataplaneState::Refused, why) => {
                format!("refused: {}", why.as_deref().unwrap_or_default())
            }
        };
        vec![
            dataplane.node.clone(),
            dataplane.from.clone(),
            dataplane.version.clone(),
            dataplane.since.to_string(),
            dataplane.sessions.to_string(),
            dataplane.revision.to_string(),
            listing.revision.0.saturating_sub(dataplane.revision.0).max(0).to_string(),
            state,
        ]
    };
    let rows: Vec<_> = listing.items.iter().map(cells).collect();
    let headings = ["NODE", "FROM", "VERSION", "SINCE", "SESSIONS", "REVISION", "LAG", "STATE"];
    output.table(&listing, &headings, &rows)
}
