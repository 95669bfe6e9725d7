//! Faults an operator can mend, and the exit codes that `control` ends with.
//!
//! Owns [`OperatorFault`]: one line that names what is wrong, where, and the fix. Settings, the
//! store, the server's start and every command return it; `main` prints it. What a caller of the
//! API did wrong is a [`crate::serve::problem::Problem`] instead.

use std::fmt::Display;
use std::io;
use std::path::Path;

use crate::store::StoreFault;

/// Exit codes, for scripts and service managers; from 64 up the numbers are those of sysexits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Something failed that no other code describes.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The server understood and refused: a name is taken, a field is wrong, a revision is old.
    Refused = 3,
    /// There is no such thing.
    NotFound = 4,
    /// Something this needs is not there, such as a running `control serve`.
    Unavailable = 69,
    /// Something is taken, busy or full for now: try again.
    TryAgain = 75,
    /// A privilege is missing.
    Privilege = 77,
    /// A setting, a file or the database is wrong.
    Config = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// A fault for the operator to mend.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OperatorFault {
    message: String,
    code: ExitCode,
}

impl OperatorFault {
    /// A fault that ends the process with `code`; `message` becomes one line.
    pub fn new(code: ExitCode, message: impl Display) -> Self {
        let message = message.to_string();
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { message: harmless(&line, &[]), code }
    }

    /// A wrong command line.
    pub fn usage(message: impl Display) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// A wrong setting, file or database.
    pub fn config(message: impl Display) -> Self {
        Self::new(ExitCode::Config, message)
    }

    /// A failure that no other code describes.
    pub fn failed(message: impl Display) -> Self {
        Self::new(ExitCode::Failed, message)
    }

    /// A failed operation on `path`.
    pub fn file(path: &Path, error: &io::Error, fix: impl Display) -> Self {
        let path = path.display();
        if is_full(error) {
            return Self::new(ExitCode::TryAgain, format_args!("{path}: {}", StoreFault::Full));
        }
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => ExitCode::Privilege,
            _ => ExitCode::Config,
        };
        Self::new(code, format_args!("{path}: {}; {fix}", words(error)))
    }

    /// A failed bind of `address`, which the setting `key` asked for.
    pub fn bind(key: &str, address: impl Display, error: &io::Error) -> Self {
        let (code, fix) = match error.kind() {
            io::ErrorKind::AddrInUse => {
                (ExitCode::TryAgain, "stop the other process or choose another address")
            }
            io::ErrorKind::PermissionDenied => {
                (ExitCode::Privilege, "choose a place this user may use")
            }
            io::ErrorKind::AddrNotAvailable => (ExitCode::Config, "choose an address of this host"),
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::InvalidInput => (ExitCode::Config, "choose another place"),
            _ => (ExitCode::Failed, "choose another address"),
        };
        Self::new(code, format_args!("{key}: cannot listen on {address}: {}; {fix}", words(error)))
    }

    /// The code to exit with.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        self.code
    }
}

/// `text` without what a terminal obeys, which a stranger's may hold, but for the letters in `kept`.
pub(crate) fn harmless(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() && !kept.contains(&letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// Whether this is want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What is wrong with the path of a socket that the kernel does not take.
pub(crate) const SOCKET_LONG: &str =
    "the path is longer than the 107 bytes that a socket's may have";

/// The text of an I/O error without the number that the standard library appends.
pub(crate) fn words(error: &io::Error) -> String {
    plain(&error.to_string())
}

/// What a certificate is that nobody here vouches for.
pub(crate) const UNTRUSTED: &str = "of no authority that is trusted here";

/// The text of an error of the system or of TLS, without what is for programmers.
pub(crate) fn plain(text: &str) -> String {
    let text = text.split(" (os error ").next().unwrap_or(text);
    if text.contains("without sending TLS close_notify") {
        return "the connection was cut off".to_owned();
    }
    let text = text.to_lowercase().replace("unknownissuer", UNTRUSTED);
    match text.split_once("other(othererror(causedasendentity))") {
        Some((before, after)) => format!("{before}an authority's, and no server's{after}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_with_its_code() {
        let fault = OperatorFault::config("a\u{1b}[31m");
        assert_eq!(fault.to_string(), r"a\u{1b}[31m");
        let fault = OperatorFault::config("a\n  b\r\nc");
        assert_eq!((fault.to_string().as_str(), fault.code()), ("a b c", ExitCode::Config));
        let refused = io::Error::from_raw_os_error(13);
        let fault = OperatorFault::file(Path::new("control.db"), &refused, "make it readable");
        assert_eq!(fault.to_string(), "control.db: permission denied; make it readable");
        assert_eq!(fault.code(), ExitCode::Privilege);
        let full = io::Error::from_raw_os_error(28);
        let fault = OperatorFault::file(Path::new("control.lock"), &full, "make it writable");
        assert_eq!(fault.to_string(), "control.lock: the disk is full; free some space");
        assert_eq!(fault.code(), ExitCode::TryAgain);
        let taken = io::Error::from_raw_os_error(98);
        assert_eq!(
            plain("invalid peer certificate: UnknownIssuer"),
            "invalid peer certificate: of no authority that is trusted here"
        );
        assert_eq!(
            plain("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))"),
            "invalid peer certificate: an authority's, and no server's"
        );
        assert_eq!(harmless("a\u{1b}[31m\nb\u{9b}", &['\n']), "a\\u{1b}[31m\nb\\u{9b}");
        let cut = "peer closed connection without sending TLS close_notify: https://docs.rs/";
        assert_eq!(plain(cut), "the connection was cut off");
        assert_eq!(OperatorFault::bind("listen", ":1", &taken).code(), ExitCode::TryAgain);
    }
}
