//! What the tests of several modules need.

pub(crate) mod postgres;

use std::path::{Path, PathBuf};

/// A folder of its own for a test, gone when the test ends.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let name = format!("perigee-control-{}", crate::token::new_id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("the temporary folder takes folders");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
