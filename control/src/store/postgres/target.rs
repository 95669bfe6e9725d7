//! Which database: a URL as libpq takes it, made into settings that can be used.
//!
//! Owns what of such a URL is taken and how it is shown. A password never leaves this module but to
//! the server: what is refused is told without what was written. `config` parses, `connections`
//! connects.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::Trust;
use crate::fault::OperatorFault;

/// How long one host may take to answer at all.
const HOST: Duration = Duration::from_secs(1);
/// How long a connection is silent before the kernel asks whether the server is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// How long it waits between asking again, and how often it does.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// A database, not connected to yet.
#[derive(Clone)]
pub struct Target {
    config: Config,
    pub(super) trust: Trust,
    /// Read before each connection, so that a new password needs no restart.
    password_file: Option<PathBuf>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// As a URL with what an operator may see: no password and no parameters.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.config.get_user() {
            write!(f, "{user}@")?;
        }
        let ports = self.config.get_ports();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match host {
                Host::Tcp(name) => write!(f, "{comma}{name}")?,
                Host::Unix(folder) => write!(f, "{comma}{}", folder.display())?,
            }
            // One port goes with every host.
            if let Some(port) = ports.get(at).or(ports.first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl Target {
    /// The database that `url` names, and the file that has its password, if one has.
    ///
    /// # Errors
    /// What is wrong with the URL, in words that repeat nothing secret.
    pub fn parse(url: &str, password_file: Option<PathBuf>) -> Result<Self, String> {
        let (mut config, mode, trust) = parts(url)?;
        if config.get_hosts().is_empty() {
            return Err("names no host; a folder with a socket is ?host=/run/postgresql".into());
        }
        if config.get_password().is_some() && password_file.is_some() {
            return Err("has a password, and there is a file with one; give one of them".into());
        }
        let local = |host: &Host| matches!(host, Host::Unix(_));
        // PostgreSQL has no TLS over unix sockets, whatever the mode.
        config.ssl_mode(match config.get_hosts().iter().all(local) {
            true => SslMode::Disable,
            false => mode,
        });
        config.keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL);
        config.keepalives_retries(KEEPALIVE_RETRIES);
        // Of several hosts the one that takes writes; a standby would refuse every change.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        // Of several hosts a dead one must leave time for the next.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(HOST);
        }
        if config.get_application_name().is_none() {
            config.application_name("perigee-control");
        }
        Ok(Self { config, trust, password_file })
    }

    /// Whether the URL itself has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// The settings of a connection, with the password as its file has it now.
    pub(super) fn config(&self) -> Result<Config, OperatorFault> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                OperatorFault::file(path, &error, "database-password-file must be readable")
            })?;
            config.password(text.trim_end_matches(['\r', '\n']));
        }
        Ok(config)
    }
}

/// What `url` says: the parameters that concern TLS are ours to understand, the others the library's.
fn parts(url: &str) -> Result<(Config, SslMode, Trust), String> {
    let (scheme, rest) = url.split_once("://").ok_or("is no URL")?;
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err("is no URL of a PostgreSQL database".to_owned());
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.matches('@').count() > 1 {
        return Err("has more than one @; one in a name or password is %40".to_owned());
    }
    let (mut mode, mut roots, mut others) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", value)) => roots = Some(decoded(value)?),
            Some(("password" | "passfile", _)) => {
                return Err("has a password among its parameters; it goes before the @".into());
            }
            Some(_) | None => others.push(pair),
        }
    }
    let parsed = format!("{scheme}://{rest}?{}", others.join("&")).parse::<Config>();
    // The cause names the parameter that is wrong, never its value.
    let config = parsed.map_err(|error| super::causes(&error))?;
    let (mode, trust) = Trust::from_parameters(mode, roots)?;
    Ok((config, mode, trust))
}

/// The value of a parameter, without its percent signs.
fn decoded(value: &str) -> Result<String, String> {
    // Here a plus is no space.
    let url = reqwest::Url::parse(&format!("x:?v={}", value.replace('+', "%2B"))).ok();
    let pair = url.as_ref().and_then(|url| url.query_pairs().next());
    pair.map(|(_, value)| value.into_owned()).ok_or_else(|| "has a parameter of no form".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://u:hush@h/d", "postgres://u@h:5432/d"),
            ("postgresql://u:hu%40sh@h:1,i:2/d?sslmode=require", "postgres://u@h:1,i:2/d"),
            ("postgres://u@/d?host=/run/postgresql", "postgres://u@/run/postgresql/d"),
            ("postgres://u@%2Frun%2Fx:7/d", "postgres://u@/run/x:7/d"),
        ] {
            let target = Target::parse(url, None).expect("it is a URL");
            assert_eq!(target.to_string(), shown);
            assert_eq!(format!("{target:?}"), format!("Target({shown})"));
            assert_eq!(target.has_password(), url.contains("hu"), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_what_was_written() {
        for (url, what) in [
            ("mysql://u:hush@h/d", "no URL of a PostgreSQL"),
            ("host=h password=hush", "no URL"),
            ("postgres://u:hu@sh@h/d", "%40"),
            ("postgres://u@h/d?password=hush", "before the @"),
            ("postgres://u:hush@h/d?sslmode=sometimes", "verify-full"),
            ("postgres://u:hush@h/d?sslrootcert=/x", "sslmode=verify-full"),
            ("postgres://u:hush@h/d?nonsense=1", "nonsense"),
            ("postgres://u:hush@h:port/d", "port"),
            ("postgres:///d", "no host"),
        ] {
            let fault = Target::parse(url, None).expect_err("it is wrong");
            assert!(fault.contains(what) && !fault.contains("hush"), "{url}: {fault}");
        }
        let both = Target::parse("postgres://u:hush@h/d", Some("/x".into()));
        assert!(both.expect_err("two passwords").contains("one of them"));
    }
}
