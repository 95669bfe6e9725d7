//! Faults an operator can mend, and the exit codes they end a start with.
//!
//! Owns [`OperatorFault`]: one line that names the file or key and the fix. It never reports what a
//! peer did. Configuration, certificates, identity and binding return it; `main` prints it.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// Exit codes of the process, documented for service managers (the numbers are those of sysexits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Fine = 0,
    /// Something failed that no other code describes.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A kernel feature or another dependency is missing.
    Unavailable = 69,
    /// A resource is taken for now, such as a port another process holds: try again.
    TryAgain = 75,
    /// A privilege is missing.
    Privilege = 77,
    /// The configuration, a certificate or a key file is wrong.
    Config = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// A fault of the installation, for the operator to mend.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OperatorFault {
    message: String,
    code: ExitCode,
}

impl OperatorFault {
    /// A fault with this exit code. `message` is one line: what is wrong, where, and the fix.
    pub fn new(code: ExitCode, message: impl Display) -> Self {
        Self { message: one_line(&message.to_string()), code }
    }

    /// A wrong command line.
    pub fn usage(message: impl Display) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// A wrong configuration, certificate or key.
    pub fn config(message: impl Display) -> Self {
        Self::new(ExitCode::Config, message)
    }

    /// A failed operation on `path`. A refusal by permissions exits as a missing privilege.
    pub fn file(path: &Path, fault: &io::Error, fix: impl Display) -> Self {
        let code = match fault.kind() {
            io::ErrorKind::PermissionDenied => ExitCode::Privilege,
            _ => ExitCode::Config,
        };
        Self::new(code, format_args!("{}: {}; {fix}", path.display(), reason(fault)))
    }

    /// A failed bind of `address`, which `key` asked for.
    pub fn bind(key: &str, address: impl Display, fault: &io::Error) -> Self {
        let (code, fix) = match fault.kind() {
            io::ErrorKind::AddrInUse => {
                (ExitCode::TryAgain, "stop the other process or choose another port")
            }
            io::ErrorKind::PermissionDenied => {
                (ExitCode::Privilege, "grant CAP_NET_BIND_SERVICE or choose a port from 1024 up")
            }
            io::ErrorKind::AddrNotAvailable => (ExitCode::Config, "choose an address of this host"),
            _ => (ExitCode::Failed, "choose another address"),
        };
        Self::new(code, format_args!("{key}: cannot listen on {address}: {}; {fix}", reason(fault)))
    }

    /// The code to exit with.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        self.code
    }
}

/// The text of an I/O error without the number that the standard library appends.
fn reason(fault: &io::Error) -> String {
    let text = fault.to_string();
    text.split(" (os error ").next().unwrap_or(&text).to_lowercase()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_says_so_in_one_line_and_asks_to_try_again() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback binds");
        let address = held.local_addr().expect("bound sockets have an address");
        let fault = std::net::TcpListener::bind(address).expect_err("the port is held");
        let fault = OperatorFault::bind("listen", address, &fault);
        assert_eq!(fault.code(), ExitCode::TryAgain);
        assert_eq!(
            fault.to_string(),
            format!(
                "listen: cannot listen on {address}: address already in use; stop the other process or choose another port"
            )
        );
    }

    #[test]
    fn refused_access_is_a_missing_privilege() {
        let fault = io::Error::from_raw_os_error(13);
        let fault = OperatorFault::file(Path::new("relay.key"), &fault, "make it readable");
        assert_eq!(fault.code(), ExitCode::Privilege);
        assert_eq!(fault.to_string(), "relay.key: permission denied; make it readable");
    }

    #[test]
    fn a_message_is_one_line_whatever_it_is_made_of() {
        assert_eq!(OperatorFault::usage("a\n  b\r\nc").to_string(), "a b c");
    }
}
