//! What the commands do: one request or a few, and how the answer is shown.

use std::path::Path;

use serde_json::{Value, json};

use super::client::Client;
use super::output::{Output, confirm, print, say};
use super::progress::{Progress, during};
use super::satellite::fetch_key;
use super::{
    CertificateCommand, ClientArgs, Command, Crud, DataplaneCommand, LinkArgs, MapCommand,
    NodeArgs, NodeCommand, PeerArgs, RegionArgs, RemoveArgs, SatelliteCommand, TokenArgs, relays,
};
use super::{netcheck, ping, shell, top, visited};
use crate::clock::{self, Stamp};
use crate::config::{DATABASE, STATE_DIR};
use crate::derp_map::{DerpMap, differences, load, merge};
use crate::fault::{ExitCode, OperatorFault};
use crate::resource::{
    Certificate, Client as Admitted, Link, Node, Peer, Region, Resource, Row, Satellite, Scope,
    Token, check_name,
};
use crate::serve::{AuditListing, MapState, NewToken, Published, Reloaded};
use crate::store::{Kind, StoreFault};

/// What is shown while a satellite is asked.
const ASKING: &str = "asking the satellite for its key";

/// Carries out every command but `serve`.
pub(super) async fn carry_out(
    command: Command,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    match command {
        Command::Serve(_) => Err(OperatorFault::usage("serve is none of these")),
        Command::Satellites(command) => satellites(command, client, output).await,
        Command::Regions(command) => crud(command, client, output).await,
        Command::Nodes(command) => nodes(command, client, output).await,
        Command::Peers(command) => crud(command, client, output).await,
        Command::Links(command) => crud(command, client, output).await,
        Command::Clients(command) => crud(command, client, output).await,
        Command::Policy(command) => relays::policy(command, client, output).await,
        Command::Certificates(CertificateCommand::Create(args)) => {
            relays::create_certificate(args, client, output).await
        }
        Command::Certificates(CertificateCommand::Replace(args)) => {
            relays::replace_certificate(args, client, output).await
        }
        Command::Certificates(CertificateCommand::Ls) => list::<Certificate>(client, output).await,
        Command::Certificates(CertificateCommand::Rm(args)) => {
            remove::<Certificate>(&args, client, output).await
        }
        Command::Dataplanes(DataplaneCommand::Ls) => relays::dataplanes(client, output).await,
        Command::Tokens(Crud::Create(args)) => create_token(args, client, output).await,
        Command::Tokens(Crud::Ls) => list::<Token>(client, output).await,
        Command::Tokens(Crud::Rm(args)) => remove::<Token>(&args, client, output).await,
        Command::Derpmap(command) => derp_map(command, client, output).await,
        Command::Netcheck { map } => netcheck::run(map.as_deref(), client, output).await,
        Command::Ping { target, count, map } => {
            ping::run(&target, count, map.as_deref(), client, output).await
        }
        Command::Audit { limit } => audit(limit, client, output).await,
        Command::Backup { file, state_dir } => {
            let database = std::env::var_os(DATABASE.variable());
            if state_dir.is_none() && database.is_some_and(|url| !url.is_empty()) {
                return Err(OperatorFault::usage(format_args!(
                    "{} names a PostgreSQL database; copy that with pg_dump --schema=perigee, or \
                     a SQLite file with --state-dir",
                    DATABASE.variable()
                )));
            }
            let variable = std::env::var_os(STATE_DIR.variable()).filter(|name| !name.is_empty());
            let folder = state_dir.or_else(|| variable.map(Into::into));
            let folder = folder.unwrap_or_else(|| STATE_DIR.default.into());
            let progress = Progress::start("copying the database", output);
            crate::store::sqlite::backup(&folder, &file)?;
            drop(progress);
            let text = format!("copied to {}", file.display());
            output.show(&json!({"file": file}), &text)
        }
        Command::Top { address } => top::run(&address, output).await,
        Command::Reload => {
            let answer: Reloaded = client.post(&["reload"], &json!({})).await?;
            output.show(&answer, "files read again, URLs asked")?;
            reloaded(&answer)
        }
        Command::Openapi => print(&crate::serve::openapi::document()),
        Command::Completions { shell } => print(&shell::completions(shell)?),
        Command::Man { folder } => {
            let pages = shell::write_man_pages(&folder)?;
            let text = format!("{pages} pages written to {}", folder.display());
            output.show(&json!({"pages": pages}), &text)
        }
    }
}

/// Says what is not as it should be after a reload, which is exit code 1.
fn reloaded(answer: &Reloaded) -> Result<(), OperatorFault> {
    for why in answer.silent.iter().chain(&answer.fault) {
        say(&format!("control: {why}"));
    }
    match (&answer.fault, answer.silent.len()) {
        (Some(_), _) => Err(OperatorFault::failed("the DERP map in service stays as it was")),
        (None, 0) => Ok(()),
        (None, 1) => Err(OperatorFault::failed("one URL gave no DERP map; its last one stays")),
        (None, many) => Err(OperatorFault::failed(format!(
            "{many} URLs gave no DERP map; their last ones stay"
        ))),
    }
}

/// How a kind looks in a table, and how its arguments become one.
pub(super) trait Shown: Resource {
    const HEADINGS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

/// Arguments of a `create` that are all there is to say.
trait Made: clap::Args {
    type Resource: Resource;
    fn make(self) -> Self::Resource;
}

async fn crud<A: Made<Resource: Shown>>(
    command: Crud<A>,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    match command {
        Crud::Create(args) => create(args.make(), client, output).await,
        Crud::Ls => list::<A::Resource>(client, output).await,
        Crud::Rm(args) => remove::<A::Resource>(&args, client, output).await,
    }
}

async fn nodes(
    command: NodeCommand,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    match command {
        NodeCommand::Crud(Crud::Create(args)) => create(args.make(), client, output).await,
        NodeCommand::Crud(Crud::Ls) => visited::list::<Node>(client, output).await,
        NodeCommand::Crud(Crud::Rm(args)) => remove::<Node>(&args, client, output).await,
        NodeCommand::Drain { name } => relays::drain(&name, true, client, output).await,
        NodeCommand::Undrain { name } => relays::drain(&name, false, client, output).await,
    }
}

pub(super) async fn create<R: Resource>(
    resource: R,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let row: Row<R> = client.post(&[R::PLURAL], &resource).await?;
    let text = format!("created {} {}", R::KIND.word(), row.resource.name());
    output.show(&row, &text)?;
    say_map_fault(R::KIND, client).await;
    Ok(())
}

/// Says, after a change of `kind`, if the DERP map does not show it: it was taken, but sources that
/// contradict each other stand in its way.
async fn say_map_fault(kind: Kind, client: &Client) {
    if matches!(kind, Kind::Region | Kind::Node)
        && let Some(why) = client.map_fault().await
    {
        say(&format!("control: the DERP map in service stays as it was: {why}"));
    }
}

async fn list<R: Shown>(client: &Client, output: &Output) -> Result<(), OperatorFault> {
    let listing = client.all::<R>().await?;
    let cells: Vec<_> = listing.items.iter().map(|row| row.resource.cells()).collect();
    output.table(&listing, R::HEADINGS, &cells)
}

async fn remove<R: Resource>(
    args: &RemoveArgs,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let row: Row<R> = client.get(&[R::PLURAL, &args.name], &[]).await?;
    let name = row.resource.name();
    let word = R::KIND.word();
    if !args.yes {
        confirm(&format!("Remove {word} {name}?"))?;
    }
    client.delete(&[R::PLURAL, &row.id]).await?;
    output.show(&json!({"removed": row}), &format!("removed {word} {name}"))?;
    say_map_fault(R::KIND, client).await;
    Ok(())
}

async fn satellites(
    command: SatelliteCommand,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let (name, access_url, yes, ca) = match command {
        SatelliteCommand::Create { name, access_url, yes, ca } => (name, access_url, yes, ca),
        SatelliteCommand::Rotate { name, yes, ca } => {
            return rotate(&name, yes, ca.as_deref(), client, output).await;
        }
        SatelliteCommand::Ls => return visited::list::<Satellite>(client, output).await,
        SatelliteCommand::Rm(args) => return remove::<Satellite>(&args, client, output).await,
    };
    let access_url = crate::resource::access_url("ACCESS_URL", &access_url)
        .map_err(|fault| OperatorFault::usage(fault.to_string()))?;
    refuse_name(&name, client).await?;
    let key = during(ASKING, output, fetch_key(&access_url, ca.as_deref())).await?;
    say(&format!(
        "Name:        {name}\nURL:         {access_url}\nPublic key:  {}\nFingerprint: {}",
        key.public_key, key.fingerprint
    ));
    if !yes {
        confirm("Is this the satellite's key? Register it?")?;
    }
    let satellite =
        Satellite { name, access_url, public_key: key.public_key, ..Satellite::default() };
    create(satellite, client, output).await
}

/// Refuses a name that control would, before anybody is asked anything.
async fn refuse_name(name: &str, client: &Client) -> Result<(), OperatorFault> {
    check_name("NAME", name).map_err(|fault| OperatorFault::usage(fault.to_string()))?;
    match client.get::<Row<Satellite>>(&[Satellite::PLURAL, name], &[]).await {
        // The word may be another's id.
        Ok(row) if row.resource.name == name => {
            let taken = StoreFault::Taken { kind: Satellite::KIND, word: name.to_owned() };
            Err(OperatorFault::new(ExitCode::Refused, taken))
        }
        Ok(_) => Ok(()),
        Err(fault) if fault.code() == ExitCode::NotFound => Ok(()),
        Err(fault) => Err(fault),
    }
}

async fn rotate(
    name: &str,
    yes: bool,
    ca: Option<&Path>,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let row: Row<Satellite> = client.get(&[Satellite::PLURAL, name], &[]).await?;
    let Satellite { name, access_url, fingerprint, .. } = row.resource.clone();
    if access_url.is_empty() {
        let why = format!("satellite {name}: nobody has said where it is reached");
        return Err(OperatorFault::failed(format!("{why}; remove it and create it anew")));
    }
    let key = during(ASKING, output, fetch_key(&access_url, ca)).await?;
    if key.fingerprint == fingerprint {
        let fix = "run dataplane satellite rotate there and have it reload";
        let why = format!("satellite {name}: its key is {fingerprint}, as registered");
        return Err(OperatorFault::failed(format!("{why}; {fix}")));
    }
    say(&format!(
        "Name:            {name}\nURL:             {access_url}\nOld fingerprint: {fingerprint}\n\
         New public key:  {}\nNew fingerprint: {}",
        key.public_key, key.fingerprint
    ));
    if !yes {
        confirm("Is this the satellite's new key? Have it count?")?;
    }
    let satellite = Satellite { public_key: key.public_key, ..row.resource };
    // What was shown is what is replaced: a change in between is refused.
    let path = [Satellite::PLURAL, &row.id];
    let new: Row<Satellite> = client.put(&path, &[], Some(row.revision), &satellite).await?;
    let until = new
        .resource
        .old_key
        .as_ref()
        .map_or_else(String::new, |old| format!("; the old key counts until {}", old.until));
    output.show(&new, &format!("satellite {name} has a new key{until}"))
}

async fn create_token(
    args: TokenArgs,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let expires_at = args.expires.map(|seconds| Stamp(clock::now() + seconds));
    let token = Token { name: args.name, scopes: args.scopes, expires_at, ..Token::default() };
    let made: NewToken = client.post(&[Token::PLURAL], &token).await?;
    say(&format!("created token {}; this is shown once:", made.row.resource.name));
    output.show(&made, &made.token)
}

async fn derp_map(
    command: MapCommand,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    match command {
        MapCommand::Show => {
            let state: MapState = client.get(&["derpmap"], &[]).await?;
            for why in state.fault.iter().chain(&state.silent) {
                say(&format!("not as it should be: {why}"));
            }
            for name in &state.left_out {
                say(&format!("not served, as it or every relay of its region fails: {name}"));
            }
            output.show(&state.map, &pretty(&state.map))
        }
        MapCommand::Validate { files } => {
            let sources =
                files.iter().map(|path| load::file(path)).collect::<Result<Vec<_>, _>>()?;
            let merged = merge(sources).map_err(OperatorFault::config)?;
            let (regions, nodes) = (merged.regions.len(), merged.nodes());
            let text = format!("valid: {regions} regions, {nodes} nodes");
            output.show(&json!({"regions": regions, "nodes": nodes}), &text)
        }
        MapCommand::Diff { file } => {
            let new = load::file(&file)?.map;
            let state: MapState = client.get(&["derpmap"], &[]).await?;
            let old = DerpMap::from_value(state.map)
                .map_err(|fault| OperatorFault::failed(format!("the map in service: {fault}")))?;
            let changes = differences(&old, &new);
            let text = if changes.is_empty() { "no difference".into() } else { changes.join("\n") };
            output.show(&json!({"changes": changes}), &text)
        }
        MapCommand::Publish { file, yes } => publish(&file, yes, client, output).await,
    }
}

async fn publish(
    file: &Path,
    yes: bool,
    client: &Client,
    output: &Output,
) -> Result<(), OperatorFault> {
    let map = load::file(file)?.map.to_value();
    let dry = [("dry_run", "true".to_owned())];
    let compared = client.put(&["derpmap"], &dry, None, &map);
    let wanted: Published = during("comparing the map", output, compared).await?;
    if wanted.changes.is_empty() {
        return output.show(&wanted, "no difference; nothing to publish");
    }
    if !yes {
        say(&wanted.changes.join("\n"));
        confirm("Publish this?")?;
    }
    // What was shown is what is done: a change in between is refused.
    let expected = Some(wanted.revision);
    let published = client.put(&["derpmap"], &[], expected, &map);
    let done: Published = during("publishing the map", output, published).await?;
    output.show(&done, &format!("published {} changes", done.changes.len()))?;
    say_map_fault(Kind::Region, client).await;
    Ok(())
}

async fn audit(limit: usize, client: &Client, output: &Output) -> Result<(), OperatorFault> {
    let query = [("limit", limit.to_string())];
    let listing: AuditListing = client.get(&["audit"], &query).await?;
    let row = |entry: &crate::store::AuditEntry| {
        let what = format!("{} {}", entry.kind.word(), entry.name);
        let (at, revision) = (entry.at.to_string(), entry.revision.to_string());
        vec![revision, at, entry.actor.clone(), entry.verb.clone(), what]
    };
    let rows: Vec<_> = listing.items.iter().map(row).collect();
    output.table(&listing, &["REVISION", "TIME", "WHO", "DID", "WHAT"], &rows)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// A word for a field that says nothing.
fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

impl Shown for Region {
    const HEADINGS: &'static [&'static str] = &["NAME", "ID", "TITLE", "AVOID"];

    fn cells(&self) -> Vec<String> {
        let avoid = if self.avoid { "yes" } else { "no" };
        vec![self.name.clone(), self.region_id.to_string(), or_dash(&self.title), avoid.into()]
    }
}

impl Shown for Peer {
    const HEADINGS: &'static [&'static str] = &["NAME", "PUBLIC KEY"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.public_key.clone()]
    }
}

impl Shown for Link {
    const HEADINGS: &'static [&'static str] = &["PEER", "PEER"];

    fn cells(&self) -> Vec<String> {
        self.peers.to_vec()
    }
}

impl Shown for Admitted {
    const HEADINGS: &'static [&'static str] = &["NAME", "NODE KEY"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.node_key.clone()]
    }
}

impl Shown for Certificate {
    const HEADINGS: &'static [&'static str] = &["NAME", "FOR", "EXPIRES"];

    fn cells(&self) -> Vec<String> {
        let ends = self.expires_at.map_or("never".to_owned(), |end| match relays::is_past(end) {
            true => format!("{end} (past)"),
            false => end.to_string(),
        });
        vec![self.name.clone(), self.names.join(","), ends]
    }
}

impl Shown for Token {
    const HEADINGS: &'static [&'static str] = &["NAME", "SCOPES", "PREFIX", "EXPIRES", "LAST USED"];

    fn cells(&self) -> Vec<String> {
        let word = |scope: &Scope| format!("{scope:?}").to_ascii_lowercase();
        let scopes: Vec<_> = self.scopes.iter().map(word).collect();
        let time = |at: Option<Stamp>| at.map_or("never".to_owned(), |at| at.to_string());
        vec![
            self.name.clone(),
            scopes.join(","),
            self.prefix.clone(),
            time(self.expires_at),
            time(self.last_used_at),
        ]
    }
}

impl Made for RegionArgs {
    type Resource = Region;

    fn make(self) -> Region {
        let Self { name, region_id, title, avoid } = self;
        Region { name, region_id, title, avoid, ..Region::default() }
    }
}

impl Made for NodeArgs {
    type Resource = Node;

    fn make(self) -> Node {
        Node {
            name: self.name,
            region: self.region,
            host_name: self.host_name,
            cert_name: self.cert_name,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            stun_port: self.stun_port,
            stun_only: self.stun_only,
            derp_port: self.derp_port,
            force_http: self.force_http,
            insecure_for_tests: self.insecure_for_tests,
            can_port80: self.can_port80,
            ..Node::default()
        }
    }
}

impl Made for PeerArgs {
    type Resource = Peer;

    fn make(self) -> Peer {
        Peer { name: self.name, public_key: self.public_key }
    }
}

impl Made for ClientArgs {
    type Resource = Admitted;

    fn make(self) -> Admitted {
        Admitted { name: self.name, node_key: self.node_key }
    }
}

impl Made for LinkArgs {
    type Resource = Link;

    fn make(self) -> Link {
        Link { peers: [self.one, self.other] }
    }
}
