//! What long commands show while they work: a line on a terminal, and nothing at all elsewhere.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use harness::{Control, KEY, Scratch, command, run, serve, write};
use peers::{Coturn, skip};
use serde_json::{Value, json};

/// What takes a line back.
const CLEARED: &str = "\r\u{1b}[2K";
/// What is shown while a satellite does not answer.
const ASKING: &str = "asking the satellite for its key";

/// The program on a terminal that `script` makes for it.
struct Terminal {
    child: Child,
    seen: String,
}

impl Terminal {
    /// Runs it with `args`, none of which has blanks, on a terminal of this kind; `None` where there
    /// is no `script`.
    fn run(kind: &str, args: &[&str]) -> Option<Self> {
        let program = command();
        let line = format!("{} {}", program.get_program().display(), args.join(" "));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", kind).env("SHELL", "/bin/sh");
        for (name, _) in program.get_envs() {
            script.env_remove(name);
        }
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        match script.spawn() {
            Ok(child) => Some(Self { child, seen: String::new() }),
            Err(error) => {
                skip("script", &error.to_string());
                None
            }
        }
    }

    /// Reads until the terminal has shown `what`.
    fn wait_for(&mut self, what: &str) {
        let output = self.child.stdout.as_mut().expect("standard output is piped");
        let mut piece = [0; 256];
        // Characters may come in halves, but the words that are waited for are ASCII.
        while !self.seen.contains(what) {
            let read = output.read(&mut piece).expect("the terminal is there");
            assert!(read > 0, "it ended without {what:?}: {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&piece[..read]);
        }
    }

    fn press(&mut self, keys: &str) {
        let input = self.child.stdin.as_mut().expect("standard input is piped");
        input.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Everything that was shown, and how it ended.
    fn end(mut self) -> (String, Option<i32>) {
        let mut rest = Vec::new();
        let mut output = self.child.stdout.take().expect("standard output is piped");
        // Linux tells the end of a terminal as an error.
        let _ = output.read_to_end(&mut rest);
        let code = self.child.wait().expect("it ends").code();
        (self.seen + &String::from_utf8_lossy(&rest), code)
    }
}

/// A satellite that answers once it may.
fn patient() -> (String, mpsc::Sender<()>) {
    let (allow, allowed) = mpsc::channel();
    let body = json!({"key": KEY, "fingerprint": control::resource::fingerprint(KEY)}).to_string();
    let url = serve("/api/private/satellites/key", move || {
        let _ = allowed.recv();
        body.clone()
    });
    (url, allow)
}

#[test]
fn a_terminal_shows_what_is_under_way_and_keeps_nothing_of_it() {
    let control = Control::start();
    let socket = control.socket.display().to_string();
    let (url, allow) = patient();
    let create = ["satellites", "create", "sydney", &url, "--socket", &socket];
    let Some(mut terminal) = Terminal::run("xterm", &create) else { return };
    terminal.wait_for(ASKING);
    allow.send(()).expect("it waits");
    terminal.wait_for("[y/N] ");
    terminal.press("y\n");
    let (seen, code) = terminal.end();
    assert_eq!(code, Some(0), "{seen:?}");
    let (_, after) = seen.rsplit_once(ASKING).expect("it was shown");
    let (line, results) = after.split_once(CLEARED).expect("it was taken back");
    assert_eq!(line.trim(), "", "{seen:?}");
    assert!(results.starts_with("Name:") && !results.contains('\u{1b}'), "{results:?}");
    assert!(!seen.contains("\u{1b}[3"), "no colours: {seen:?}");
}

#[test]
fn ctrl_c_ends_a_command_and_takes_its_line_back() {
    let control = Control::start();
    let socket = control.socket.display().to_string();
    let (url, _allow) = patient();
    let create = ["satellites", "create", "sydney", &url, "--socket", &socket];
    let Some(mut terminal) = Terminal::run("xterm", &create) else { return };
    terminal.wait_for(ASKING);
    terminal.press("\u{3}");
    let (seen, code) = terminal.end();
    assert_eq!(code, Some(130), "as shells call the end by SIGINT: {seen:?}");
    assert!(seen.ends_with(CLEARED), "{seen:?}");
}

#[test]
fn pipes_programs_and_dumb_terminals_get_results_alone() {
    let Some(coturn) = Coturn::start() else { return };
    let node = json!({"Name": "900a", "RegionID": 900, "HostName": coturn.address.ip(),
        "IPv6": "none", "STUNOnly": true, "STUNPort": coturn.address.port()});
    let region =
        json!({"RegionID": 900, "RegionCode": "fra", "RegionName": "fra", "Nodes": [node]});
    let scratch = Scratch::new();
    let map = write(&scratch, "map.json", &json!({"Regions": {"900": region}}).to_string());
    let netcheck = ["netcheck", "--map", &map];
    let as_json = ["netcheck", "--map", &map, "--output", "json"];
    // The count of losses alone takes two seconds.
    let shown = "of 200 counting losses at 900a";
    let runs =
        [("xterm", &netcheck[..]), ("dumb", &netcheck), ("", &netcheck), ("xterm", &as_json)];
    let runs: Vec<_> = runs.iter().map_while(|(kind, args)| Terminal::run(kind, args)).collect();
    let piped = run(command().env("TERM", "xterm").args(netcheck)).expect_success();
    assert_eq!(piped.errors, "");
    let ends = runs.into_iter().map(Terminal::end).map(|(seen, code)| {
        assert_eq!(code, Some(0), "{seen:?}");
        seen
    });
    let [human, dumb, of_no_kind, json] = &ends.collect::<Vec<_>>()[..] else { return };
    let (_, after) = human.rsplit_once(shown).expect("it was shown");
    let (line, results) = after.split_once(CLEARED).expect("it was taken back");
    assert_eq!(line.trim(), "", "{human:?}");
    assert!(results.starts_with("UDP:     yes"), "{results:?}");
    for seen in [dumb, of_no_kind] {
        assert!(seen.starts_with("UDP:     yes"), "{seen:?}");
    }
    let report: Value = serde_json::from_str(json).expect("JSON and nothing else");
    assert_eq!(report["nearest"], "fra");
}
