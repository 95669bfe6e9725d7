//! Network namespaces of a test's own: one for the relay, one for each host, cables between them.
//!
//! Owns every namespace, cable and address it makes, and takes them down when dropped, also after a
//! panic. It never touches an interface of the machine. Their names are this process's alone. The
//! tests of the fast path call it.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{panic, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::skip::skip;
use crate::wireguard;

/// Has a program that passes everything.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/objects/lab.o");

/// Where the relay listens: its own namespace has every port free.
pub const PORT: u16 = 3478;

/// What is missing, and what said so.
type Missing = (&'static str, String);

/// A version of the internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a network is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The relay's interfaces `lan1`, `lan2` and so on, each by the names of the hosts behind it. One
    /// host has the cable to itself, several have a switch.
    pub lans: &'a [&'a [&'a str]],
    /// Whether hosts send whole checksums, as a real network card does.
    pub whole_checksums: bool,
    /// Whether XDP is to be tried: then the far ends of the relay's cables get a program, too,
    /// without which virtual cables take nothing that XDP transmits.
    pub xdp: bool,
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// A host on one of the relay's networks, on two addresses of each family.
#[derive(Debug)]
pub struct Host {
    /// Where it lives.
    pub space: Namespace,
    name: String,
    lan: u8,
    number: u8,
}

/// See the module.
#[derive(Debug)]
pub struct Net {
    /// Where the relay lives.
    pub relay: Namespace,
    hosts: Vec<Host>,
    _switches: Vec<Namespace>,
}

impl Namespace {
    fn new(name: String) -> Result<Self, Missing> {
        call(Command::new("ip").args(["netns", "add", &name]), "")?;
        Ok(Self { name })
    }

    /// What `ip` says to these lines, each a command of it.
    ///
    /// # Errors
    /// That it is missing, or refuses one.
    fn try_ip(&self, lines: &str) -> Result<String, Missing> {
        call(Command::new("ip").args(["-o", "-n", &self.name, "-batch", "-"]), lines)
    }

    /// What `ip` says to these lines, each a command of it.
    ///
    /// # Panics
    /// When it refuses one.
    pub fn ip(&self, lines: &str) -> String {
        let said = self.try_ip(lines);
        said.unwrap_or_else(|(_, why)| panic!("{}: {lines}: {why}", self.name))
    }

    /// Runs `task` on a thread in it. What it starts stays in it; so do sockets.
    ///
    /// # Panics
    /// When `task` does.
    pub fn within<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let place = File::open(Path::new("/run/netns").join(&self.name)).expect("it was made");
        let run = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(place.as_fd(), kind).expect("this process may make them");
            task()
        };
        let name = thread::current().name().unwrap_or("a test").to_owned();
        let done = thread::scope(|scope| {
            let thread = thread::Builder::new().name(name).spawn_scoped(scope, run);
            thread.expect("there are threads").join()
        });
        done.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // One left over harms nobody, and its test has its verdict.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

impl Host {
    /// Its usual address.
    #[must_use]
    pub const fn address(&self, family: Family) -> IpAddr {
        address(family, self.lan, self.number + 2)
    }

    /// Its other address.
    #[must_use]
    pub const fn other_address(&self, family: Family) -> IpAddr {
        address(family, self.lan, self.number + 102)
    }

    /// Where the relay is for it.
    #[must_use]
    pub const fn relay(&self, family: Family) -> SocketAddr {
        SocketAddr::new(address(family, self.lan, 1), PORT)
    }

    /// A new socket of its usual address that hears the relay alone.
    #[must_use]
    pub fn socket(&self, family: Family) -> UdpSocket {
        self.socket_at(self.address(family))
    }

    /// A new socket of this address of it that hears the relay alone.
    #[must_use]
    pub fn socket_at(&self, own: IpAddr) -> UdpSocket {
        let family = if own.is_ipv4() { Family::V4 } else { Family::V6 };
        self.space.within(|| wireguard::socket(own, self.relay(family)))
    }
}

impl Net {
    /// The network that is planned, or `None` where it may not be made, which is said.
    ///
    /// # Panics
    /// When `PERIGEE_REQUIRE` names what is missing: `netns`, or `bpf` for XDP.
    #[must_use]
    pub fn new(plan: &Plan<'_>) -> Option<Self> {
        Self::make(plan).map_err(|(what, why)| skip(what, &why)).ok()
    }

    /// The host of this name.
    ///
    /// # Panics
    /// When the plan had none.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("a host of the plan")
    }

    fn make(plan: &Plan<'_>) -> Result<Self, Missing> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let space =
            |role: &str| Namespace::new(format!("perigee-{}-{made}-{role}", std::process::id()));
        let mut net = Self { relay: space("relay")?, hosts: Vec::new(), _switches: Vec::new() };
        net.relay.try_ip("link set lo up")?;
        for (lan, names) in (1..).zip(plan.lans) {
            net.lay_cables(lan, names.len())?;
            if plan.whole_checksums {
                net.relay.within(|| whole_checksums(lan, names.len()))?;
            }
            for (number, name) in (0..).zip(*names) {
                let host = Host { space: space(name)?, name: (*name).to_owned(), lan, number };
                net.plug_in(&host)?;
                net.hosts.push(host);
            }
            if names.len() == 1 {
                pass(&net.host(names[0]).space, "eth0", plan.xdp)?;
            } else {
                let switch = space(&format!("switch{lan}"))?;
                net.connect(lan, names.len(), &switch)?;
                pass(&switch, "uplink", plan.xdp)?;
                net._switches.push(switch);
            }
        }
        Ok(net)
    }

    /// All cables of a network, every end still with the relay: `lanL` to the first of the hosts, or
    /// to the switch, and then `hostN` and `portN`.
    fn lay_cables(&self, lan: u8, hosts: usize) -> Result<(), Missing> {
        let far_end = if hosts == 1 { "host0" } else { "uplink" };
        let (v4, v6) = (address(Family::V4, lan, 1), address(Family::V6, lan, 1));
        let mut lines = format!(
            "link add lan{lan} type veth peer name {far_end}\n\
             address add {v4}/24 dev lan{lan}\naddress add {v6}/64 dev lan{lan} nodad\n\
             link set lan{lan} up\n"
        );
        if hosts > 1 {
            for number in 0..hosts {
                lines += &format!("link add host{number} type veth peer name port{number}\n");
            }
        }
        self.relay.try_ip(&lines).map(|_| ())
    }

    /// Gives `host` its end of its cable.
    fn plug_in(&self, host: &Host) -> Result<(), Missing> {
        let Host { number, space, .. } = host;
        self.relay.try_ip(&format!("link set host{number} netns {} name eth0", space.name))?;
        let mut lines = String::from("link set lo up\nlink set eth0 up\n");
        for (family, length) in [(Family::V4, "24"), (Family::V6, "64 nodad")] {
            for own in [host.address(family), host.other_address(family)] {
                lines += &format!("address add {own}/{length} dev eth0\n");
            }
        }
        space.try_ip(&lines).map(|_| ())
    }

    /// Makes `switch` one of the relay's cable and the hosts' ports.
    fn connect(&self, lan: u8, hosts: usize, switch: &Namespace) -> Result<(), Missing> {
        let ports: Vec<_> = (0..hosts).map(|number| format!("port{number}")).collect();
        let ports = ports.iter().map(String::as_str).chain(["uplink"]);
        let mut bridge =
            format!("link add lan{lan} type bridge mcast_snooping 0\nlink set lan{lan} up\n");
        for port in ports {
            self.relay.try_ip(&format!("link set {port} netns {}", switch.name))?;
            bridge += &format!("link set {port} master lan{lan}\nlink set {port} up\n");
        }
        switch.try_ip(&bridge).map(|_| ())
    }
}

/// Host `number` of a network, the relay being the first.
const fn address(family: Family, lan: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 77, lan, number)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, lan as u16, 0, 0, 0, number as u16)),
    }
}

/// Has the ends `hostN`, which are in this thread's namespace, leave no checksum to a network card.
fn whole_checksums(lan: u8, hosts: usize) -> Result<(), Missing> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tx_checksums.py");
    let ends = (0..hosts).map(|number| format!("host{number}"));
    let mut command = Command::new("python3");
    call(command.args([script, "off"]).args(ends), "")
        .map_err(|(_, why)| ("python3", format!("lan{lan}: {why}")))?;
    Ok(())
}

/// Attaches a program that passes everything to an interface, if `wanted`.
fn pass(space: &Namespace, interface: &str, wanted: bool) -> Result<(), Missing> {
    if wanted {
        let line = format!("link set dev {interface} xdpdrv object {LAB} program pass");
        space.try_ip(&line).map_err(|(_, why)| ("bpf", why))?;
    }
    Ok(())
}

/// Runs `command` with `input`, and returns what it wrote.
fn call(command: &mut Command, input: &str) -> Result<String, Missing> {
    let missing = |why: String| ("netns", why);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(|error| missing(format!("{command:?}: {error}")))?;
    let mut lines = child.stdin.take().expect("standard input is piped");
    // One that ends before it has read all says why.
    let _ = lines.write_all(input.as_bytes());
    drop(lines);
    let output = child.wait_with_output().expect("our own child can be waited for");
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(missing(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
