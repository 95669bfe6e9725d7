//! The closed label sets. A new value is a new variant here, and its series then exists at zero.

use wire::drop::DropReason;

/// Defines a label set: an enum, its values in index order, their number and their texts.
macro_rules! label_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            /// Every value, in the order of its counter index.
            pub const ALL: &[Self] = &[$(Self::$value,)+];
            /// Number of values, the length of a counter array.
            pub const COUNT: usize = Self::ALL.len();

            /// The metric label value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }

            /// Index into a counter array of `COUNT` cells.
            #[inline]
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label_set! {
    /// Whether a relayed packet looks like disco, which has its own queue lane.
    PacketKind {
        /// A path discovery packet.
        Disco => "disco",
        /// Anything else.
        Other => "other",
    }
}

label_set! {
    /// Why a session ended.
    CloseReason {
        /// The client closed its side.
        Eof => "eof",
        /// The client broke the protocol or its TLS.
        PeerFault => "peer_fault",
        /// A write made no progress in time.
        WriteTimeout => "write_timeout",
        /// Its key had too many sessions, and this one had not written for longest.
        Duplicate => "duplicate",
        /// Its client is admitted no longer.
        Revoked => "revoked",
        /// The relay is stopping.
        Shutdown => "shutdown",
        /// The socket failed.
        IoError => "io_error",
    }
}

label_set! {
    /// Address family of a datagram; a v4-mapped address is IPv4.
    Family {
        /// IPv4.
        V4 => "ipv4",
        /// IPv6.
        V6 => "ipv6",
    }
}

label_set! {
    /// What became of a datagram on a STUN port.
    StunOutcome {
        /// Answered.
        Success => "success",
        /// Not STUN.
        NotStun => "not_stun",
        /// STUN, but no well-formed binding request.
        BadStun => "bad_stun",
        /// Its source prefix asked too often.
        RateLimited => "rate_limited",
        /// The relay is draining.
        Shed => "shed",
        /// The kernel refused the answer.
        WriteError => "write_error",
    }
}

impl StunOutcome {
    /// The drop reason, unless the datagram was answered.
    #[inline]
    #[must_use]
    pub const fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::Success => None,
            Self::NotStun => Some(DropReason::NotStun),
            Self::BadStun => Some(DropReason::BadStun),
            Self::RateLimited => Some(DropReason::RateLimited),
            Self::Shed => Some(DropReason::Shed),
            Self::WriteError => Some(DropReason::SendFailed),
        }
    }
}

label_set! {
    /// Why data of a flow goes through the sockets although XDP is there.
    SocketReason {
        /// The peers are of different address families.
        Family => "family",
        /// An address that means something on one link only, or one of ours that has no number.
        Address => "address",
        /// The kernel has no route, or one that is more than a frame to a station.
        Route => "route",
        /// The kernel does not know the station of the next hop.
        Neighbour => "neighbour",
        /// The way leads by an interface without a program.
        Interface => "interface",
        /// The way is narrower than another interface that packets come in by.
        Mtu => "mtu",
        /// Another flow of the same peer to another address of ours has the entry.
        Twin => "twin",
        /// The map has no place.
        MapFull => "map_full",
        /// For a moment, so that the kernel asks whether the next hop is still there.
        Probing => "probing",
        /// A map or the kernel's tables could not be used.
        Fault => "fault",
    }
}

label_set! {
    /// What a listener speaks.
    Scheme {
        /// Everything, over TLS where the relay has certificates.
        Main => "main",
        /// The few pages of the plain port.
        Plain => "plain",
    }
}

label_set! {
    /// What happened in the WireGuard relay.
    WireguardEvent {
        /// A handshake was completed by its first data.
        Completed => "completed",
        /// A peer was found at another place than before.
        Moved => "moved",
        /// A waiting handshake made room for a newer one.
        HandshakeEvicted => "handshake_evicted",
        /// A place from which somebody asked made room for a newer one.
        AskerEvicted => "asker_evicted",
        /// A session made room for a newer one.
        SessionEvicted => "session_evicted",
        /// An offence was not noted, for want of room.
        StrikeUnrecorded => "strike_unrecorded",
    }
}

label_set! {
    /// A limit that closes a connection at once.
    Limit {
        /// `accept_rate` and `accept_burst`.
        AcceptRate => "accept_rate",
        /// `handshakes_max`.
        Handshakes => "handshakes_max",
        /// First requests under way on the plain port.
        PlainPort => "plain_port",
        /// Connections of one port that hyper serves.
        Http => "http_connections",
        /// `sessions_max`.
        Sessions => "sessions_max",
        /// The kernel has no descriptor, or no memory, left for it.
        FileDescriptors => "file_descriptors",
    }
}

label_set! {
    /// How a TLS handshake ended.
    HandshakeResult {
        /// The connection is up.
        Ok => "ok",
        /// The peer broke off, broke the protocol, or had nothing in common with us.
        PeerFault => "peer_fault",
        /// It took too long.
        Timeout => "timeout",
        /// The socket failed.
        IoError => "io_error",
    }
}

label_set! {
    /// TLS version of a connection; the labels are derper's.
    TlsVersion {
        /// TLS 1.2.
        Tls12 => "1.2",
        /// TLS 1.3.
        Tls13 => "1.3",
        /// Not agreed on yet.
        Unknown => "unknown",
    }
}

label_set! {
    /// Why a DERP upgrade did not lead to a session.
    LoginFailure {
        /// The client did not introduce itself in time.
        Timeout => "timeout",
        /// Its introduction was wrong.
        Hello => "bad_hello",
        /// It broke WebSocket, or asked for something else over it.
        WebSocket => "websocket",
        /// It left.
        Gone => "gone",
        /// `sessions_max`.
        Full => "sessions_max",
        /// Its key is not registered.
        NotAdmitted => "not_admitted",
        /// The relay is draining.
        Draining => "draining",
        /// The socket failed.
        IoError => "io_error",
    }
}

label_set! {
    /// How a connection became a DERP session.
    Upgrade {
        /// Fast start: no HTTP answer.
        Fast => "fast",
        /// HTTP upgrade to raw DERP.
        Raw => "raw",
        /// WebSocket.
        WebSocket => "websocket",
    }
}

label_set! {
    /// What an HTTP request asked for.
    Route {
        /// `/derp`, upgraded or not.
        Derp => "derp",
        /// `/derp/probe` and `/derp/latency-check`.
        Probe => "probe",
        /// `/generate_204`.
        Generate204 => "generate_204",
        /// `/bootstrap-dns`.
        BootstrapDns => "bootstrap_dns",
        /// `/robots.txt`.
        Robots => "robots",
        /// `/healthz`, `/livez` and `/readyz`.
        Health => "health",
        /// `/metrics`.
        Metrics => "metrics",
        /// `/debug` and what is below it.
        Debug => "debug",
        /// `/api/private/satellites/key`.
        SatelliteKey => "satellite_key",
        /// The CONNECT method.
        Connect => "connect",
        /// The home page, which answers every other path.
        Home => "home",
        /// A redirection from the plain port to the TLS port.
        Redirect => "redirect",
        /// A request that HTTP does not allow.
        Bad => "bad",
    }
}
