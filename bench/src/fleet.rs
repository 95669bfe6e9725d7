//! Control with a fleet: many satellites, relay nodes and changes, and a dataplane that is steered.
//!
//! Owns the order of one round: an empty start, the fleet registered, lists, maps, changes until a real
//! dataplane has adopted them, restarts under load. Nothing is compared with anybody: the goals are
//! times a user waits. Must never read control's own clocks. Called by people and CI.

mod api;
mod database;
mod rows;
/// The server that control's tests start.
#[path = "../../control/src/testing/postgres.rs"]
mod server;
mod witness;

use crate::host;
use crate::load::LoadReport;
use crate::runner::child::{Helper, end};
use crate::runner::faults::Faults;
use crate::runner::{Comparison, Figures, Sample, Subject};
use anyhow::{Context as _, Result, ensure};
use api::{Api, Fleet};
use clap::Args;
use database::Database;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use witness::Witness;

/// What to run, how much of it, and where the result goes.
#[derive(Args, Clone, Debug)]
pub(crate) struct FleetArgs {
    /// Control's program.
    #[arg(long)]
    control: PathBuf,
    /// Our server's program.
    #[arg(long)]
    dataplane: PathBuf,
    /// Satellites, and as many relay nodes.
    #[arg(long, default_value_t = 10_000)]
    records: usize,
    /// Changes, each waited for until the dataplane has adopted it.
    #[arg(long, default_value_t = 1_000)]
    changes: usize,
    /// Rounds that count; one more is run first and thrown away.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Let control keep its state in a PostgreSQL that is started for this, each round in a database of
    /// its own, instead of in SQLite.
    #[arg(long)]
    postgres: bool,
    /// Milliseconds each way between control and PostgreSQL.
    #[arg(long, default_value_t = 0.0, requires = "postgres")]
    database_delay_ms: f64,
    /// Every raw round goes here as JSON.
    #[arg(long)]
    out: PathBuf,
}

/// Lists and maps of a round, of which the median counts.
const REPEATS: usize = 21;
/// How long anything may take to start.
const START_MAX: Duration = Duration::from_secs(10);
/// Until memory that is no longer needed has been given back.
const IDLE: Duration = Duration::from_secs(10);
/// Frames a second while control dies and comes back.
const LOAD_RATE: f64 = 20_000.0;
/// Deaths of control in that time.
const DEATHS: usize = 4;

/// Runs the rounds, prints the table and writes the file.
pub(crate) fn main(args: &FleetArgs) -> Result<()> {
    host::lift_descriptor_limit()?;
    let fleet = Fleet::new(args.records, args.changes)?;
    let store = match (args.postgres, args.database_delay_ms) {
        (false, _) => "SQLite".to_owned(),
        (true, way) => format!("PostgreSQL, {way} ms away each way"),
    };
    let facts = BTreeMap::from([
        ("store", store),
        ("kernel", host::kernel()),
        ("cpu", host::cpu_model()),
        (
            "records",
            format!("{0} satellites, {0} nodes in {1} regions", args.records, api::REGIONS),
        ),
        ("changes", args.changes.to_string()),
        ("bench", env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    let mut comparison = Comparison { facts, ..Comparison::default() };
    let folder = Scratch::new("database")?;
    let way = Duration::from_secs_f64(args.database_delay_ms / 1e3);
    let database = args.postgres.then(|| Database::start(&folder.0, way)).transpose()?;
    for round in 0..=args.rounds {
        let url = database.as_ref().map(Database::url);
        let figures = self::round(args, &fleet, url)?;
        eprintln!("round {round}: {figures:.3?}");
        comparison.samples.push(Sample {
            experiment: rows::FLEET.to_owned(),
            round,
            subject: Subject::Control,
            figures,
            faults: Faults::default(),
        });
    }
    comparison.conclude(&rows::TABLE, &args.out)
}

fn round(args: &FleetArgs, fleet: &Fleet, database: Option<String>) -> Result<Figures> {
    let scratch = Scratch::new("round")?;
    let mut figures = Figures::new();
    let mut control = Control::start(&args.control, &scratch.0, database)?;
    figures.insert("first_start_ms".into(), control.start_ms);
    let api = Api::new(&control.socket)?;
    let loading = Instant::now();
    api.register(fleet)?;
    figures.insert("load_s".into(), loading.elapsed().as_secs_f64());
    figures.insert("publish_ms".into(), ms(api.publish(&fleet.map)?));
    figures.insert("publish_again_ms".into(), ms(api.publish(&fleet.moved)?));
    figures.insert("resident_after_load_mb".into(), control.resident_mb()?);

    control.restart()?;
    // The connections of the old one are gone.
    let api = Api::new(&control.socket)?;
    figures.insert("start_ms".into(), control.start_ms);
    let list = median(REPEATS, |_| api.list(args.records))?;
    figures.insert("list_ms".into(), list);
    let map = median(REPEATS, |at| {
        api.add_node(args.records + at)?;
        api.map()
    })?;
    figures.insert("map_ms".into(), map);

    let witness = Witness::between(scratch.0.join("witness.sock"), control.steer_socket())?;
    let dataplane = Dataplane::start(&args.dataplane, &scratch.0, witness.socket())?;
    let mut adopted: Vec<f64> = Vec::with_capacity(fleet.peers.len());
    for peer in &fleet.peers {
        let begun = Instant::now();
        let revision = api.add_peer(peer)?;
        adopted.push(ms(witness.adopted(revision, START_MAX)? - begun));
    }
    adopted.sort_by(f64::total_cmp);
    let of = |share: f64| adopted[((adopted.len() - 1) as f64 * share) as usize];
    figures.insert("adopted_p50_ms".into(), of(0.5));
    figures.insert("adopted_p99_ms".into(), of(0.99));
    figures.insert("adopted_max_ms".into(), of(1.0));

    figures.insert("lost_over_restarts".into(), lost_over_restarts(&mut control, &dataplane)?);
    Api::new(&control.socket)?.list(args.records)?;
    std::thread::sleep(IDLE);
    figures.insert("resident_mb".into(), control.resident_mb()?);
    Ok(figures)
}

/// Kills control and starts it again while frames pass. Returns how many were lost, late or wrong.
fn lost_over_restarts(control: &mut Control, dataplane: &Dataplane) -> Result<f64> {
    let load = [
        "load",
        "--server",
        &dataplane.address.to_string(),
        "--rate",
        &LOAD_RATE.to_string(),
        "--seconds",
        "4",
        "--sleep",
        "--gate",
    ]
    .map(str::to_owned);
    let mut load = Helper::start(&load)?;
    load.wait_for("connected")?;
    load.release()?;
    for _ in 0..DEATHS {
        control.restart()?;
        std::thread::sleep(Duration::from_millis(500));
    }
    let report: LoadReport = load.result("load")?;
    ensure!(report.delivered > 0, "no frame was delivered: {report:?}");
    Ok((report.lost + report.missing + report.errors + report.closed) as f64)
}

/// Milliseconds that the median of `count` takes.
fn median(count: usize, mut timed: impl FnMut(usize) -> Result<Duration>) -> Result<f64> {
    let mut times = (0..count).map(&mut timed).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(ms(times[count / 2]))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A folder that is gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(what: &str) -> Result<Self> {
        let name = format!("perigee-fleet-{}-{what}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running control.
struct Control {
    program: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    /// Where its state is, if not in a file of its own.
    database: Option<String>,
    child: Child,
    /// From its start until it answered that it is ready.
    start_ms: f64,
}

impl Control {
    fn start(program: &Path, scratch: &Path, database: Option<String>) -> Result<Self> {
        let (state, socket) = (scratch.join("state"), scratch.join("control.sock"));
        let (child, start_ms) = Self::spawn(program, &state, &socket, database.as_deref())?;
        Ok(Self { program: program.to_owned(), state, socket, database, child, start_ms })
    }

    fn spawn(
        program: &Path,
        state: &Path,
        socket: &Path,
        database: Option<&str>,
    ) -> Result<(Child, f64)> {
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(["serve", "--listen", "off", "--probe-every", "off", "--log", "error"])
            .arg("--state-dir")
            .arg(state)
            .arg("--socket")
            .arg(socket)
            .args(database.iter().flat_map(|url| ["--database", url]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        while !api::is_ready(socket) {
            if begun.elapsed() > START_MAX || child.try_wait()?.is_some() {
                end(&mut child);
                anyhow::bail!("control does not start");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok((child, ms(begun.elapsed())))
    }

    /// Kills it, and starts it again.
    fn restart(&mut self) -> Result<()> {
        end(&mut self.child);
        let database = self.database.as_deref();
        (self.child, self.start_ms) =
            Self::spawn(&self.program, &self.state, &self.socket, database)?;
        Ok(())
    }

    fn steer_socket(&self) -> PathBuf {
        self.state.join("steer.sock")
    }

    fn resident_mb(&self) -> Result<f64> {
        Ok(host::resident_bytes(self.child.id())? as f64 / 1e6)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A running relay that control steers.
struct Dataplane {
    child: Child,
    address: SocketAddrV4,
}

impl Dataplane {
    fn start(program: &Path, scratch: &Path, steer: &Path) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut child = Command::new(program)
            .args(["--cores", "1", "--listen", &address.to_string(), "--udp-listen", "127.0.0.1:0"])
            .args(["--steer-node", "n0", "--steer", &format!("unix:{}", steer.display())])
            .arg("--steer-state")
            .arg(scratch.join("steer.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun.elapsed() > START_MAX || child.try_wait()?.is_some() {
                end(&mut child);
                anyhow::bail!("the dataplane does not start");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { child, address })
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
