//! This relay as a satellite: the key pair by which the primary side knows it, and signs of life.
//!
//! Owns the keys in force and the document that tells the public one. The start loads the key file,
//! SIGHUP loads it again, the pages serve the document, the thread that waits for signals reports.
//! Nothing here is on a relay core, and nothing relayed waits for any of it.

pub mod keys;
pub mod report;

use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::watch;

use crate::fault::OperatorFault;
use keys::Keys;

/// See the module.
#[derive(Debug)]
pub struct Satellite {
    path: PathBuf,
    keys: watch::Sender<Arc<Keys>>,
}

impl Satellite {
    /// The satellite of the key file at `path`, which is made if missing.
    ///
    /// # Errors
    /// As [`Keys::load_or_create`].
    pub fn new(path: PathBuf) -> Result<Self, OperatorFault> {
        let keys = watch::Sender::new(Arc::new(Keys::load_or_create(&path)?));
        Ok(Self { path, keys })
    }

    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.borrow())
    }

    /// The keys in force, and word of others.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Keys>> {
        self.keys.subscribe()
    }

    /// What tells the public key.
    #[must_use]
    pub fn document(&self) -> Bytes {
        self.keys().document().clone()
    }

    /// Loads the key file again.
    ///
    /// # Errors
    /// As [`Keys::load`]; the keys in force stay.
    pub fn reload(&self) -> Result<(), OperatorFault> {
        self.keys.send_replace(Arc::new(Keys::load(&self.path)?));
        Ok(())
    }
}
