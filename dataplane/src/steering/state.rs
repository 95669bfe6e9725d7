//! The last good snapshot on disk: one line of JSON in a file of the owner's, for it holds keys.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use steer::Snapshot;
use zeroize::Zeroizing;

use crate::fault::OperatorFault;
use crate::identity::write_private;

/// What is kept at `path` and since when; `None` where nothing is.
///
/// # Errors
/// When it is unreadable or no snapshot. To go on without it could let in clients that it keeps out.
pub(super) fn read(path: &Path) -> Result<Option<(Snapshot, SystemTime)>, OperatorFault> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let fix = "steer_state must be a file that this process may read and write";
            return Err(OperatorFault::file(path, &error, fix));
        }
    };
    let snapshot = Snapshot::read(&text).map_err(|refusal| {
        OperatorFault::config(format_args!(
            "{}: is no snapshot ({refusal}); remove it to know no clients and no peers until control answers",
            path.display()
        ))
    })?;
    // A file system without times makes it as old as now.
    let since =
        fs::metadata(path).and_then(|it| it.modified()).unwrap_or_else(|_| SystemTime::now());
    Ok(Some((snapshot, since)))
}

/// Keeps `snapshot` at `path`; a reader sees all of it or all of what was there before.
///
/// # Errors
/// The kernel's; what was there before then stays.
pub(super) fn write(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let text = Zeroizing::new(snapshot.to_text());
    write_private(path, text.as_bytes())
}
