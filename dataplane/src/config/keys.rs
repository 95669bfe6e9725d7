//! Every setting, once: its names, its default and its help. File keys, environment variables,
//! flags and the help text all come from this table.

/// Defines [`Key`] and the table behind it.
macro_rules! keys {
    ($($key:ident: $flag:literal, $value:literal, $default:literal, $many:expr, $help:literal;)+) => {
        /// A setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Key { $($key,)+ }

        impl Key {
            pub(crate) const ALL: &[Self] = &[$(Self::$key,)+];

            pub(crate) const fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$key => &Spec { flag: $flag, value: $value, default: $default, separator: $many, help: $help },)+
                }
            }
        }
    };
}

/// What the table says of a setting.
pub(crate) struct Spec {
    /// The flag without its dashes; the other names follow from it.
    pub(crate) flag: &'static str,
    /// What a value looks like, for the help.
    pub(crate) value: &'static str,
    /// The value when nobody sets it, in the form a flag would have. Empty: none.
    pub(crate) default: &'static str,
    /// What separates several values in one flag or variable; `None`: there is one value.
    pub(crate) separator: Option<char>,
    /// One line.
    pub(crate) help: &'static str,
}

const ONE: Option<char> = None;
const LIST: Option<char> = Some(',');
/// A certificate is itself two paths with a comma between them.
const PAIRS: Option<char> = Some(';');

impl Key {
    /// The key in a configuration file. With a dot it stands in a table.
    pub(crate) fn file_name(self) -> String {
        let name = self.spec().flag.replace('-', "_");
        match self {
            Self::UdpListen => name.replacen('_', ".", 1),
            _ => name,
        }
    }

    /// The environment variable.
    pub(crate) fn variable(self) -> String {
        format!("PERIGEE_{}", self.spec().flag.replace('-', "_").to_ascii_uppercase())
    }
}

keys! {
    Cores: "cores", "N|auto|LIST", "auto", ONE,
        "Relay cores: a number, all of them, or these CPUs, as in 2-9,12";
    Io: "io", "auto|uring|epoll", "auto", ONE,
        "How to ask the kernel for input and output";
    Listen: "listen", "ADDR", "[::]:8443", LIST,
        "Serve DERP and HTTP over TLS here; IP:PORT or :PORT, several allowed";
    HttpListen: "http-listen", "ADDR|off", "off", LIST,
        "Serve captive-portal checks and redirects without TLS here";
    StunListen: "stun-listen", "ADDR|off", "[::]:3478", LIST,
        "Serve STUN here, and WireGuard if the file names peers; udp-listen takes its place";
    UdpListen: "udp-listen", "ADDR|off", "", LIST,
        "Serve STUN and WireGuard here; as listen in the table [udp] of the file";
    Derp: "derp", "on|off", "on", ONE,
        "Relay; off leaves HTTP and STUN only";
    Tls: "tls", "on|off", "on", ONE,
        "off serves clear text on every address, for use behind a TLS proxy";
    Hostname: "hostname", "NAME|IP", "", ONE,
        "What clients call this relay; its certificate must be for it [default: 127.0.0.1]";
    Cert: "cert", "CERT.pem,KEY.pem", "", PAIRS,
        "Certificate chain and key, several allowed; without any a self-signed one is made";
    CertDir: "cert-dir", "DIR", "", ONE,
        "Take HOSTNAME.crt and HOSTNAME.key from here instead; made for an IP address without";
    IdentityFile: "key-file", "FILE", "", ONE,
        "Relay identity, as derper keeps it; made if missing. Without it, a new one each start";
    SatelliteKeyFile: "satellite-key-file", "FILE", "", ONE,
        "Key by which the primary side knows this satellite; made if missing. Without it, no satellite";
    PrimaryUrl: "primary-url", "URL", "", LIST,
        "Tell control here that this satellite is there, every 30 s; https:// and a host, several allowed";
    PrimaryCa: "primary-ca", "FILE", "", ONE,
        "Trust the certificates in this PEM file for primary-url, not the system's";
    AccessUrl: "access-url", "URL", "", ONE,
        "Where users reach this satellite, for control to know";
    Home: "home", "blank|URL", "", ONE,
        "Home page: empty for ours, blank, or where to redirect to";
    BootstrapDns: "bootstrap-dns", "NAME", "", LIST,
        "Names to resolve for clients at /bootstrap-dns";
    QueueBytesMax: "queue-bytes-max", "BYTES", "2097152", ONE,
        "Bytes that may wait for one client, in each of its two lanes";
    QueuePacketsMax: "queue-packets-max", "PACKETS", "512", ONE,
        "Packets that may wait for one client, in each of its two lanes";
    QueuedBytesMax: "queued-bytes-max", "BYTES", "268435456", ONE,
        "Bytes that may wait for all clients together";
    WriteTimeoutMs: "write-timeout-ms", "MS", "2000", ONE,
        "Close a client that takes no byte for so long; 0 for never";
    TcpUserTimeoutMs: "tcp-user-timeout-ms", "MS", "15000", ONE,
        "Close a client that acknowledges nothing for so long; 0 for the kernel's way";
    TcpKeepaliveS: "tcp-keepalive-s", "S", "600", ONE,
        "Probe a silent TCP connection after so long; 0 for never";
    NotsentLowatBytes: "notsent-lowat-bytes", "BYTES", "131072", ONE,
        "Unsent bytes the kernel may hold for one client";
    HandshakesMax: "handshakes-max", "N", "8192", ONE,
        "Handshakes under way at a time; the plain port has 256 places of its own";
    AcceptRate: "accept-rate", "PER_S", "0", ONE,
        "Connections accepted a second; 0 for no limit";
    AcceptBurst: "accept-burst", "N", "1024", ONE,
        "Connections accepted at once, where accept-rate limits them";
    SessionsMax: "sessions-max", "N", "1000000", ONE,
        "DERP sessions at a time";
    StunRatePerS: "stun-rate-per-s", "PER_S", "1000", ONE,
        "STUN answers a second for one source prefix";
    StunBurst: "stun-burst", "N", "2000", ONE,
        "STUN answers at once for one source prefix";
    Xdp: "xdp", "auto|native|generic|tcx|off", "auto", ONE,
        "How to answer STUN and forward WireGuard before the kernel's stack, on xdp-interface";
    XdpInterface: "xdp-interface", "IF", "", LIST,
        "Interfaces that UDP comes in by; without any there is no XDP";
    XdpPin: "xdp-pin", "DIR", "", ONE,
        "Folder on a bpffs where program and flows stay over a restart; removing it ends them";
    Steer: "steer", "unix:PATH|tls://HOST:PORT", "", LIST,
        "Go by what control says there; of several, tried in order, by the first that answers";
    SteerNode: "steer-node", "NAME", "", ONE,
        "The name under which control knows this relay [default: the host's]";
    SteerState: "steer-state", "FILE", "", ONE,
        "Keep what control said last, keys among it, for a start without control";
    SteerCert: "steer-cert", "FILE", "", ONE,
        "For tls://: the certificate by which control knows this relay, as PEM";
    SteerKeyFile: "steer-key", "FILE", "", ONE,
        "For tls://: its private key, as PEM";
    SteerCa: "steer-ca", "FILE", "", ONE,
        "For tls://: who vouches for control's certificate, as PEM";
    Log: "log", "FILTER", "info", ONE,
        "What to log: a level, or target=level pairs";
    LogFormat: "log-format", "human|json", "human", ONE,
        "How to log";
}
