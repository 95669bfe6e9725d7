//! The command line: `serve`, and commands that ask a running control over its unix socket.
//!
//! Owns the grammar and the way from arguments to what is done. Results go to standard output, talk
//! to standard error. `main` calls [`run`] once.

mod client;
mod commands;
mod netcheck;
mod output;
mod ping;
mod progress;
mod relays;
mod requirements;
mod satellite;
mod shell;
mod top;
mod visited;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Checked, KEYS, PREFIX, Raw, SOCKET, environment};
use crate::fault::{ExitCode, OperatorFault};
use crate::resource::{Admission, Scope};
use client::Client;
use output::{Format, Output};

const EXAMPLES: &str = "\
Examples:
  control serve --state-dir /var/lib/perigee --listen 127.0.0.1:8090
  control satellites create sydney https://sydney.example.com";

const NOTES: &str = "\
Each flag of `control serve` is also a key of its configuration file (--state-dir is state_dir) and
an environment variable (PERIGEE_CONTROL_STATE_DIR). Flags go over the environment, that over the
file. PERIGEE_CONTROL_SOCKET and PERIGEE_CONTROL_OUTPUT are for every command.

Exit codes: 0 fine, 1 failed, 2 wrong command line, 3 refused by control, 4 not found,
69 no control runs, 75 try again, 77 privilege missing, 78 wrong configuration, file or database.";

#[derive(Debug, Parser)]
#[command(name = "control", version, before_help = EXAMPLES, after_help = NOTES)]
#[command(about = "Holds registrations and the DERP map.", disable_help_subcommand = true)]
struct CommandLine {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// What every command but `serve` takes.
#[derive(Debug, Args)]
struct Shared {
    /// How to print results
    #[arg(long, global = true, value_enum, value_name = "human|json")]
    output: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM
    Serve(ServeArgs),
    /// Satellites: create, ls, rotate, rm
    #[command(subcommand)]
    Satellites(SatelliteCommand),
    /// Regions of the DERP map: create, ls, rm
    #[command(subcommand)]
    Regions(Crud<RegionArgs>),
    /// Relay nodes of regions: create, ls, rm, drain, undrain
    #[command(subcommand)]
    Nodes(NodeCommand),
    /// WireGuard peers: create, ls, rm
    #[command(subcommand)]
    Peers(Crud<PeerArgs>),
    /// Pairs of WireGuard peers that may talk: create, ls, rm PEER/PEER
    #[command(subcommand)]
    Links(Crud<LinkArgs>),
    /// Clients that relays admit: create, ls, rm
    #[command(subcommand)]
    Clients(Crud<ClientArgs>),
    /// What every relay goes by: show, set
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Certificates of relays: create, replace, ls, rm
    #[command(subcommand)]
    Certificates(CertificateCommand),
    /// Connected dataplanes: ls
    #[command(subcommand)]
    Dataplanes(DataplaneCommand),
    /// Tokens of the API: create, ls, rm
    #[command(subcommand)]
    Tokens(Crud<TokenArgs>),
    /// The DERP map: show, validate, diff, publish
    #[command(subcommand)]
    Derpmap(MapCommand),
    /// Measure the way from here to every region of the DERP map
    ///
    /// Ends with 0 if a round trip to the nearest region takes less than 400 ms and less than 0.5 % of
    /// 200 STUN requests to it get lost, else with 1. What cannot be asked, such as STUN in a map
    /// without any, fails nothing. Needs no running control with --map.
    Netcheck {
        /// Take the DERP map of this file or address
        #[arg(long, value_name = "FILE|URL")]
        map: Option<String>,
    },
    /// Measure the way from here to one node, region or satellite, round by round
    ///
    /// Ends with 0 if the round trip in the middle takes less than 400 ms and less than 0.5 % of what
    /// was asked went unanswered, else with 1. Needs no running control with --map or a URL.
    Ping {
        /// A node, a region's code or id, a satellite, or https:// and a host
        target: String,
        /// Rounds, five a second
        #[arg(long, short, default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=i64::from(ping::ROUNDS_MAX)))]
        count: u32,
        /// Take the DERP map of this file or address
        #[arg(long, value_name = "FILE|URL")]
        map: Option<String>,
    },
    /// Print who changed what, the latest first
    Audit {
        /// Entries
        #[arg(long, default_value_t = 100, allow_negative_numbers = true)]
        limit: usize,
    },
    /// Copy the SQLite database to a new file, whether control runs or not
    Backup {
        /// The new file
        file: PathBuf,
        /// Where the database is
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
    /// Show what a dataplane does, second by second; control is not asked
    Top {
        /// Where the dataplane listens
        #[arg(default_value = "https://127.0.0.1:8443", value_name = "URL")]
        address: String,
    },
    /// Have control read map files and --steer-cert again and ask map URLs, as SIGHUP does
    Reload,
    /// Print the OpenAPI document of the API
    Openapi,
    /// Print what completes this command line in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write a man page for every command
    Man {
        /// The folder, such as /usr/local/share/man/man1; made if missing
        folder: PathBuf,
    },
}

/// `create`, `ls` and `rm` of one kind.
#[derive(Debug, Subcommand)]
enum Crud<A: Args> {
    /// Make one
    Create(A),
    /// List all
    Ls,
    /// Remove one, by name or id
    Rm(RemoveArgs),
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// Its name or id
    name: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum SatelliteCommand {
    /// Fetch a satellite's public key from it, ask, and register it
    Create {
        /// What to call it
        name: String,
        /// Where it is reached: https:// and a host
        access_url: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Trust the certificates in this PEM file, too
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// List all
    Ls,
    /// Take a satellite's new key from it, ask, and have it count; the old one does for a day more
    Rotate {
        /// Its name or id
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Trust the certificates in this PEM file, too
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// Remove one: nothing it signed counts from now on
    Rm(RemoveArgs),
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    #[command(flatten)]
    Crud(Crud<NodeArgs>),
    /// Let a node take no new sessions and send its clients elsewhere
    Drain {
        /// Its name
        name: String,
    },
    /// Let it take sessions again
    Undrain {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Print it
    Show,
    /// Change what is named, and leave the rest
    Set(PolicyArgs),
}

#[derive(Debug, Subcommand)]
enum CertificateCommand {
    /// Give every relay a certificate and its key
    Create(CertificateArgs),
    /// Put another chain and key in the place of one's
    Replace(CertificateArgs),
    /// List all, with their names and when they end
    Ls,
    /// Remove one, by name or id
    Rm(RemoveArgs),
}

#[derive(Debug, Subcommand)]
enum DataplaneCommand {
    /// List all, with what they go by and how far that is behind
    Ls,
}

#[derive(Debug, Args)]
struct CertificateArgs {
    /// What to call it
    name: String,
    /// The chain as PEM, the relay's own certificate first
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// Its private key as PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Limits of sessions; `none` leaves one to each relay's own configuration.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct PolicyArgs {
    /// Who may use relays
    #[arg(long, value_name = "open|registered", value_parser = admission)]
    admission: Option<Admission>,
    /// Bytes that may wait in each lane of a client's queue
    #[arg(long, value_name = "BYTES|none", allow_negative_numbers = true, value_parser = limit::<u64>)]
    queue_bytes_max: Option<Limit<u64>>,
    /// Packets that may wait there
    #[arg(long, value_name = "PACKETS|none", allow_negative_numbers = true, value_parser = limit::<u32>)]
    queue_packets_max: Option<Limit<u32>>,
    /// Bytes that may wait in all queues together
    #[arg(long, value_name = "BYTES|none", allow_negative_numbers = true, value_parser = limit::<u64>)]
    queued_bytes_max: Option<Limit<u64>>,
    /// A send that moves no byte for so long ends its session; 0 for never
    #[arg(long, value_name = "MS|none", allow_negative_numbers = true, value_parser = limit::<u64>)]
    write_timeout_ms: Option<Limit<u64>>,
    /// Between two keepalives of a session
    #[arg(long, value_name = "MS|none", allow_negative_numbers = true, value_parser = limit::<u64>)]
    keepalive_ms: Option<Limit<u64>>,
    /// Most that a session's own jitter adds to that
    #[arg(long, value_name = "MS|none", allow_negative_numbers = true, value_parser = limit::<u64>)]
    keepalive_jitter_ms: Option<Limit<u64>>,
}

/// A limit to set, or none.
#[derive(Clone, Copy, Debug)]
struct Limit<T>(Option<T>);

#[derive(Debug, Args)]
struct ClientArgs {
    /// Its name
    name: String,
    /// Its public key: nodekey: and 64 hexadecimal digits
    node_key: String,
}

#[derive(Debug, Args)]
struct RegionArgs {
    /// Its name, which is the map's RegionCode
    name: String,
    /// RegionID; 900 to 999 are free for own regions in a tailnet
    #[arg(allow_negative_numbers = true)]
    region_id: u32,
    /// What people read
    #[arg(long, default_value = "")]
    title: String,
    /// Nobody makes it their home
    #[arg(long)]
    avoid: bool,
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// Its name, such as 900a
    name: String,
    /// The name of its region
    region: String,
    /// What clients dial and its certificate is for
    host_name: String,
    /// Another name for its certificate
    #[arg(long, default_value = "")]
    cert_name: String,
    /// Its IPv4 address, or none
    #[arg(long, default_value = "")]
    ipv4: String,
    /// Its IPv6 address, or none
    #[arg(long, default_value = "")]
    ipv6: String,
    /// 0 for 3478, -1 for none
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    stun_port: i32,
    /// It answers STUN and relays nothing
    #[arg(long)]
    stun_only: bool,
    /// 0 for 443
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    derp_port: u16,
    /// It serves without TLS
    #[arg(long)]
    force_http: bool,
    /// Clients verify no certificate
    #[arg(long)]
    insecure_for_tests: bool,
    /// It answers captive-portal checks on port 80
    #[arg(long)]
    can_port80: bool,
}

#[derive(Debug, Args)]
struct PeerArgs {
    /// Its name
    name: String,
    /// Its public key, as `wg pubkey` prints it
    public_key: String,
}

#[derive(Debug, Args)]
struct LinkArgs {
    /// One peer's name
    one: String,
    /// The other's
    other: String,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// What to call it
    name: String,
    /// What its holder may do: read, operate, register, admin
    #[arg(long = "scope", value_delimiter = ',', required = true, value_parser = scope)]
    scopes: Vec<Scope>,
    /// When it ends: a number with s, m, h or d, such as 90d; never, if left out
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = seconds)]
    expires: Option<i64>,
}

#[derive(Debug, Subcommand)]
enum MapCommand {
    /// Print the map in service
    Show,
    /// Check map files, each and together, without a running control
    Validate {
        /// Maps in JSON or YAML
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print what a file has other than the map in service
    Diff {
        /// A map in JSON or YAML
        file: PathBuf,
    },
    /// Make control's own regions and nodes those of a file, all or none
    Publish {
        /// A map in JSON or YAML
        file: PathBuf,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// The settings of `serve`, whose flags come from the table of keys.
#[derive(Debug)]
struct ServeArgs {
    config: Option<PathBuf>,
    flags: Raw,
}

const CONFIG: &str = "config";

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Raw::default();
        for key in &KEYS {
            if let Some(values) = matches.get_many::<String>(key.flag) {
                let place = format!("--{}", key.flag);
                flags.set(key, values.cloned().collect(), place, ExitCode::Usage);
            }
        }
        Ok(Self { config: matches.get_one::<PathBuf>(CONFIG).cloned(), flags })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ServeArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Read settings from this TOML file");
        let flags = KEYS.iter().map(|key| {
            let help = match key.default {
                "" => key.help.to_owned(),
                default => format!("{} [default: {default}]", key.help),
            };
            let action = if key.many { ArgAction::Append } else { ArgAction::Set };
            let flag = Arg::new(key.flag).long(key.flag).value_name(key.value).help(help);
            // A time below zero is no flag, and is told what times are.
            flag.action(action).allow_hyphen_values(key.value.starts_with("TIME"))
        });
        command.args(std::iter::once(config).chain(flags))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// The commands that ask no control, and `serve`, of whose keys the socket is one.
const WITHOUT_SOCKET: [&str; 6] = ["serve", "backup", "top", "openapi", "completions", "man"];

/// The whole grammar.
fn grammar() -> clap::Command {
    let socket = Arg::new("socket")
        .long("socket")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!("Where control is to be found [default: {SOCKET}]"));
    let mut command = CommandLine::command();
    let names: Vec<_> =
        command.get_subcommands().map(|found| found.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| !WITHOUT_SOCKET.contains(&name.as_str())) {
        command = command.mut_subcommand(name, |found| found.arg(socket.clone().global(true)));
    }
    command
}

/// Carries out `args`, program name first.
///
/// # Errors
/// With the exit code that says what to mend.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), OperatorFault> {
    let matches = match grammar().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(fault) => return explain(&fault),
    };
    let parsed = CommandLine::from_arg_matches(&matches)
        .map_err(|fault| OperatorFault::usage(first_words(&fault.render().to_string())))?;
    let mut variables = environment()?;
    if let Command::Serve(args) = parsed.command {
        return serve(args, variables);
    }
    let mut variable = |name: &str| variables.remove_entry(&format!("{PREFIX}{name}"));
    let format = match (parsed.shared.output, variable("OUTPUT")) {
        (Some(format), _) => format,
        (None, Some((name, text))) => clap::ValueEnum::from_str(&text, true).map_err(|_| {
            OperatorFault::config(format!("{name}: {text:?} is no format; write human or json"))
        })?,
        (None, None) => Format::Human,
    };
    let subcommand = matches.subcommand().map(|(_, matches)| matches);
    let flag =
        subcommand.and_then(|found| found.try_get_one::<PathBuf>("socket").ok().flatten().cloned());
    let socket = flag
        .or_else(|| variable("SOCKET").map(|(_, path)| path.into()))
        .unwrap_or_else(|| SOCKET.into());
    let output = Output::new(format);
    run_to_end(commands::carry_out(parsed.command, &Client::new(socket)?, &output))
}

fn serve(args: ServeArgs, variables: BTreeMap<String, String>) -> Result<(), OperatorFault> {
    // What a list takes for a moment would stay resident in pages of 2 MiB. A kernel without them has
    // nothing to switch off.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let named = variables.get(&format!("{PREFIX}CONFIG")).map(PathBuf::from);
    let config = args.config.or(named);
    let environment = Raw::from_environment(variables.into_iter())?;
    let file = config.as_deref().map_or_else(|| Ok(Raw::default()), Raw::from_file)?;
    let checked = Checked::from_raw(&file.overlaid(environment).overlaid(args.flags))?;
    let filter = tracing_subscriber::EnvFilter::new(&checked.log);
    // Colours are for a terminal; a journal would keep the escape codes.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        // It would tell standard error that standard error cannot be written, and panic of that.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match checked.log_json {
        false => log.with_target(false).init(),
        true => log.json().init(),
    }
    lift_descriptor_limit();
    run_to_end(crate::serve::run(checked))
}

/// Lifts the soft limit of open files, 1024 on most hosts, to the hard one: each connection takes a
/// descriptor, and so do the store's files, which are not to go without for them.
fn lift_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // A sandbox may forbid it; what is in force is told where it is too little.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < DESCRIPTORS_MAX
    {
        tracing::warn!(
            files,
            "all connections that may be take {DESCRIPTORS_MAX} open files; raise the hard limit \
             (ulimit -Hn, LimitNOFILE)"
        );
    }
}

/// Open files that control takes at most: 1,024 each for strangers and for holders of tokens, 1,024
/// each for handshakes and dataplanes, 128 and 512 for those on this host, three for each of 128 probes,
/// the rest for all else.
const DESCRIPTORS_MAX: u64 = 5_500;

/// Runs `work` on one thread beside the store's: control is idle but for moments.
fn run_to_end(work: impl Future<Output = Result<(), OperatorFault>>) -> Result<(), OperatorFault> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = built.map_err(|error| OperatorFault::failed(format!("no runtime: {error}")))?;
    let ended = runtime.block_on(work);
    // A resolver that does not answer keeps its thread for half a minute; nobody waits for it.
    runtime.shutdown_background();
    ended
}

/// Help and version are results; all else is a wrong command line.
fn explain(fault: &clap::Error) -> Result<(), OperatorFault> {
    let text = fault.render().to_string();
    match fault.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(OperatorFault::usage("a command is missing; see control --help"))
        }
        _ => Err(OperatorFault::usage(first_words(&text))),
    }
}

/// clap's report in one line: what is wrong and its tip, or where to read more.
fn first_words(report: &str) -> String {
    let mut lines = report.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut what = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    if what.ends_with(':') {
        let missing = lines.clone().take_while(|line| line.starts_with(['<', '-', '[']));
        what = format!("{what} {}", missing.collect::<Vec<_>>().join(" "));
    }
    let tip = lines.find_map(|line| line.strip_prefix("tip: ")).unwrap_or("see control --help");
    format!("{what}; {tip}")
}

fn scope(text: &str) -> Result<Scope, String> {
    let quoted = serde_json::Value::String(text.to_ascii_lowercase());
    serde_json::from_value(quoted).map_err(|_| "write read, operate, register or admin".to_owned())
}

fn admission(text: &str) -> Result<Admission, String> {
    let quoted = serde_json::Value::String(text.to_ascii_lowercase());
    serde_json::from_value(quoted).map_err(|_| "write open or registered".to_owned())
}

fn limit<T: std::str::FromStr>(text: &str) -> Result<Limit<T>, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => match text.parse() {
            Ok(number) => Ok(Limit(Some(number))),
            Err(_) => Err("write a number, or none".to_owned()),
        },
    }
}

/// A time such as 90d, in seconds.
fn seconds(text: &str) -> Result<i64, String> {
    let split = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        _ => None,
    };
    let seconds = number.parse::<i64>().ok().zip(unit);
    let seconds = seconds.and_then(|(number, unit)| number.checked_mul(unit));
    // A thousand years are enough, and leave room for adding.
    seconds
        .filter(|seconds| (1..=1000 * 366 * 24 * 3600).contains(seconds))
        .ok_or_else(|| "write a number and s, m, h or d, such as 90d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn times_have_a_unit_and_a_bound() {
        assert_eq!(seconds("90d"), Ok(90 * 24 * 3600));
        assert_eq!(seconds("30s"), Ok(30));
        for wrong in ["", "d", "0s", "90", "-1d", "9999999999999999999d", "400000d", "1 d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line() {
        let run = |args: &[&str]| run(args.iter().map(OsString::from)).expect_err("it is wrong");
        let fault = run(&["control", "satelites", "ls"]);
        assert_eq!(fault.code(), ExitCode::Usage);
        assert!(fault.to_string().contains("satellites"), "{fault}");
        let fault = run(&["control", "tokens", "create", "ci", "--scope", "root"]);
        assert!(fault.to_string().contains("read, operate, register or admin"), "{fault}");
        assert_eq!(run(&["control"]).code(), ExitCode::Usage);
    }
}
