//! Lines that the programs write, if they are made to: for work on the programs themselves.
//!
//! Owns the choice of another object than the committed one, which `scripts/ebpf-build.sh --debug`
//! makes, and the way of its lines into our log. Only there with the feature `ebpf-log`. The loader
//! calls it.

use std::{env, fs};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

use super::XdpFault;
use super::fault::pin_fault;

/// The variable that names the object.
const OBJECT: &str = "PERIGEE_XDP_OBJECT";

/// The object that the operator of this experiment has named.
pub(super) fn object() -> Result<Option<Vec<u8>>, XdpFault> {
    let Some(path) = env::var_os(OBJECT) else {
        return Ok(None);
    };
    fs::read(&path).map(Some).map_err(|error| pin_fault(path.as_ref(), &error))
}

/// The lines of one object.
pub(super) struct Lines(EbpfLogger<Ours>);

impl Lines {
    /// Takes up what `object` writes, if it does.
    pub(super) fn of(object: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init_with_logger(object, Ours).ok().map(Self)
    }

    /// Tells what has been written since.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

/// Our log, as the library wants it.
struct Ours;

impl Log for Ours {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: "ebpf", "{line}"),
            Level::Warn => tracing::warn!(target: "ebpf", "{line}"),
            Level::Info => tracing::info!(target: "ebpf", "{line}"),
            Level::Debug => tracing::debug!(target: "ebpf", "{line}"),
            Level::Trace => tracing::trace!(target: "ebpf", "{line}"),
        }
    }

    fn flush(&self) {}
}
