//! The command line: ours, and derper's for whoever replaces it in place.
//!
//! Owns the way from arguments and environment to a [`Command`]. It opens no socket and makes no
//! key; of files it reads the configuration only, and for `check` what that names. `main` calls
//! [`parse`] once and carries the command out. `dataplane derper ...`, or a program name `derper`,
//! takes derper's flags.

mod check;
mod derper;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches};

use crate::config::Checked;
use crate::config::keys::Key;
use crate::config::raw::{Origin, Raw};
use crate::fault::OperatorFault;
use crate::satellite::keys;

pub use check::report;

/// Names of the configuration file's flag and variable. It is no key: a file names no other.
const CONFIG_FLAG: &str = "config";
const CONFIG_VARIABLE: &str = "PERIGEE_CONFIG";
/// The program name, and first argument, by which derper's flags are meant.
const DERPER: &str = "derper";

const EXAMPLES: &str = "\
Examples:
  dataplane --cores 2
  dataplane --config relay.toml --hostname relay.example.com --cert relay.pem,relay.key";

const NOTES: &str = "\
Each flag is also a key of the configuration file (--queue-bytes-max is queue_bytes_max) and an
environment variable (PERIGEE_QUEUE_BYTES_MAX). Flags go over the environment, that over the file.
WireGuard peers and links are tables, which the file alone can hold; SIGHUP reads them again:

  [udp]
  listen = [\"192.0.2.1:3478\", \"[2001:db8::1]:3478\"]
  [[wireguard.peer]]
  name = \"alice\"
  public_key = \"BASE64\"
  [[wireguard.link]]
  peers = [\"alice\", \"bob\"]

`dataplane derper` takes derper's own flags; see `dataplane derper -help`.

Exit codes: 0 fine, 1 failed, 2 wrong command line, 69 kernel feature or dependency missing,
75 try again (a port is in use), 77 privilege missing, 78 wrong configuration, certificate or key.";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Relay.
    Run(Box<Checked>),
    /// Say what [`Command::Run`] would use, then end; see [`report`].
    Check {
        /// The settings.
        checked: Box<Checked>,
        /// Them as a configuration file, with the origin of each.
        effective: String,
    },
    /// Change the satellite's key file at this path, and say what was done.
    ChangeKey(KeyChange, PathBuf),
    /// Print this to standard output, then end well.
    Print(String),
}

/// A way to change a key file: [`keys::rotate`] or [`keys::settle`].
pub type KeyChange = fn(&Path) -> Result<String, OperatorFault>;

/// What `args`, program name first, and the process's environment ask for.
///
/// # Errors
/// When the command line or the configuration is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, OperatorFault> {
    let names: Vec<_> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    parse_in(args.into_iter().collect(), |name| std::env::var(name).ok(), &names)
}

/// As [`parse`], with the environment and the names of what is set there as arguments.
fn parse_in(
    args: Vec<OsString>,
    variable: impl Fn(&str) -> Option<String>,
    names: &[&str],
) -> Result<Command, OperatorFault> {
    let program = args.first().map(Path::new).and_then(Path::file_name);
    if program.is_some_and(|name| name == DERPER) {
        return derper::parse(&texts(&args[1..])?, variable);
    }
    if args.get(1).is_some_and(|first| first == DERPER) {
        return derper::parse(&texts(&args[2..])?, variable);
    }
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(fault)
            if matches!(fault.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            return Ok(Command::Print(fault.render().to_string()));
        }
        Err(fault) => return Err(OperatorFault::usage(first_words(&fault.render().to_string()))),
    };
    match matches.subcommand() {
        Some(("version", _)) => Ok(Command::Print(version())),
        Some(("satellite", matches)) => change_key(matches, variable, names),
        Some((_, checking)) => {
            let (checked, effective) = settings(checking, variable, names)?;
            Ok(Command::Check { checked, effective })
        }
        None => Ok(Command::Run(settings(&matches, variable, names)?.0)),
    }
}

/// `satellite rotate` and `satellite settle`.
fn change_key(
    matches: &ArgMatches,
    variable: impl Fn(&str) -> Option<String>,
    names: &[&str],
) -> Result<Command, OperatorFault> {
    let (change, matches) = match matches.subcommand() {
        Some(("rotate", matches)) => (keys::rotate as KeyChange, matches),
        Some((_, matches)) => (keys::settle as KeyChange, matches),
        None => return Err(OperatorFault::usage("satellite: write rotate or settle")),
    };
    let path = settings(matches, variable, names)?.0.satellite_key_file;
    let missing = || OperatorFault::config("satellite_key_file: is not set; name the key file");
    Ok(Command::ChangeKey(change, path.ok_or_else(missing)?))
}

/// Name and version, as `version` prints them.
#[must_use]
pub fn version() -> String {
    let build = crate::observe::BuildInfo::new("");
    format!("perigee dataplane {} ({})\n", build.version, build.commit)
}

fn command() -> clap::Command {
    let check = clap::Command::new("check")
        .about("Check settings, certificates and key, and print what would be used")
        .args(arguments());
    let satellite = clap::Command::new("satellite")
        .about("Change the key by which the primary side knows this satellite")
        .subcommand_required(true)
        .subcommand(
            clap::Command::new("rotate")
                .about("Make a new key; the old one goes on signing beside it")
                .args(arguments()),
        )
        .subcommand(
            clap::Command::new("settle")
                .about("Remove the old key, once control has the new one")
                .args(arguments()),
        );
    clap::Command::new("dataplane")
        .about("Relays DERP over TLS and WireGuard over UDP, and answers STUN; a thread per core.")
        .version(env!("CARGO_PKG_VERSION"))
        .before_help(EXAMPLES)
        .after_help(NOTES)
        .args(arguments())
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(check)
        .subcommand(satellite)
        .subcommand(clap::Command::new("version").about("Print the version"))
        .subcommand(clap::Command::new(DERPER).about("Run with derper's command line"))
}

fn arguments() -> impl Iterator<Item = Arg> {
    let config = Arg::new(CONFIG_FLAG)
        .long(CONFIG_FLAG)
        .value_name("FILE")
        .help("Read settings from this TOML file");
    let keys = Key::ALL.iter().map(|key| {
        let spec = key.spec();
        let help = match spec.default {
            "" => spec.help.to_owned(),
            default => format!("{} [default: {default}]", spec.help),
        };
        let action = if spec.separator.is_some() { ArgAction::Append } else { ArgAction::Set };
        Arg::new(spec.flag).long(spec.flag).value_name(spec.value).help(help).action(action)
    });
    std::iter::once(config).chain(keys)
}

/// The settings of the file, the environment and the flags, the later over the earlier; also as a
/// file would have them.
fn settings(
    matches: &ArgMatches,
    variable: impl Fn(&str) -> Option<String>,
    names: &[&str],
) -> Result<(Box<Checked>, String), OperatorFault> {
    Raw::refuse_unknown_variables(names.iter().copied())?;
    let flag = matches.get_one::<String>(CONFIG_FLAG).cloned();
    let file = flag
        .or_else(|| variable(CONFIG_VARIABLE).filter(|path| !path.is_empty()))
        .map(PathBuf::from);
    let from_file = file.as_deref().map_or_else(|| Ok(Raw::default()), Raw::from_file)?;
    let mut flags = Raw::default();
    for key in Key::ALL {
        let flag = key.spec().flag;
        if let Some(values) = matches.get_many::<String>(flag) {
            flags.set(*key, values.cloned().collect(), Origin::Flag(format!("--{flag}")));
        }
    }
    let raw = from_file.overlaid(Raw::from_environment(variable)).overlaid(flags);
    let checked = Checked { file, ..Checked::from_raw(&raw)? };
    let effective = crate::config::effective(&raw) + &checked.wireguard.to_toml();
    Ok((Box::new(checked), effective))
}

fn texts(args: &[OsString]) -> Result<Vec<String>, OperatorFault> {
    let text = |arg: &OsString| {
        let fault =
            || OperatorFault::usage(format_args!("{}: is not UTF-8; write it so", arg.display()));
        arg.to_str().map(str::to_owned).ok_or_else(fault)
    };
    args.iter().map(text).collect()
}

/// clap's report in one line: what is wrong and its tip, or where to read more.
fn first_words(report: &str) -> String {
    let mut lines = report.lines().map(str::trim).filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let tip = lines.find_map(|line| line.strip_prefix("tip: ")).unwrap_or("see dataplane --help");
    format!("{what}; {tip}")
}

#[cfg(test)]
mod tests;
