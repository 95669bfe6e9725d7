//! Servers under test: ours in every mode, the bare loops and stock coturn, in a network of their own.
//!
//! Owns the two virtual Ethernet pairs, the scratch folder and the running process. A server lives for one
//! measurement and is pinned before it starts. Must never touch the host's network.

use super::FastpathArgs;
use crate::flood::{
    FLOOR, OWN, OWN_ADDRESS, OWN_FLOOR, OWN_STATION, SERVER, SERVER_STATION, public_key,
};
use crate::host;
use crate::runner::Subject::{self, Coturn, Generic, Native, Sockets, Tcx, UdpMany, UdpRuns};
use crate::runner::child::{Helper, end};
use crate::runner::network::{self, Network};
use anyhow::{Context as _, Result, ensure};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::stun::{TxId, request};

/// The server's address and port.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 3478);
/// Where our server serves its metrics.
pub(super) const METRICS_PORT: u16 = 8080;
/// The server's core.
const SERVER_CORE: usize = 0;
/// How long a server may take to answer.
const START_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(20);
/// More than any flood brings: what a prefix may ask is not what is measured.
const STUN_RATE: u32 = 1_000_000_000;

/// What all servers need.
pub(super) struct Lab {
    folder: PathBuf,
    network: Network,
    dataplane: PathBuf,
    /// Whether our server has the settings of XDP, and whether the driver merges runs without a program.
    has_xdp: bool,
    merges: bool,
    coturn: Option<String>,
}

/// A server that answers.
pub(super) struct Server {
    process: Process,
    /// Where it listens.
    pub(super) address: SocketAddrV4,
}

enum Process {
    Server(Child),
    Limit(Helper),
}

impl Lab {
    /// Builds the network and looks at the programs; notes what is missing in `skipped`.
    pub(super) fn new(args: &FastpathArgs, skipped: &mut Vec<String>) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("perigee-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let dataplane = std::path::absolute(&args.dataplane)?;
        let help = output(Command::new(&dataplane).arg("--help"));
        let has_xdp = help.context("our server does not start")?.contains("--xdp");
        if !has_xdp {
            skipped.push("rows about XDP: this dataplane has no --xdp".to_owned());
        }
        let coturn = output(Command::new("turnserver").arg("--version"));
        if coturn.is_none() {
            skipped.push("rows against coturn: turnserver is not installed".to_owned());
        }
        let network = Network::new()?;
        build(&network)?;
        let merges = merge(&network);
        if !merges {
            let why = "ethtool, which switches GRO on, is missing or fails";
            skipped.push(format!("rows about generic XDP: {why}"));
        }
        Ok(Self { folder, network, dataplane, has_xdp, merges, coturn })
    }

    /// The version of our server.
    pub(super) fn dataplane_version(&self) -> String {
        first_line(output(Command::new(&self.dataplane).arg("--version")))
    }

    /// The version of coturn.
    pub(super) fn coturn_version(&self) -> String {
        first_line(self.coturn.clone())
    }

    /// A process in the servers' network.
    pub(super) fn network_pid(&self) -> u32 {
        self.network.pid()
    }

    /// Whether `subject` can be started here.
    pub(super) fn has(&self, subject: Subject) -> bool {
        match subject {
            Native | Tcx => self.has_xdp,
            Generic => self.has_xdp && self.merges,
            Coturn => self.coturn.is_some(),
            _ => true,
        }
    }

    /// Starts `subject` for so many flows and waits until it answers.
    pub(super) fn start(&self, subject: Subject, flows: usize) -> Result<Server> {
        let limit = match subject {
            UdpRuns => "udp-runs",
            UdpMany => "udp-many",
            _ => return self.start_server(subject, flows),
        };
        let line = format!("limit {limit} --core {SERVER_CORE} --address {}", ADDRESS.ip());
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let mut helper = Helper::start_by(self.network.enter(), &words)?;
        let port = helper.wait_for("listening")?["port"].as_u64().context("no port")? as u16;
        let address = SocketAddrV4::new(*ADDRESS.ip(), port);
        Ok(Server { process: Process::Limit(helper), address })
    }

    fn start_server(&self, subject: Subject, flows: usize) -> Result<Server> {
        let log_path = self.folder.join("server.log");
        let log = std::fs::File::create(&log_path)?;
        let mut command = self.network.enter();
        if subject == Coturn {
            coturn_line(&mut command, &self.folder);
        } else {
            self.dataplane_line(&mut command, subject, flows)?;
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = host::spawn_on(&[SERVER_CORE], &mut command)?;
        let mut server = Server { process: Process::Server(child), address: ADDRESS };
        let answers = server.wait_for_answer(subject)?;
        let log = std::fs::read_to_string(&log_path).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(3).collect();
        ensure!(answers, "it does not answer: {}", tail.join(" | "));
        Ok(server)
    }

    fn dataplane_line(&self, command: &mut Command, subject: Subject, flows: usize) -> Result<()> {
        let file = self.folder.join("relay.toml");
        std::fs::write(&file, config(flows))?;
        let core = format!("{SERVER_CORE}-{SERVER_CORE}");
        command.arg(&self.dataplane).arg("--config").arg(file).args(["--cores", &core]);
        command.args(["--listen", &format!("{}:8443", ADDRESS.ip())]);
        let here = format!("{}:{METRICS_PORT},127.0.0.1:{METRICS_PORT}", ADDRESS.ip());
        command.args(["--http-listen", &here]);
        let mode = match subject {
            Native => "native",
            Generic => "generic",
            Tcx => "tcx",
            _ => "off",
        };
        if self.has_xdp {
            command.args(["--xdp", mode]);
        }
        if subject != Sockets {
            command.args(["--xdp-interface", SERVER]);
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A temporary folder; what cannot be removed does no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// The server's process number.
    pub(super) fn pid(&self) -> u32 {
        match &self.process {
            Process::Server(child) => child.id(),
            Process::Limit(helper) => helper.pid(),
        }
    }

    /// Whether it answers before it ends or time is up: ours on TCP, as XDP's answers find no way where
    /// nobody has a program yet; coturn STUN.
    fn wait_for_answer(&mut self, subject: Subject) -> Result<bool> {
        let socket = UdpSocket::bind((OWN_ADDRESS, 0))?;
        socket.connect(self.address)?;
        socket.set_read_timeout(Some(LOOK))?;
        // Refused until somebody listens there.
        let answers = || match subject {
            Coturn => {
                socket.send(&request(TxId([1; 12]))).is_ok() && socket.recv(&mut [0; 100]).is_ok()
            }
            _ => TcpStream::connect((*ADDRESS.ip(), METRICS_PORT)).is_ok(),
        };
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            let Process::Server(child) = &mut self.process else { return Ok(true) };
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            if answers() {
                return Ok(true);
            }
            std::thread::sleep(LOOK);
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Server(child) = &mut self.process {
            end(child);
        }
    }
}

/// Two pairs between our network and the servers': one to be answered on, one to the floor.
fn build(network: &Network) -> Result<()> {
    let (own, server) = (station(OWN_STATION), station(SERVER_STATION));
    let (relay, pid) = (ADDRESS.ip(), network.pid());
    network::ip("link set lo up")?;
    network.ip("link set lo up")?;
    network::ip(&format!(
        "link add {OWN} address {own} type veth peer name {SERVER} address {server} netns {pid}"
    ))?;
    network::ip(&format!("link add {OWN_FLOOR} type veth peer name {FLOOR} netns {pid}"))?;
    for device in [OWN, OWN_FLOOR] {
        network::ip(&format!("link set {device} up"))?;
    }
    for device in [SERVER, FLOOR] {
        network.ip(&format!("link set {device} up"))?;
    }
    network::ip(&format!("addr add {OWN_ADDRESS}/24 dev {OWN}"))?;
    network.ip(&format!("addr add {relay}/24 dev {SERVER}"))?;
    // A flood shall not wait for somebody to be found.
    network::ip(&format!("neigh replace {relay} lladdr {server} dev {OWN} nud permanent"))?;
    network.ip(&format!("neigh replace {OWN_ADDRESS} lladdr {own} dev {SERVER} nud permanent"))?;
    // Answers to the many who ask go the way they came.
    network.ip(&format!("route add default via {OWN_ADDRESS} dev {SERVER}"))
}

/// Has the servers' driver poll, and merge, even without a program of its own.
fn merge(network: &Network) -> bool {
    let done = network.enter().args(["ethtool", "-K", SERVER, "gro", "on"]).output();
    done.is_ok_and(|output| output.status.success())
}

fn station(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// A configuration for `flows` flows, two for each pair of peers.
fn config(flows: usize) -> String {
    let peer = |number| {
        let key = public_key(number);
        format!("[[wireguard.peer]]\nname = \"peer{number}\"\npublic_key = \"{key}\"\n")
    };
    let link = |pair: usize| {
        let (one, other) = (2 * pair, 2 * pair + 1);
        format!("[[wireguard.link]]\npeers = [\"peer{one}\", \"peer{other}\"]\n")
    };
    let peers: String = (0..flows).map(peer).collect();
    let links: String = (0..flows / 2).map(link).collect();
    format!(
        "stun_rate_per_s = {STUN_RATE}\nstun_burst = {STUN_RATE}\n\
         [udp]\nlisten = [\"{ADDRESS}\"]\n{peers}{links}"
    )
}

/// One thread that relays for whoever asks, and nothing else of what coturn can.
fn coturn_line(command: &mut Command, folder: &Path) {
    command.args(["turnserver", "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli"]);
    command.args(["--listening-ip", &ADDRESS.ip().to_string()]);
    command.args(["--relay-ip", &ADDRESS.ip().to_string()]);
    command.args(["--listening-port", &ADDRESS.port().to_string()]);
    command.args(["--relay-threads", "1", "--realm", "bench", "--log-file", "stdout"]);
    command.arg("--pidfile").arg(folder.join("coturn.pid"));
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn first_line(text: Option<String>) -> String {
    let line = text.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    line.unwrap_or_else(|| "absent".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_a_peer_and_two_make_a_link() {
        let config = config(4);
        assert_eq!(config.matches("[[wireguard.peer]]").count(), 4);
        assert!(config.contains("peers = [\"peer2\", \"peer3\"]"));
        assert_eq!(station(SERVER_STATION), "02:00:00:00:00:01");
    }
}
