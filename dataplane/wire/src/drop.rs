//! The one list of reasons for not sending a packet (invariant 4).

/// Why a packet was dropped. The labels are those of stock derper where it has the reason too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// No session has the destination key.
    UnknownDest,
    /// The destination's session ended while the packet waited in its queue.
    GoneDisconnected,
    /// The oldest packet of a full queue of a DERP client made room for a newer one.
    QueueHead,
    /// The packet did not fit the DERP client's queue at all.
    QueueTail,
    /// The write that carried the packet failed.
    WriteError,
    /// The destination has several sessions and none is active.
    DupClient,
    /// The route named a session slot that another session has since taken (invariant 8).
    StaleSlot,
    /// A datagram that is neither STUN nor anything else this port serves.
    NotStun,
    /// A STUN message that is not a well-formed binding request.
    BadStun,
    /// The source prefix sent STUN requests faster than its rate class allows.
    RateLimited,
    /// The kernel refused to send the STUN answer, or what was to be relayed of WireGuard.
    SendFailed,
    /// A WireGuard message of a wrong length.
    BadWireguard,
    /// A WireGuard initiation that is for no registered peer.
    UnknownPeer,
    /// A WireGuard message for a session or handshake that the relay does not know from there.
    UnknownIndex,
    /// A WireGuard response to somebody who may not talk to its sender.
    NotLinked,
    /// A WireGuard initiation for a peer that has not been heard of yet.
    NoEndpoint,
    /// A WireGuard initiation from where too many were for no registered peer.
    Ignored,
    /// The operator has STUN left unanswered, so that clients look for another home.
    Shed,
    /// A WireGuard handshake whose addressee was not found before the work that may go into looking
    /// was spent.
    TrialsSpent,
    /// A WireGuard message that found too many others on their way to the core of the relay.
    RelayBusy,
    /// A WireGuard message from one of our own addresses.
    OwnAddress,
}

impl DropReason {
    /// Every reason, in the order of its counter index.
    pub const ALL: [Self; 21] = [
        Self::UnknownDest,
        Self::GoneDisconnected,
        Self::QueueHead,
        Self::QueueTail,
        Self::WriteError,
        Self::DupClient,
        Self::StaleSlot,
        Self::NotStun,
        Self::BadStun,
        Self::RateLimited,
        Self::SendFailed,
        Self::BadWireguard,
        Self::UnknownPeer,
        Self::UnknownIndex,
        Self::NotLinked,
        Self::NoEndpoint,
        Self::Ignored,
        Self::Shed,
        Self::TrialsSpent,
        Self::RelayBusy,
        Self::OwnAddress,
    ];

    /// Number of reasons, the length of a counter array.
    pub const COUNT: usize = Self::ALL.len();

    /// The metric label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownDest => "unknown_dest",
            Self::GoneDisconnected => "gone_disconnected",
            Self::QueueHead => "queue_head",
            Self::QueueTail => "queue_tail",
            Self::WriteError => "write_error",
            Self::DupClient => "dup_client",
            Self::StaleSlot => "stale_slot",
            Self::NotStun => "not_stun",
            Self::BadStun => "bad_stun",
            Self::RateLimited => "rate_limited",
            Self::SendFailed => "send_failed",
            Self::BadWireguard => "bad_wireguard",
            Self::UnknownPeer => "unknown_peer",
            Self::UnknownIndex => "unknown_index",
            Self::NotLinked => "not_linked",
            Self::NoEndpoint => "no_endpoint",
            Self::Ignored => "ignored",
            Self::Shed => "shed",
            Self::TrialsSpent => "trials_spent",
            Self::RelayBusy => "relay_busy",
            Self::OwnAddress => "own_address",
        }
    }

    /// Index into a counter array of [`DropReason::COUNT`] cells.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

const _: () = {
    let mut i = 0;
    while i < DropReason::COUNT {
        assert!(DropReason::ALL[i].index() == i);
        i += 1;
    }
};
