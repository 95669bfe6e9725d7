//! The settings of `control serve`: defaults, a TOML file, the environment and flags, the later over
//! the former.
//!
//! Owns the table of keys, from which every key has its name in each of the four. A wrong value is
//! refused with one line that says where it stands and what to write. `cli` fills it, `serve` reads
//! [`Checked`]; nothing here opens what settings name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use toml::{Table, Value};

use crate::fault::{ExitCode, OperatorFault};
use crate::file::{TEXT_BYTES_MAX, read_text};
use crate::store::postgres::Target;

/// What every variable of ours begins with.
pub const PREFIX: &str = "PERIGEE_CONTROL_";
/// The socket, where neither flag nor variable names one.
pub const SOCKET: &str = "/run/perigee/control.sock";
/// How alike a known key must be to be suggested, from 0 to 1 (Jaro-Winkler).
const LIKENESS_MIN: f64 = 0.75;

/// How often may be visited.
const PERIOD: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

/// A setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// The flag without its dashes; the other names follow from it.
    pub(crate) flag: &'static str,
    /// What a value looks like.
    pub(crate) value: &'static str,
    /// The value when nobody sets it; empty for none.
    pub(crate) default: &'static str,
    /// Whether there may be several, with commas between them.
    pub(crate) many: bool,
    /// One line.
    pub(crate) help: &'static str,
}

pub(crate) const STATE_DIR: Key = Key {
    flag: "state-dir",
    value: "DIR",
    default: "/var/lib/perigee",
    many: false,
    help: "Keep the database here; made if missing, for this user alone",
};
pub(crate) const DATABASE: Key = Key {
    flag: "database",
    value: "postgres://USER@HOST/DATABASE",
    default: "",
    many: false,
    help: "Keep the state in this PostgreSQL database instead, with other controls; parameters as of libpq",
};
pub(crate) const DATABASE_PASSWORD: Key = Key {
    flag: "database-password-file",
    value: "FILE",
    default: "",
    many: false,
    help: "Read the database's password from this file",
};
pub(crate) const LISTEN: Key = Key {
    flag: "listen",
    value: "ADDR|off",
    default: "127.0.0.1:8090",
    many: true,
    help: "Serve the API and the DERP map here in plain HTTP; IP:PORT or :PORT, several allowed",
};
pub(crate) const SOCKET_KEY: Key = Key {
    flag: "socket",
    value: "PATH",
    default: SOCKET,
    many: false,
    help: "Serve the command line on this unix socket, for its owner and group",
};
pub(crate) const MAP_FILE: Key = Key {
    flag: "derp-map-file",
    value: "FILE",
    default: "",
    many: true,
    help: "Merge this DERP map in JSON or YAML; read again on SIGHUP; several allowed",
};
pub(crate) const MAP_URL: Key = Key {
    flag: "derp-map-url",
    value: "URL",
    default: "",
    many: true,
    help: "Merge the DERP map at this address, asked every 5 minutes; several allowed",
};
pub(crate) const VERIFY_ALLOW: Key = Key {
    flag: "verify-allow",
    value: "CIDR",
    default: "",
    many: true,
    help: "Answer /verify to these networks alone; to everybody, if left out; several allowed",
};
pub(crate) const AUTHORITY: Key = Key {
    flag: "authority",
    value: "HOST[:PORT]",
    default: "",
    many: true,
    help: "Take what satellites signed for these hosts alone, as their primary_url has them; several allowed",
};
pub(crate) const STEER_SOCKET: Key = Key {
    flag: "steer-socket",
    value: "PATH|off",
    default: "",
    many: false,
    help: "Steer dataplanes over this unix socket, for its owner and group [default: steer.sock in --state-dir]",
};
pub(crate) const STEER_LISTEN: Key = Key {
    flag: "steer-listen",
    value: "ADDR",
    default: "",
    many: true,
    help: "Steer dataplanes here over mutual TLS; IP:PORT or :PORT, several allowed",
};
pub(crate) const STEER_CERT: Key = Key {
    flag: "steer-cert",
    value: "FILE",
    default: "",
    many: false,
    help: "For --steer-listen: control's certificate chain in PEM",
};
pub(crate) const STEER_KEY: Key = Key {
    flag: "steer-key",
    value: "FILE",
    default: "",
    many: false,
    help: "For --steer-listen: its private key in PEM",
};
pub(crate) const STEER_CLIENT_CA: Key = Key {
    flag: "steer-client-ca",
    value: "FILE",
    default: "",
    many: false,
    help: "For --steer-listen: who signs dataplanes' certificates, in PEM",
};
pub(crate) const LOG: Key = Key {
    flag: "log",
    value: "FILTER",
    default: "info",
    many: false,
    help: "What to log: a level, or target=level pairs",
};
pub(crate) const LOG_FORMAT: Key = Key {
    flag: "log-format",
    value: "human|json",
    default: "human",
    many: false,
    help: "How to log",
};

pub(crate) const PROBE_EVERY: Key = Key {
    flag: "probe-every",
    value: "TIME|off",
    default: "30s",
    many: false,
    help: "Visit every node and satellite this often: a number with ms, s, m or h",
};
pub(crate) const PROBE_LEAVE_OUT: Key = Key {
    flag: "probe-leave-out",
    value: "yes|no",
    default: "no",
    many: false,
    help: "Serve the DERP map without nodes that keep failing, but never without the last relay",
};

/// Every setting.
pub(crate) const KEYS: [Key; 18] = [
    STATE_DIR,
    DATABASE,
    DATABASE_PASSWORD,
    LISTEN,
    SOCKET_KEY,
    MAP_FILE,
    MAP_URL,
    VERIFY_ALLOW,
    AUTHORITY,
    STEER_SOCKET,
    STEER_LISTEN,
    STEER_CERT,
    STEER_KEY,
    STEER_CLIENT_CA,
    PROBE_EVERY,
    PROBE_LEAVE_OUT,
    LOG,
    LOG_FORMAT,
];

impl Key {
    /// The key in a file.
    pub(crate) fn file_name(&self) -> String {
        self.flag.replace('-', "_")
    }

    /// The environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.file_name().to_ascii_uppercase())
    }
}

/// Our variables of the environment; one that is empty is not set.
///
/// # Errors
/// When one is not UTF-8: nobody would know that it does not count.
pub(crate) fn environment() -> Result<BTreeMap<String, String>, OperatorFault> {
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        (!value.is_empty()).then_some((name, value))
    });
    let text = |(name, value): (String, OsString)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(OperatorFault::config(format!("{name}: is not UTF-8"))),
    };
    ours.map(text).collect()
}

/// Settings as text, by flag, each with the words that name where it was set.
#[derive(Clone, Default)]
pub(crate) struct Raw(BTreeMap<&'static str, (Vec<String>, String, ExitCode)>);

/// Only which keys are set: a value may hold a password.
impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Settings that can be used as they are.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Where the database is.
    pub state_dir: PathBuf,
    /// The PostgreSQL database that is used instead.
    pub database: Option<Target>,
    /// Where to serve TCP; may be empty.
    pub listen: Vec<SocketAddr>,
    /// Where to serve the command line.
    pub socket: PathBuf,
    /// Maps to merge.
    pub derp_map_files: Vec<PathBuf>,
    /// Maps to fetch and merge.
    pub derp_map_urls: Vec<String>,
    /// Who may ask for admissions; everybody, if empty.
    pub verify_allow: Vec<IpNet>,
    /// Hosts that satellites sign for; any, if empty.
    pub authorities: Vec<String>,
    /// Where dataplanes dial.
    pub steer: SteerPlaces,
    /// How often nodes and satellites are visited, if at all.
    pub probe_every: Option<Duration>,
    /// Whether failing nodes go out of the served map.
    pub probe_leave_out: bool,
    /// What to log.
    pub log: String,
    /// Whether to log JSON.
    pub log_json: bool,
}

/// Where dataplanes dial.
#[derive(Clone, Debug, Default)]
pub struct SteerPlaces {
    /// A unix socket.
    pub socket: Option<PathBuf>,
    /// TCP addresses; may be empty.
    pub listen: Vec<SocketAddr>,
    /// For those; there if there is one.
    pub tls: Option<SteerTls>,
}

/// The files of mutual TLS.
#[derive(Clone, Debug)]
pub struct SteerTls {
    /// Control's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs dataplanes' certificates.
    pub client_ca: PathBuf,
}

impl Raw {
    /// The settings of the TOML file at `path`.
    pub(crate) fn from_file(path: &Path) -> Result<Self, OperatorFault> {
        let text = read_text(path, TEXT_BYTES_MAX).map_err(|error| {
            OperatorFault::file(path, &error, "--config must name a readable TOML file")
        })?;
        let table: Table = toml::from_str(&text).map_err(|fault| {
            let line = fault.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let what = fault.message();
            OperatorFault::config(format!("{}:{line}: {what}; correct the TOML", path.display()))
        })?;
        let mut raw = Self::default();
        for (name, value) in table {
            let key = KEYS.iter().find(|key| key.file_name() == name).ok_or_else(|| {
                let names = KEYS.iter().map(Key::file_name);
                let fix = suggestion(&name, names, "");
                OperatorFault::config(format!("{}: unknown key {name}; {fix}", path.display()))
            })?;
            let place = format!("{}: {name}", path.display());
            let values = match &value {
                Value::Array(values) if key.many => {
                    values.iter().map(|value| text_of(value, key, &place)).collect()
                }
                value => text_of(value, key, &place).map(|text| vec![text]),
            };
            raw.set(key, values?, place, ExitCode::Config);
        }
        Ok(raw)
    }

    /// The settings of the environment, as [`environment`] has it.
    pub(crate) fn from_environment(
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, OperatorFault> {
        let mut raw = Self::default();
        for (name, value) in variables {
            let Some(bare) = name.strip_prefix(PREFIX) else { continue };
            match KEYS.iter().find(|key| key.variable() == name) {
                Some(_) if value.is_empty() => {}
                Some(key) => raw.set(key, vec![value], name, ExitCode::Config),
                // The configuration file's own, and what the command line reads.
                None if bare == "CONFIG" || bare == "OUTPUT" => {}
                // What Kubernetes sets beside a service called perigee-control.
                None if bare == "PORT" => {}
                None if bare.starts_with("PORT_") || bare.starts_with("SERVICE_") => {}
                None => {
                    let names = KEYS.iter().map(|key| key.file_name().to_ascii_uppercase());
                    let fix = suggestion(bare, names, PREFIX);
                    return Err(OperatorFault::config(format!("{name}: sets no key; {fix}")));
                }
            }
        }
        Ok(raw)
    }

    /// Sets `key`, splitting values that hold several.
    pub(crate) fn set(&mut self, key: &Key, values: Vec<String>, place: String, code: ExitCode) {
        let values = match key.many {
            false => values,
            true => {
                let parts = values.iter().flat_map(|value| value.split(',')).map(str::trim);
                parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
        };
        self.0.insert(key.flag, (values, place, code));
    }

    /// These settings, with those of `over` in their place where both have a key.
    pub(crate) fn overlaid(mut self, over: Self) -> Self {
        self.0.extend(over.0);
        self
    }

    fn values(&self, key: &Key) -> Vec<String> {
        match self.0.get(key.flag) {
            Some((values, ..)) => values.clone(),
            None if key.default.is_empty() => Vec::new(),
            None => vec![key.default.to_owned()],
        }
    }

    fn one(&self, key: &Key) -> String {
        self.values(key).into_iter().next().unwrap_or_default()
    }

    fn database(&self) -> Result<Option<Target>, OperatorFault> {
        let file = self.values(&DATABASE_PASSWORD).pop().map(PathBuf::from);
        let url = self.one(&DATABASE);
        if url.is_empty() {
            return match file {
                Some(_) => Err(self.refuse(&DATABASE_PASSWORD, "goes with a database")),
                None => Ok(None),
            };
        }
        let target = Target::parse(&url, file).map_err(|why| self.refuse(&DATABASE, why))?;
        let by_flag = self.0.get(DATABASE.flag).is_some_and(|(.., code)| *code == ExitCode::Usage);
        if by_flag && target.has_password() {
            let why = "has a password, which all users of this host see in a command line; \
                       put it in --database-password-file or the environment";
            return Err(self.refuse(&DATABASE, why));
        }
        Ok(Some(target))
    }

    fn refuse(&self, key: &Key, why: impl std::fmt::Display) -> OperatorFault {
        let (place, code) = match self.0.get(key.flag) {
            Some((_, place, code)) => (place.as_str(), *code),
            None => (key.flag, ExitCode::Config),
        };
        OperatorFault::new(code, format_args!("{place}: {why}; write {}", key.value))
    }
}

/// Hosts with a port that is not the usual one, as a `Host` header has them.
fn authorities(raw: &Raw) -> Result<Vec<String>, OperatorFault> {
    let is_one = |text: &&String| {
        let url = reqwest::Url::parse(&format!("http://{text}/")).ok();
        url.is_some_and(|url| url.path() == "/" && url.username().is_empty())
            && !text.contains(['/', '?', '#', '@'])
    };
    let all = raw.values(&AUTHORITY);
    match all.iter().find(|text| !is_one(text)) {
        Some(text) => Err(raw.refuse(&AUTHORITY, format_args!("{text:?} is no host"))),
        None => Ok(all),
    }
}

impl Checked {
    /// The settings of `raw`, with defaults for what it leaves out.
    pub(crate) fn from_raw(raw: &Raw) -> Result<Self, OperatorFault> {
        let path = |key: &Key| match raw.one(key) {
            text if text.is_empty() => Err(raw.refuse(key, "is empty")),
            text => Ok(PathBuf::from(text)),
        };
        let listen = match raw.values(&LISTEN) {
            values if values == ["off"] => Vec::new(),
            _ => addresses(raw, &LISTEN)?,
        };
        let urls = raw.values(&MAP_URL);
        for url in &urls {
            let parsed = reqwest::Url::parse(url).ok();
            if !parsed.is_some_and(|url| ["http", "https"].contains(&url.scheme())) {
                return Err(raw.refuse(&MAP_URL, format_args!("{url:?} is no HTTP address")));
            }
        }
        let network = |text: String| {
            let one = || text.parse::<IpAddr>().map(IpNet::from).ok();
            let parsed = text.parse().ok().or_else(one);
            parsed.ok_or_else(|| raw.refuse(&VERIFY_ALLOW, format_args!("{text:?} is no network")))
        };
        let verify_allow =
            raw.values(&VERIFY_ALLOW).into_iter().map(network).collect::<Result<_, _>>()?;
        let probe_every = match raw.one(&PROBE_EVERY).as_str() {
            "off" => None,
            text => Some(period(text).map_err(|why| raw.refuse(&PROBE_EVERY, why))?),
        };
        let probe_leave_out = match raw.one(&PROBE_LEAVE_OUT).as_str() {
            "yes" => true,
            "no" => false,
            other => return Err(raw.refuse(&PROBE_LEAVE_OUT, format_args!("{other:?} is neither"))),
        };
        let log_json = match raw.one(&LOG_FORMAT).as_str() {
            "human" => false,
            "json" => true,
            other => return Err(raw.refuse(&LOG_FORMAT, format_args!("{other:?} is no format"))),
        };
        let log = raw.one(&LOG);
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&log) {
            return Err(raw.refuse(&LOG, error));
        }
        let state_dir = path(&STATE_DIR)?;
        Ok(Self {
            steer: steer_places(raw, &state_dir)?,
            state_dir,
            database: raw.database()?,
            listen,
            socket: path(&SOCKET_KEY)?,
            derp_map_files: raw.values(&MAP_FILE).into_iter().map(PathBuf::from).collect(),
            derp_map_urls: urls,
            verify_allow,
            authorities: authorities(raw)?,
            probe_every,
            probe_leave_out,
            log,
            log_json,
        })
    }
}

fn addresses(raw: &Raw, key: &Key) -> Result<Vec<SocketAddr>, OperatorFault> {
    let address = |text: String| {
        let full = match text.strip_prefix(':') {
            Some(port) => format!("[::]:{port}"),
            None => text.clone(),
        };
        full.parse().map_err(|_| raw.refuse(key, format_args!("{text:?} is no address")))
    };
    raw.values(key).into_iter().map(address).collect()
}

fn steer_places(raw: &Raw, state_dir: &Path) -> Result<SteerPlaces, OperatorFault> {
    let socket = match raw.one(&STEER_SOCKET) {
        text if text == "off" => None,
        text if text.is_empty() => Some(state_dir.join("steer.sock")),
        text => Some(PathBuf::from(text)),
    };
    let listen = addresses(raw, &STEER_LISTEN)?;
    let file = |key: &Key| match raw.one(key) {
        text if text.is_empty() => {
            Err(raw.refuse(key, format_args!("is missing, and --{} takes it", STEER_LISTEN.flag)))
        }
        text => Ok(PathBuf::from(text)),
    };
    let tls = match listen.is_empty() {
        true => None,
        false => Some(SteerTls {
            cert: file(&STEER_CERT)?,
            key: file(&STEER_KEY)?,
            client_ca: file(&STEER_CLIENT_CA)?,
        }),
    };
    Ok(SteerPlaces { socket, listen, tls })
}

/// A time between two visits.
fn period(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_ms = match text.get(digits.len()..) {
        Some("ms") => 1,
        Some("s") => 1_000,
        Some("m") => 60_000,
        Some("h") => 3_600_000,
        Some(_) | None => 0,
    };
    let number = digits.parse::<u64>().ok().filter(|_| unit_ms > 0);
    let time = number.and_then(|number| number.checked_mul(unit_ms)).map(Duration::from_millis);
    time.filter(|time| PERIOD.contains(time)).ok_or_else(|| {
        let (least, most) = (PERIOD.start(), PERIOD.end().as_secs() / 3600);
        format!("{text:?} is no time from {least:?} to {most}h")
    })
}

fn text_of(value: &Value, key: &Key, place: &str) -> Result<String, OperatorFault> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_)
        | Value::Table(_) => {
            Err(OperatorFault::config(format!("{place}: takes a text; write \"{}\"", key.value)))
        }
    }
}

/// The nearest known name, or where to find them.
fn suggestion(name: &str, names: impl Iterator<Item = String>, prefix: &str) -> String {
    let likeness = |known: &String| strsim::jaro_winkler(name, known);
    let nearest = names.max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    match nearest.filter(|known| likeness(known) >= LIKENESS_MIN) {
        Some(nearest) => format!("did you mean {prefix}{nearest}?"),
        None => "see control serve --help for the keys".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Raw, OperatorFault> {
        Raw::from_environment(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_later_source_lies_over_the_former() {
        let low = environment(&[("PERIGEE_CONTROL_LISTEN", ":1,:2"), ("PERIGEE_CONTROL_LOG", "")]);
        let mut high = Raw::default();
        high.set(&STATE_DIR, vec!["/x".into()], "--state-dir".into(), ExitCode::Usage);
        let raw = low.expect("they are keys").overlaid(high);
        let checked = Checked::from_raw(&raw).expect("they are right");
        assert_eq!(checked.state_dir, Path::new("/x"));
        assert_eq!(checked.listen.len(), 2);
        assert_eq!(checked.log, "info");
    }

    #[test]
    fn a_password_is_no_flag_and_never_shown() {
        let url = "postgres://u:hush@h/d";
        let raw = environment(&[("PERIGEE_CONTROL_DATABASE", url)]).expect("it is a key");
        let checked = Checked::from_raw(&raw).expect("it is right");
        assert!(checked.database.is_some() && !format!("{raw:?} {checked:?}").contains("hush"));
        let mut flags = Raw::default();
        flags.set(&DATABASE, vec![url.into()], "--database".into(), ExitCode::Usage);
        let fault = Checked::from_raw(&flags).expect_err("everybody sees it");
        assert_eq!(fault.code(), ExitCode::Usage);
        let text = fault.to_string();
        assert!(text.contains("--database-password-file") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn what_sets_no_key_is_refused_with_the_nearest() {
        let fault = environment(&[("PERIGEE_CONTROL_LISTN", ":1")]).expect_err("no key");
        assert_eq!(
            fault.to_string(),
            "PERIGEE_CONTROL_LISTN: sets no key; did you mean PERIGEE_CONTROL_LISTEN?"
        );
        assert_eq!(fault.code(), ExitCode::Config);
        let of_kubernetes = [
            ("PERIGEE_CONTROL_SERVICE_HOST", "10.0.0.1"),
            ("PERIGEE_CONTROL_PORT", "tcp://10.0.0.1:8090"),
            ("PERIGEE_CONTROL_PORT_8090_TCP_ADDR", "10.0.0.1"),
        ];
        environment(&of_kubernetes).expect("nobody has mistyped these");
    }

    #[test]
    fn wrong_values_name_their_place() {
        for (variable, value) in [
            ("LISTEN", "nowhere"),
            ("DERP_MAP_URL", "ftp://a"),
            ("VERIFY_ALLOW", "10.0.0.0/33"),
            ("AUTHORITY", "https://control.example.com"),
            ("STEER_LISTEN", "nowhere"),
            ("LOG_FORMAT", "xml"),
            ("LOG", "a=b=c"),
            ("DATABASE", "mysql://h/d"),
            ("DATABASE_PASSWORD_FILE", "/x"),
            ("PROBE_EVERY", "30"),
            ("PROBE_EVERY", "1ms"),
            ("PROBE_EVERY", "99999999999999999999h"),
            ("PROBE_LEAVE_OUT", "true"),
        ] {
            let name = format!("{PREFIX}{variable}");
            let raw = environment(&[(&name, value)]).expect("it is a key");
            let fault = Checked::from_raw(&raw).expect_err("a wrong value").to_string();
            assert!(fault.starts_with(&name), "{fault}");
        }
    }
}
