//! The yardstick programs in the kernel: the generator, its floor and the sinks.
//!
//! Owns the loaded object and its maps; everything detaches when it is dropped. Must never touch an
//! interface but those it is told of. Shapes of the maps are those of `ebpf/src/flood.rs`.

use anyhow::{Context as _, Result, ensure};
use aya::maps::xdp::DevMap;
use aya::maps::{Array, Map, MapError, PerCpuArray};
use aya::programs::{
    SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
};
use aya::{Ebpf, include_bytes_aligned};
use rustix::net::netdevice::name_to_index;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;

/// What `scripts/ebpf-build.sh` makes.
static OBJECT: &[u8] = include_bytes_aligned!("../../../ebpf/objects/flood.o");

/// Bytes at the head of a frame in which the frames of a load may differ.
pub(super) const HEAD_LEN: usize = 80;
/// Heads at most.
pub(super) const HEADS_MAX: usize = 4096;
/// Bytes by which the frame of a test run is longer than what is sent.
const SPARE_LEN: usize = 4;
/// Frames that enter the receiver's ring together. Fewer than one poll of a driver takes, so that the
/// poll ends and merges nothing into runs but what is among these.
const BATCH: u32 = 32;

/// What a sink takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Port it comes from; 0 for any.
    pub(super) source: u16,
    /// First and last port it may go to.
    pub(super) targets: [u16; 2],
    /// The payload's first four bytes.
    pub(super) word: [u8; 4],
}

/// The programs and their maps.
pub(super) struct Lab {
    object: Ebpf,
}

impl Lab {
    /// Loads them; needs the capabilities of XDP.
    pub(super) fn load() -> Result<Self> {
        let mut object = Ebpf::load(OBJECT).context("loading the yardstick programs")?;
        for name in ["generate", "pass", "discard", "sink"] {
            xdp(&mut object, name)?.load()?;
        }
        Ok(Self { object })
    }

    /// Attaches the program `name` to `interface` of our network, in the driver.
    pub(super) fn attach(&mut self, name: &str, interface: &str) -> Result<()> {
        let program = xdp(&mut self.object, name)?;
        program
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("{name}, {interface}"))?;
        Ok(())
    }

    /// The same in the network that process `pid` is in.
    pub(super) fn attach_in(&mut self, pid: u32, name: &str, interface: &str) -> Result<()> {
        inside(pid, || self.attach(name, interface))
    }

    /// Attaches the sink behind the stack's door.
    pub(super) fn attach_stack_sink(&mut self, interface: &str) -> Result<()> {
        let program = self.object.program_mut("sink_stack").context("no such program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        program.attach(interface, TcAttachType::Ingress).context("attaching the sink")?;
        Ok(())
    }

    /// Lets a load leave by `interface`, as `slot`.
    pub(super) fn set_exit(&mut self, slot: u32, interface: &str) -> Result<()> {
        let any = UdpSocket::bind("0.0.0.0:0")?;
        let index = name_to_index(&any, interface).context("no such interface")?;
        let mut map: DevMap<_> = open(&mut self.object, "EXIT")?;
        Ok(map.set(slot, index, None, 0)?)
    }

    /// The frames whose heads are sent in turn; their number is a power of two.
    pub(super) fn set_heads(&mut self, frames: &[&[u8]]) -> Result<()> {
        let count = frames.len();
        ensure!(count.is_power_of_two() && count <= HEADS_MAX, "{count} is no number of heads");
        let mut map: Array<_, [u8; HEAD_LEN]> = open(&mut self.object, "HEADS")?;
        for (at, frame) in (0..).zip(frames) {
            let head = frame.first_chunk().context("a frame is shorter than a head")?;
            map.set(at, head, 0)?;
        }
        Ok(())
    }

    /// How to send from now on: so many heads in turn, skipping so many frames for each one sent.
    pub(super) fn set_course(&mut self, heads: usize, skipped: u32, slot: u32) -> Result<()> {
        let mut map: Array<_, [u32; 3]> = open(&mut self.object, "COURSE")?;
        Ok(map.set(0, [heads as u32 - 1, skipped, slot], 0)?)
    }

    /// What the sink takes from now on; nothing if `None`.
    pub(super) fn want(&mut self, wanted: Option<Wanted>) -> Result<()> {
        let value = wanted.map_or([0; 4], |wanted| {
            let [first, last] = wanted.targets.map(u32::from);
            [u32::from(wanted.source), first, last, u32::from_ne_bytes(wanted.word)]
        });
        let mut map: Array<_, [u32; 4]> = open(&mut self.object, "WANTED")?;
        Ok(map.set(0, value, 0)?)
    }

    /// Frames sent so far.
    pub(super) fn sent(&mut self) -> Result<u64> {
        self.tally("TURN").map(|[sent, _]| sent)
    }

    /// Packets that came so far, and packets that came with something else in them.
    pub(super) fn seen(&mut self) -> Result<[u64; 2]> {
        self.tally("SEEN")
    }

    fn tally(&mut self, name: &str) -> Result<[u64; 2]> {
        let map: PerCpuArray<_, [u64; 2]> = open(&mut self.object, name)?;
        let values = map.get(&0, 0)?;
        Ok(values.iter().fold([0; 2], |[a, b], [c, d]| [a + c, b + d]))
    }

    /// Has the kernel run the generator `count` times over `frame`.
    pub(super) fn run(&mut self, frame: &[u8], count: u32) -> Result<()> {
        let longer = [frame, &[0; SPARE_LEN]].concat();
        let options = TestRunOptions {
            data_in: Some(&longer),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        xdp(&mut self.object, "generate")?.test_run(options).context("running the generator")?;
        Ok(())
    }
}

/// Does `work` on a thread in the network that process `pid` is in.
pub(super) fn inside<T: Send>(pid: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let network = File::open(format!("/proc/{pid}/ns/net")).context("no such network")?;
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        done.join().ok().context("a thread panicked")?
    })
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn open<'a, M>(object: &'a mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<&'a mut Map, Error = MapError>,
{
    Ok(M::try_from(object.map_mut(name).with_context(|| format!("no map {name}"))?)?)
}
