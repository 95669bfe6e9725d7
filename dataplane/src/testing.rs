//! A scratch directory and a front for the unit tests of this crate. Only test builds have it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Instant, SystemTime};

use crate::config::{Home, TcpLimits};
use crate::front::bootstrap::Bootstrap;
use crate::front::pages::Site;
use crate::front::{Admission, Front};
use crate::identity::Identity;
use crate::observe::{BuildInfo, Registry};
use crate::relay::{Fabric, Tuning};

/// A directory of its own for one test, removed with its contents when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("dataplane-{}-{number}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            match fs::create_dir(&directory) {
                // Left over from an earlier process of the same number that was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.expect("the temporary directory is writable");
                    return Self(directory);
                }
            }
        }
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the scratch directory is writable");
        path
    }

    /// `text` without the directory's own path, so that a test can state the whole message.
    pub(crate) fn strip(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A front in clear over a fabric of one core that nobody works on.
pub(crate) fn front(handshakes_max: usize) -> Front {
    let registry = Registry::new(1, BuildInfo::new("epoll"), SystemTime::UNIX_EPOCH);
    let registry = Arc::new(registry);
    Front {
        fabric: Fabric::new(Tuning::default(), &registry.cores),
        identity: Identity::fresh().expect("entropy is there"),
        tls: None,
        site: Site {
            satellite: None,
            home: Home::Page,
            derp: true,
            tls_port: None,
            bootstrap: Bootstrap::default(),
            looks: None,
            registry: Arc::clone(&registry),
        },
        registry,
        tcp: TcpLimits {
            write_timeout: None,
            user_timeout: None,
            keepalive: None,
            notsent_lowat_bytes: 128 << 10,
        },
        admission: Admission::new(None, handshakes_max, 10, Instant::now()),
        unready: RwLock::new(Vec::new()),
        draining: AtomicBool::new(false),
        unsteered: AtomicBool::new(false),
    }
}
