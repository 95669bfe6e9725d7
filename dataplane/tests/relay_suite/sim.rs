//! The suite over the simulated driver: one thread, virtual time, a perfect network.

use std::sync::Arc;
use std::time::Duration;

use dataplane::io::sim::{Client, Faults, Net, Sim, SimSocket};
use dataplane::relay::{Fabric, Worker};
use dataplane::udp::Udp;

use crate::harness::{End, Harness, Load};

pub(crate) struct Simulated {
    net: Net,
    workers: Vec<Worker<Sim>>,
}

impl Harness for Simulated {
    type Socket = SimSocket;
    type End = Client;
    const STEPS_MAX: usize = 100_000;
    const HAS_FEW_BUFFERS: bool = false;
    const LATENESS: Duration = Duration::from_millis(1);

    fn start(fabric: &Arc<Fabric<SimSocket>>) -> Self {
        let net = Net::new(1, Faults::NONE);
        let worker = |core| {
            Worker::new(core, Arc::clone(fabric), Sim::new(net.clone()), Udp::default())
                .expect("no ports to watch")
        };
        Self { workers: (0..fabric.cores()).map(worker).collect(), net }
    }

    fn connect(&mut self) -> (Client, SimSocket) {
        self.net.connect()
    }

    fn step(&mut self) -> Load {
        self.workers.iter_mut().fold(Load::default(), |load, worker| {
            worker.round().expect("the simulation goes on");
            worker.check();
            load + Load {
                waiting_packets: worker.waiting_packets(),
                held_bytes: worker.held_bytes(),
            }
        })
    }

    fn run_to_end(self) {
        for worker in self.workers {
            worker.run().expect("the simulation goes on");
        }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.net.now().0)
    }
}

impl End for Client {
    fn write(&mut self, bytes: &[u8]) {
        Self::write(self, bytes);
    }

    fn read(&mut self, into: &mut Vec<u8>) -> bool {
        into.extend(Self::read(self));
        !self.is_ended()
    }

    fn close(&mut self) {
        Self::close(self);
    }

    fn is_held(&self) -> bool {
        !self.is_released()
    }
}
