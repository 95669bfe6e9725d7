//! Settings as read: text, and where it came from. Nothing here knows what a value means.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::keys::Key;
use crate::fault::{ExitCode, OperatorFault};

/// How alike a known key must be to be suggested, from 0 to 1 (Jaro-Winkler).
const LIKENESS_MIN: f64 = 0.75;
/// What every variable of ours begins with.
const PREFIX: &str = "PERIGEE_";
/// What follows [`PREFIX`] in variables that set no key: the configuration file's, and those of the
/// build and of the tests.
const NO_KEYS: [&str; 7] =
    ["CONFIG", "COMMIT", "DATAPLANE", "REQUIRE", "REQUIRE_URING", "SEEDS", "SLOW"];
/// The table of a file whose keys are named `udp.KEY` elsewhere.
const UDP_TABLE: &str = "udp";
/// The table of a file that [`super::wireguard()`] reads.
const WIREGUARD_TABLE: &str = "wireguard";
/// The two fields of a `[[cert]]` table.
const CERT_FIELDS: [&str; 2] = ["cert_file", "key_file"];

/// Where a setting was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A configuration file.
    File(PathBuf),
    /// The environment.
    Environment,
    /// The command line, by the flag as it was written.
    Flag(String),
}

/// The values of one key from one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) values: Vec<String>,
    pub(crate) origin: Origin,
}

/// Settings by key. Keys that nobody set are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Raw {
    settings: BTreeMap<Key, Setting>,
    /// The table `[wireguard]` and the file it stands in.
    wireguard: Option<(PathBuf, Table)>,
}

impl Raw {
    /// The settings of the TOML file at `path`.
    pub(crate) fn from_file(path: &Path) -> Result<Self, OperatorFault> {
        let text = fs::read_to_string(path).map_err(|fault| {
            OperatorFault::file(path, &fault, "--config must name a readable TOML file")
        })?;
        let table: Table = toml::from_str(&text).map_err(|fault| {
            let line = fault.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            OperatorFault::config(format_args!(
                "{}:{line}: {}; correct the TOML",
                path.display(),
                fault.message()
            ))
        })?;
        let mut raw = Self::default();
        for (name, value) in table {
            match (name.as_str(), value) {
                (WIREGUARD_TABLE, Value::Table(table)) => {
                    raw.wireguard = Some((path.to_owned(), table));
                }
                (UDP_TABLE, Value::Table(table)) => {
                    for (name, value) in &table {
                        raw.read(path, &format!("{UDP_TABLE}."), name, value)?;
                    }
                }
                (WIREGUARD_TABLE | UDP_TABLE, _) => {
                    return Err(OperatorFault::config(format_args!(
                        "{}: {name}: takes a table; see README.md for its keys",
                        path.display()
                    )));
                }
                (_, value) => raw.read(path, "", &name, &value)?,
            }
        }
        Ok(raw)
    }

    /// Takes the key `name` of the table that `within` names, with a dot behind it.
    fn read(
        &mut self,
        path: &Path,
        within: &str,
        name: &str,
        value: &Value,
    ) -> Result<(), OperatorFault> {
        let key = known(&format!("{within}{name}")).ok_or_else(|| {
            let names: Vec<_> = Key::ALL.iter().map(|key| key.file_name()).collect();
            let tables = [UDP_TABLE, WIREGUARD_TABLE].into_iter().filter(|_| within.is_empty());
            let names = names.iter().filter_map(|known| known.strip_prefix(within)).chain(tables);
            unknown(path, name, within, names)
        })?;
        let values = texts(path, key, value)?;
        self.settings.insert(key, Setting { values, origin: Origin::File(path.to_owned()) });
        Ok(())
    }

    /// The table `[wireguard]`, and the file it stands in.
    pub(crate) fn wireguard(&self) -> Option<(&Path, &Table)> {
        self.wireguard.as_ref().map(|(path, table)| (path.as_path(), table))
    }

    /// The settings that `variable` finds. An empty variable is not set.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut raw = Self::default();
        for key in Key::ALL {
            if let Some(text) = variable(&key.variable()).filter(|text| !text.is_empty()) {
                raw.set(*key, vec![text], Origin::Environment);
            }
        }
        raw
    }

    /// Refuses the first of `names` that looks like a variable of ours and sets nothing. Kubernetes
    /// sets some for a service called perigee, which nobody has mistyped.
    pub(crate) fn refuse_unknown_variables<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), OperatorFault> {
        for name in names {
            let Some(bare) = name.strip_prefix(PREFIX) else { continue };
            let of_kubernetes =
                bare == "PORT" || bare.starts_with("PORT_") || bare.starts_with("SERVICE_");
            let of_control = bare.starts_with("CONTROL_");
            let known = Key::ALL.iter().any(|key| key.variable() == name);
            if known || of_kubernetes || of_control || NO_KEYS.contains(&bare) {
                continue;
            }
            let bares = Key::ALL.iter().map(|key| key.file_name().to_ascii_uppercase());
            let fix = match nearest(bare, bares) {
                Some(nearest) => format!("did you mean {PREFIX}{nearest}?"),
                None => "see dataplane --help for the keys, or unset it".to_owned(),
            };
            return Err(OperatorFault::config(format_args!("{name}: sets no key; {fix}")));
        }
        Ok(())
    }

    /// Sets `key`, splitting values that hold several.
    pub(crate) fn set(&mut self, key: Key, values: Vec<String>, origin: Origin) {
        let values = match key.spec().separator {
            None => values,
            Some(separator) => {
                let parts = values.iter().flat_map(|value| value.split(separator)).map(str::trim);
                parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
        };
        self.settings.insert(key, Setting { values, origin });
    }

    pub(crate) fn find(&self, key: Key) -> Option<&Setting> {
        self.settings.get(&key)
    }

    /// These settings, with those of `over` in their place where both have a key.
    pub(crate) fn overlaid(mut self, over: Self) -> Self {
        self.settings.extend(over.settings);
        self.wireguard = over.wireguard.or(self.wireguard);
        self
    }
}

impl Origin {
    /// The words that name `key` as it was written here.
    pub(crate) fn name(&self, key: Key) -> String {
        match self {
            Self::File(path) => format!("{}: {}", path.display(), key.file_name()),
            Self::Environment => key.variable(),
            Self::Flag(flag) => flag.clone(),
        }
    }

    /// What lies over what: the higher over the lower, and all of them over nothing, which is 0.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::File(_) => 1,
            Self::Environment => 2,
            Self::Flag(_) => 3,
        }
    }

    /// A wrong flag is a wrong command line; all else is wrong configuration.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::File(_) | Self::Environment => ExitCode::Config,
            Self::Flag(_) => ExitCode::Usage,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment => f.write_str("environment"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

fn known(name: &str) -> Option<Key> {
    Key::ALL.iter().copied().find(|key| key.file_name() == name)
}

/// The one of `names` that `name` is likely meant to be, if any is.
pub(crate) fn nearest<N: AsRef<str>>(name: &str, names: impl Iterator<Item = N>) -> Option<N> {
    let likeness = |known: &N| strsim::jaro_winkler(name, known.as_ref());
    let nearest = names.max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    nearest.filter(|known| likeness(known) >= LIKENESS_MIN)
}

/// The fault of a name that no key has, with the nearest that one has.
pub(super) fn unknown<'a>(
    path: &Path,
    name: &str,
    within: &str,
    names: impl Iterator<Item = &'a str>,
) -> OperatorFault {
    let fix = match nearest(name, names) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "see dataplane --help for the keys".to_owned(),
    };
    OperatorFault::config(format_args!("{}: unknown key {within}{name}; {fix}", path.display()))
}

/// A TOML value as the texts that flags would have.
fn texts(path: &Path, key: Key, value: &Value) -> Result<Vec<String>, OperatorFault> {
    match value {
        Value::Array(values) if key.spec().separator.is_some() => {
            values.iter().map(|value| text(path, key, value)).collect()
        }
        value => Ok(vec![text(path, key, value)?]),
    }
}

fn text(path: &Path, key: Key, value: &Value) -> Result<String, OperatorFault> {
    let expected = |what: &str| {
        OperatorFault::config(format_args!(
            "{}: {}: {what}; write {}",
            path.display(),
            key.file_name(),
            key.spec().value
        ))
    };
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(true) => Ok("on".to_owned()),
        Value::Boolean(false) => Ok("off".to_owned()),
        Value::Table(table) if key == Key::Cert => pair(path, table),
        Value::Float(_) => Err(expected("takes no fraction")),
        Value::Datetime(_) => Err(expected("takes no date")),
        Value::Array(_) => Err(expected("takes one value")),
        Value::Table(_) => Err(expected("takes no table")),
    }
}

/// A `[[cert]]` table as the text of a `--cert` flag.
fn pair(path: &Path, table: &Table) -> Result<String, OperatorFault> {
    if let Some(name) = table.keys().find(|name| !CERT_FIELDS.contains(&name.as_str())) {
        return Err(unknown(path, name, "cert.", CERT_FIELDS.into_iter()));
    }
    let [certificate, key] = CERT_FIELDS.map(|field| {
        let missing = || {
            OperatorFault::config(format_args!(
                "{}: cert: {field} is missing; name a PEM file",
                path.display()
            ))
        };
        table.get(field).and_then(Value::as_str).ok_or_else(missing)
    });
    Ok(format!("{},{}", certificate?, key?))
}
