//! Which core's socket gets a datagram, where several share a port.
//!
//! Owns the SK_REUSEPORT program of one port: WireGuard handshakes go to the first socket, data by
//! receiver index so that a flow stays on one core, the rest by the kernel's own hash. Without it,
//! for which CAP_BPF alone is missing, the kernel's hash does for all. The start of the dataplane
//! calls it once per listen address.

use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{Array, ReusePortSockArray};
use aya::programs::SkReuseport;
use aya::{Ebpf, include_bytes_aligned};

use super::fault::map_fault;
use super::{XdpFault, open};

static OBJECT: &[u8] = include_bytes_aligned!("../../../ebpf/objects/reuseport.o");
/// The program in it.
const PROGRAM: &str = "reuseport";

/// The program of one port. Dropping it leaves the choice as it is until the sockets are closed.
#[derive(Debug)]
pub struct Spread {
    _object: Ebpf,
}

impl Spread {
    /// Spreads the datagrams of the port over `sockets`, bound to it in the order of their cores.
    ///
    /// # Errors
    ///
    /// [`XdpFault::Load`] without CAP_BPF, [`XdpFault::Program`] if the sockets do not share a port.
    pub fn new<S: AsFd + AsRawFd>(sockets: &[S]) -> Result<Self, XdpFault> {
        let mut object = Ebpf::load(OBJECT)?;
        let mut places: ReusePortSockArray<_> = open(&mut object, "SOCKETS")?;
        for (place, socket) in (0..).zip(sockets) {
            places.set(place, socket, 0).map_err(|error| map_fault("SOCKETS", error))?;
        }
        let mut count: Array<_, u32> = open(&mut object, "SPREAD")?;
        let sockets_len = sockets.len() as u32;
        count.set(0, sockets_len, 0).map_err(|error| map_fault("SPREAD", error))?;
        let program = object.program_mut(PROGRAM).expect("the committed object has this program");
        let program: &mut SkReuseport = program.try_into().expect("it is of this type");
        let fault = |error| XdpFault::Program { what: "spreading a port".to_owned(), error };
        program.load().map_err(fault)?;
        if let Some(first) = sockets.first() {
            program.attach(first).map_err(fault)?;
        }
        Ok(Self { _object: object })
    }
}
