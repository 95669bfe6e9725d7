//! From checked settings to a running relay, and back.
//!
//! Binds everything before the first thread starts, so that a fault of the installation ends the
//! start with one line and nothing half done. Called by `main` alone.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use proto::stun::{Responder, Seed};
use proto::tick::Tick;
use proto::wireguard::Session;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use wire::key::Key;
use wire::meta_cert;

use crate::affinity;
use crate::certs::{DerpNode, Reach, Resolver, ServerConfigs, Source};
use crate::config::Checked;
use crate::config::wireguard::Wireguard;
use crate::fault::{ExitCode, OperatorFault};
use crate::front::bootstrap::Bootstrap;
use crate::front::pages::{Site, Unready};
use crate::front::{self, Admission, Entrance, Front, Scheme};
use crate::identity::Identity;
use crate::io::Driver;
use crate::io::epoll::Epoll;
use crate::io::probe::{self, Choice, Chosen};
use crate::io::uring::Uring;
use crate::observe::{BuildInfo, Registry};
use crate::offload::{self, Prepared, Served, privilege};
use crate::relay::{Command, Fabric, Pulse, Tuning, Worker};
use crate::satellite::Satellite;
use crate::satellite::report::Reports;
use crate::steering::{self, own_sessions};
use crate::udp::{self, Errand, Peering, RELAY_CORE, Udp, UdpPort, UdpSocket};
use crate::xdp::Spread;

/// How long the clients of a stopping relay are asked to stay away and then to try, in milliseconds.
pub(crate) const RESTART_MS: (u32, u32) = (1_000, 30_000);

type RelayFabric = Fabric<Arc<TcpStream>>;

/// Runs the relay until a signal ends it.
///
/// # Errors
/// An [`OperatorFault`] that kept it from starting, or that stopped a worker.
pub fn run(checked: &Checked) -> Result<(), OperatorFault> {
    let epoch = Instant::now();
    // The first touch of a huge page clears 2 MiB of it and stalls a round for up to milliseconds.
    // A kernel without them refuses, and is none the worse.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let descriptors = lift_descriptor_limit();
    let (cpus, choice) = place(checked)?;
    let identity = identity(checked)?;
    let resolver = resolver(checked, &identity)?;
    let build = BuildInfo::new(match choice.driver {
        Chosen::Uring => "uring",
        Chosen::Epoll => "epoll",
    });
    let registry = Arc::new(Registry::new(cpus.len(), build, SystemTime::now()));
    let fabric = Fabric::new(Tuning::from(&own_sessions(checked)?), &registry.cores);
    let (entrances, ports, reach) = bind(checked, cpus.len())?;
    let _spread = spread(checked, &ports);
    let fast_path = offload::prepare(&checked.fast_path, seed()?.0)?;
    tracing::info!(io = %choice.driver, why = %choice.why, ?cpus, descriptors, "workers");
    warn_of_descriptors(checked, descriptors);
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }

    let public = identity.public();
    let front = Arc::new(Front {
        fabric: Arc::clone(&fabric),
        identity,
        tls: resolver.clone().map(ServerConfigs::new).transpose()?,
        site: site(checked, &reach, &registry, fast_path.as_ref())?,
        registry,
        tcp: checked.tcp,
        admission: Admission::new(
            checked.accept_rate,
            checked.handshakes_max,
            checked.sessions_max,
            epoch,
        ),
        unready: RwLock::new(vec![Unready::Starting]),
        draining: AtomicBool::new(false),
        unsteered: AtomicBool::new(false),
    });
    let inodes = inodes(&ports)?;
    let reporter = fast_path.as_ref().map(Prepared::reporter);
    let shared = udp::Shared::new(&reach.stun, Arc::clone(&front.registry.links), reporter);
    let sides = ports.into_iter().enumerate();
    let sides = sides.map(|(core, ports)| Udp::new(core, ports, Arc::clone(&shared))).collect();
    let relay = Relay { epoch, driver: choice.driver, cpus, fabric };
    let (stop, stopping) = watch::channel(false);
    let signals = Signals::new(Reports::new(checked)?)?;
    let served = Served { bound: reach.stun.clone(), stun_rate: checked.stun_rate };
    let keeper = fast_path.map(|it| it.start(&shared, &front.registry, served)).transpose()?;
    let (keeper, sessions) = keeper.unzip();
    let shedder = keeper.as_ref().map(offload::Running::shedder);
    let sessions = sessions.unwrap_or_default();
    let steering = steering::begin(checked, &front, resolver.as_ref(), shedder.clone(), sessions)?;
    let workers = relay.start_workers(sides)?;
    privilege::give_up_admin();
    let fronts = relay.start_fronts(&front, entrances, &stopping)?;
    front.set_unready(Vec::new());
    announce(checked, &public, resolver.as_deref(), &reach);
    front.site.satellite.as_deref().into_iter().for_each(tell_satellite);
    let steering = steering.map(steering::Begun::start).transpose()?;
    attend(checked, signals, &front, resolver.as_deref(), &inodes);
    steering.into_iter().for_each(steering::Running::stop);
    front.set_unready(vec![Unready::Draining]);
    shedder.iter().for_each(|shedder| shedder.shed(true));
    // Fronts first: nobody is let in while the workers end their sessions.
    stop.send_replace(true);
    fronts.into_iter().for_each(join);
    relay.stop_workers();
    workers.into_iter().for_each(join);
    keeper.into_iter().for_each(offload::Running::stop);
    Ok(())
}

fn identity(checked: &Checked) -> Result<Identity, OperatorFault> {
    match &checked.key_file {
        Some(path) => Identity::load_or_create(path),
        None => Identity::fresh(),
    }
}

fn site(
    checked: &Checked,
    reach: &Reach,
    registry: &Arc<Registry>,
    fast_path: Option<&Prepared>,
) -> Result<Site, OperatorFault> {
    let satellite = checked.satellite_key_file.clone().map(Satellite::new).transpose()?;
    Ok(Site {
        home: checked.home.clone(),
        derp: checked.derp,
        tls_port: checked.tls.as_ref().and(reach.derp.first()).map(SocketAddr::port),
        bootstrap: Bootstrap::default(),
        satellite: satellite.map(Arc::new),
        registry: Arc::clone(registry),
        looks: fast_path.map(Prepared::looks),
    })
}

/// What holds the certificates; `None` where TLS is off.
fn resolver(
    checked: &Checked,
    identity: &Identity,
) -> Result<Option<Arc<Resolver>>, OperatorFault> {
    let Some(source) = checked.tls.clone() else { return Ok(None) };
    let meta = meta_certificate(identity)?;
    let resolver = Resolver::new(source, checked.hostname.clone(), meta, SystemTime::now())?;
    Ok(Some(Arc::new(resolver)))
}

/// Lifts the soft limit of open files, 1024 on most hosts, to the hard one: each connection takes a
/// descriptor. Returns the limit then in force, `u64::MAX` for none.
fn lift_descriptor_limit() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // A sandbox may forbid it; what is in force is logged either way.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn warn_of_descriptors(checked: &Checked, descriptors: u64) {
    for (key, max) in
        [("sessions_max", checked.sessions_max), ("handshakes_max", checked.handshakes_max)]
    {
        if max as u64 > descriptors {
            tracing::warn!(
                "{key}: {max} connections need more than the {descriptors} open files allowed; \
                 raise the hard limit (ulimit -Hn, LimitNOFILE) or lower {key}"
            );
            return;
        }
    }
}

/// The CPUs and the driver that `checked` asks for, as far as this host has them.
///
/// # Errors
/// When it has not, with what to ask for instead.
pub(crate) fn place(checked: &Checked) -> Result<(Vec<usize>, Choice), OperatorFault> {
    let allowed = affinity::allowed().map_err(|error| {
        OperatorFault::new(ExitCode::Failed, format_args!("cannot ask for CPUs: {error}"))
    })?;
    let cpus = affinity::choose(&checked.cores, &allowed).map_err(OperatorFault::config)?;
    let choice = probe::choose(checked.io).map_err(|why| {
        OperatorFault::new(ExitCode::Unavailable, format_args!("io: {why}; write auto or epoll"))
    })?;
    Ok((cpus, choice))
}

/// The throw-away certificate that tells clients the relay's key, self-signed for 30 days each way.
/// Clients look at its name alone.
fn meta_certificate(identity: &Identity) -> Result<CertificateDer<'static>, OperatorFault> {
    const VALID_S: u64 = 30 * 24 * 3600;
    let fault =
        |_| OperatorFault::new(ExitCode::Failed, "no random numbers for the meta certificate");
    let pair = Ed25519KeyPair::generate().map_err(fault)?;
    let mut public = [0; 32];
    public.copy_from_slice(pair.public_key().as_ref());
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let validity = [now.saturating_sub(VALID_S), now + VALID_S].map(meta_cert::utc_time);
    let unsigned = meta_cert::unsigned(&identity.public(), &public, &validity[0], &validity[1]);
    let mut signature = [0; 64];
    signature.copy_from_slice(pair.sign(unsigned.to_be_signed()).as_ref());
    Ok(CertificateDer::from(unsigned.with_signature(&signature).to_vec()))
}

type Bound = (Vec<Entrance>, Vec<Vec<UdpPort>>, Reach);

fn bind(checked: &Checked, workers: usize) -> Result<Bound, OperatorFault> {
    let mut entrances = Vec::new();
    let mut reach = Reach::default();
    let [listen, http_listen, udp_listen] = &checked.listen_names;
    for (key, addresses, scheme, reached) in [
        (listen, &checked.listen, Scheme::Main, &mut reach.derp),
        (http_listen, &checked.http_listen, Scheme::Plain, &mut reach.http),
    ] {
        for address in addresses {
            let listener = or_ipv4(*address, |address| front::bind(address, &checked.tcp))
                .map_err(|error| OperatorFault::bind(key, address, &error))?;
            reached.push(
                listener.local_addr().map_err(|error| OperatorFault::bind(key, address, &error))?,
            );
            entrances.push(Entrance { listener, scheme });
        }
    }
    let mut ports: Vec<Vec<UdpPort>> = (0..workers).map(|_| Vec::new()).collect();
    if checked.udp_listen.len() > udp::LOCALS_MAX {
        let max = udp::LOCALS_MAX;
        let fault = format!("{udp_listen}: names more than {max} addresses; leave some out");
        return Err(OperatorFault::config(fault));
    }
    for address in &checked.udp_listen {
        let fault = |error| OperatorFault::bind(udp_listen, address, &error);
        // The first bind is exclusive and shows whether the port is free at all; its address, whose
        // port the kernel may have chosen, is then shared by a socket per worker.
        let free = or_ipv4(*address, |address| UdpSocket::bind(address, false)).map_err(fault)?;
        let bound = free.local_addr().map_err(fault)?;
        drop(free);
        reach.stun.push(bound);
        for worker in &mut ports {
            let socket = UdpSocket::bind(bound, true).map_err(fault)?;
            worker
                .push(UdpPort::new(socket, Responder::new(seed()?, checked.stun_rate, Tick::ZERO)));
        }
    }
    Ok((entrances, ports, reach))
}

/// Has each port's datagrams spread over the cores by what they are, where the kernel lets us; else
/// it spreads them by address.
fn spread(checked: &Checked, ports: &[Vec<UdpPort>]) -> Vec<Spread> {
    if ports.len() < 2 || checked.fast_path.mode.is_none() {
        return Vec::new();
    }
    let places = ports.first().map_or(0, Vec::len);
    let of_place = |place: usize| -> Vec<_> {
        ports.iter().filter_map(|ports| ports.get(place)).map(AsFd::as_fd).collect()
    };
    let spreads: Result<_, _> = (0..places).map(|place| Spread::new(&of_place(place))).collect();
    spreads
        .inspect_err(|fault| tracing::info!(%fault, "the kernel spreads datagrams by address"))
        .unwrap_or_default()
}

/// Binds with `bind`, on every IPv4 address where IPv6 is off and its wildcard was asked for.
fn or_ipv4<T>(
    address: SocketAddr,
    bind: impl Fn(SocketAddr) -> std::io::Result<T>,
) -> std::io::Result<T> {
    bind(address).or_else(|error| match crate::config::ipv4_fallback(address) {
        Some(fallback) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => bind(fallback),
        Some(_) | None => Err(error),
    })
}

fn seed() -> Result<Seed, OperatorFault> {
    let mut bytes = [[0; 8]; 2];
    for half in &mut bytes {
        aws_lc_rs::rand::fill(half)
            .map_err(|_| OperatorFault::new(ExitCode::Failed, "no random numbers"))?;
    }
    Ok(Seed(bytes.map(u64::from_ne_bytes)))
}

fn announce(checked: &Checked, key: &Key, resolver: Option<&Resolver>, reach: &Reach) {
    if checked.key_file.is_none() {
        tracing::info!("no key_file: this relay has a new identity at each start");
    }
    tracing::info!(%key, derp = ?reach.derp, http = ?reach.http, stun = ?reach.stun, "relay ready");
    match resolver {
        None => {
            tracing::warn!("DERP is served in clear: put a TLS proxy in front or name certificates")
        }
        Some(_) if !knows_its_name(checked) => tracing::warn!(
            "no DERP map node: hostname is not set; set it to the name or address that clients dial"
        ),
        Some(resolver) => {
            let node = DerpNode::new(checked.name(), reach, resolver.pin(SystemTime::now()));
            tracing::info!("DERP map node: {}", node.json());
        }
    }
}

/// Whether [`Checked::name`] is what clients may dial: the operator said so, or this is a relay to
/// try on this host, with a certificate made for it.
fn knows_its_name(checked: &Checked) -> bool {
    let is_here = |address: &SocketAddr| {
        let ip = address.ip().to_canonical();
        ip.is_loopback() || ip.is_unspecified()
    };
    checked.hostname.is_some()
        || checked.tls == Some(Source::SelfSigned) && checked.listen.iter().any(is_here)
}

/// The signals this process heeds, caught from the moment this exists.
struct Signals {
    runtime: Runtime,
    /// What this thread tells primary sides beside.
    reports: Option<Reports>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new(reports: Option<Reports>) -> Result<Self, OperatorFault> {
        let failed = |error: std::io::Error| {
            OperatorFault::new(ExitCode::Failed, format_args!("cannot wait for signals: {error}"))
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let entered = runtime.enter();
        let hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        drop(entered);
        Ok(Self { runtime, reports, hangup, terminate, interrupt })
    }
}

/// Waits for signals: SIGHUP reloads, SIGTERM and SIGINT end the process.
fn attend(
    checked: &Checked,
    signals: Signals,
    front: &Front,
    resolver: Option<&Resolver>,
    inodes: &HashSet<u64>,
) {
    let Signals { runtime, reports, mut hangup, mut terminate, mut interrupt } = signals;
    runtime.block_on(async {
        if let (Some(satellite), Some(reports)) = (&front.site.satellite, reports) {
            reports.start(satellite, &front.registry);
        }
        let mut census = tokio::time::interval(Duration::from_secs(1));
        // After a pause of the whole process its workers get their seconds, too.
        census.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pulse, mut stalled) = (Pulse::default(), Vec::new());
        let names = front.site.bootstrap.keep_fresh(&checked.bootstrap_dns);
        tokio::pin!(names);
        let mut resolving = !checked.bootstrap_dns.is_empty();
        loop {
            tokio::select! {
                () = &mut names, if resolving => resolving = false,
                _ = hangup.recv() => {
                    reload(front, resolver);
                    reload_satellite(front);
                    if let (Some(path), None) = (&checked.file, &checked.steering) {
                        reload_wireguard(front, path);
                    }
                }
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = census.tick() => {
                    front.take_census(resolver);
                    front.registry.front.udp_overflows.set(udp::overflow::lost(inodes));
                    let now_stalled = pulse.look(&front.fabric);
                    if now_stalled != stalled {
                        tracing::error!(cores = ?now_stalled, before = ?stalled, "stalled cores");
                        front.set_unready(
                            now_stalled.iter().copied().map(Unready::CoreStalled).collect(),
                        );
                        stalled = now_stalled;
                    }
                }
            }
        }
    });
    // A question to a dead name server blocks a thread for as long as libc likes; do not join it.
    runtime.shutdown_background();
}

fn reload(front: &Front, resolver: Option<&Resolver>) {
    let Some(resolver) = resolver else {
        return tracing::info!("no certificates to reload: TLS is off");
    };
    let counters = &front.registry.front;
    let now = SystemTime::now();
    match resolver.reload(now) {
        Ok(false) => {
            tracing::info!("no certificates to reload: the self-made one stays until a restart");
        }
        Ok(true) => {
            counters.certificate_reloads.increment();
            tracing::info!(names = ?resolver.names(now), "certificates reloaded");
        }
        Err(fault) => {
            counters.certificate_reload_failures.increment();
            tracing::error!(%fault, "certificates not reloaded, the old ones stay in force");
        }
    }
}

/// Reads the satellite's key file again, if this is one.
fn reload_satellite(front: &Front) {
    let Some(satellite) = &front.site.satellite else { return };
    match satellite.reload() {
        Ok(()) => tell_satellite(satellite),
        Err(fault) => {
            tracing::error!(%fault, "satellite key not reloaded, the old one stays in force")
        }
    }
}

fn tell_satellite(satellite: &Satellite) {
    let keys = satellite.keys();
    let old = keys.old_fingerprint();
    tracing::info!(fingerprint = keys.fingerprint(), old, "satellite key");
}

/// Reads the peers and links of the file at `path` again. Its other keys wait for the next start.
fn reload_wireguard(front: &Front, path: &Path) {
    let counters = &front.registry.front;
    match crate::config::reread(path) {
        Ok(wireguard) => {
            register(front, &wireguard, Vec::new());
            counters.wireguard_reloads.increment();
            let (peers, links) = (wireguard.peers.len(), wireguard.links.len());
            tracing::info!(peers, links, "WireGuard peers and links reloaded");
        }
        Err(fault) => {
            counters.wireguard_reload_failures.increment();
            tracing::error!(%fault, "WireGuard peers and links not reloaded, the old ones stay in force");
        }
    }
}

/// Has the relay go by these peers and links, and go on with these sessions.
pub(crate) fn register(front: &Front, wireguard: &Wireguard, sessions: Vec<Session>) {
    front.registry.front.wireguard_peers.set(wireguard.peers.len() as u64);
    let peering = Box::new(Peering::from(wireguard).resuming(sessions));
    front.fabric.post(RELAY_CORE, Command::Udp(Errand::Register(peering)));
}

/// The numbers by which the kernel knows the sockets of `ports`.
fn inodes(ports: &[Vec<UdpPort>]) -> Result<HashSet<u64>, OperatorFault> {
    let fault = |error| {
        OperatorFault::new(ExitCode::Failed, format_args!("cannot look at a socket: {error}"))
    };
    ports.iter().flatten().map(|port| port.inode().map_err(fault)).collect()
}

struct Relay {
    epoch: Instant,
    driver: Chosen,
    cpus: Vec<usize>,
    fabric: Arc<RelayFabric>,
}

impl Relay {
    /// Starts the workers; every one has its driver and watches its ports when this returns.
    fn start_workers(&self, sides: Vec<Udp>) -> Result<Vec<thread::JoinHandle<()>>, OperatorFault> {
        let (tell, told) = mpsc::channel();
        let start = |(id, (cpu, udp)): (usize, (&usize, Udp))| {
            let (fabric, epoch, driver, cpu) =
                (Arc::clone(&self.fabric), self.epoch, self.driver, *cpu);
            let tell = tell.clone();
            spawn(format!("relay-{id}"), move || {
                if let Err(error) = affinity::pin(cpu) {
                    tracing::warn!(cpu, %error, "worker is not pinned");
                }
                if !affinity::be_prompt() {
                    tracing::debug!(cpu, "worker has the slice of any other thread");
                }
                let ended = match driver {
                    Chosen::Uring => work(id, fabric, Uring::new(epoch), udp, &tell),
                    Chosen::Epoll => work(id, fabric, Epoll::new(epoch), udp, &tell),
                };
                if let Err(error) = ended {
                    // Its sessions hang for ever: a restart by the service manager is better.
                    tracing::error!(id, %error, "a relay worker cannot go on");
                    process::exit(ExitCode::Failed as i32);
                }
            })
        };
        let threads =
            self.cpus.iter().zip(sides).enumerate().map(start).collect::<Result<_, _>>()?;
        drop(tell);
        await_start("a relay worker", &told, self.cpus.len())?;
        Ok(threads)
    }

    /// Starts the fronts; every one accepts when this returns.
    fn start_fronts(
        &self,
        front: &Arc<Front>,
        entrances: Vec<Entrance>,
        stopping: &watch::Receiver<bool>,
    ) -> Result<Vec<thread::JoinHandle<()>>, OperatorFault> {
        let (tell, told) = mpsc::channel();
        let start = |(id, cpu): (usize, &usize)| {
            let entrances = entrances.iter().map(Entrance::share).collect::<Result<Vec<_>, _>>();
            let entrances = entrances.map_err(|error| {
                OperatorFault::new(
                    ExitCode::Failed,
                    format_args!("cannot share a listener: {error}"),
                )
            })?;
            let (front, mut stopping, cpu) = (Arc::clone(front), stopping.clone(), *cpu);
            let tell = tell.clone();
            spawn(format!("front-{id}"), move || {
                let _ = affinity::pin(cpu);
                affinity::yield_to_workers();
                let stop = async move {
                    // The sender outlives every front; its end would mean stop, too.
                    let _ = stopping.wait_for(|stop| *stop).await;
                };
                let up = || drop(tell.send(Ok(())));
                if let Err(error) = front.run(entrances, up, stop) {
                    // Nothing of a front fails once it accepts.
                    let _ = tell.send(Err(error));
                }
            })
        };
        let threads = self.cpus.iter().enumerate().map(start).collect::<Result<_, _>>()?;
        drop(tell);
        await_start("a front thread", &told, self.cpus.len())?;
        Ok(threads)
    }

    fn stop_workers(&self) {
        for core in 0..self.cpus.len() {
            let (reconnect_in_ms, try_for_ms) = RESTART_MS;
            self.fabric.post(core, Command::Drain { reconnect_in_ms, try_for_ms });
            self.fabric.post(core, Command::Stop);
        }
    }
}

/// Whether a thread has what it needs, or why not.
type Started = std::io::Result<()>;

/// Waits until `count` threads have said that they are up.
fn await_start(
    who: &str,
    told: &mpsc::Receiver<Started>,
    count: usize,
) -> Result<(), OperatorFault> {
    for _ in 0..count {
        // Only a thread that panicked hangs up without a word.
        let started = told.recv().unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
        started.map_err(|error| {
            OperatorFault::new(
                ExitCode::Unavailable,
                format_args!(
                    "{who} cannot start: {error}; ask for fewer cores, or raise the limits of \
                     open files and locked memory"
                ),
            )
        })?;
    }
    Ok(())
}

/// A worker's life. A fault before it is up goes to `tell`, a later one is returned.
fn work<D: Driver>(
    id: usize,
    fabric: Arc<Fabric<D::Socket>>,
    driver: std::io::Result<D>,
    udp: Udp,
    tell: &mpsc::Sender<Started>,
) -> std::io::Result<()> {
    // Whoever waits for the word outlives the start, and has ended the process if it does not.
    match driver.and_then(|driver| Worker::new(id, fabric, driver, udp)) {
        Ok(worker) => {
            privilege::give_up_admin();
            let _ = tell.send(Ok(()));
            worker.run()
        }
        Err(error) => {
            let _ = tell.send(Err(error));
            Ok(())
        }
    }
}

fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, OperatorFault> {
    thread::Builder::new().name(name).spawn(body).map_err(|error| {
        OperatorFault::new(ExitCode::Unavailable, format_args!("cannot start a thread: {error}"))
    })
}

fn join(thread: thread::JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread panicked");
    }
}
