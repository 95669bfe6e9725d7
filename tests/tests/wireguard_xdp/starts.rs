//! Starts with more and with less than the fast path needs, as an operator sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tests::netns::{Family, Net, Plan};
use tests::process::{Process, program};
use tests::scratch::Scratch;
use tests::skip::skip;
use tests::wireguard::{ALICE, BOB, bulk, ping};

use crate::scene::{APART, Mode, Scene, arguments, write_configuration};

/// Exit codes as documented in `dataplane --help`.
const UNAVAILABLE: i32 = 69;
const PRIVILEGE: i32 = 77;
const CONFIG: i32 = 78;

/// What loading and attaching takes (capabilities(7)), as `setpriv` calls it.
const NEEDED: [&str; 3] = ["bpf", "net_admin", "perfmon"];
/// Their bits, and that of CAP_SYS_ADMIN, which is all of them in one.
const NEEDED_BITS: u64 = 1 << 39 | 1 << 12 | 1 << 38 | 1 << 21;
/// Somebody who owns nothing.
const NOBODY: &str = "65534";

fn plan() -> Plan<'static> {
    Plan { lans: APART, whole_checksums: true, xdp: true }
}

/// A copy of the program that everybody may execute, wherever the original is.
fn copy(scratch: &Scratch) -> PathBuf {
    let copy = scratch.path("dataplane");
    fs::copy(program(), &copy).expect("a scratch folder takes files");
    copy
}

/// Starts `program` as an ordinary user with these capabilities and no others.
fn as_nobody(program: &Path, capabilities: &[&str], args: &[&str]) -> Process {
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command.arg(format!("--inh-caps=-all{list}")).arg(format!("--ambient-caps=-all{list}"));
    command.arg(program).args(args);
    Process::run(command)
}

/// Whether somebody else can be started, which takes root.
fn may_change_user() -> bool {
    let root = geteuid().is_root();
    if !root {
        skip("netns", "only root starts programs as somebody else");
    }
    root
}

/// The sets of capabilities of every thread of a process, by name.
fn capabilities(process: &Process) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).expect("it runs");
    let mut sets = Vec::new();
    for task in tasks {
        let status = task.expect("an entry").path().join("status");
        let status = fs::read_to_string(status).expect("its threads stay");
        for line in status.lines().filter(|line| line.starts_with("Cap")) {
            let (name, bits) = line.split_once(":\t").expect("a name and its value");
            let bits = u64::from_str_radix(bits, 16).expect("a hexadecimal number");
            sets.push((name.to_owned(), bits));
        }
    }
    sets
}

/// Asserts that a start in this network with `args` ends with one of `codes` and one line that says
/// each of `words`.
fn refuses(net: &Net, codes: &[i32], words: &[&str], launch: impl FnOnce() -> Process + Send) {
    let (status, lines) = net.relay.within(|| launch().wait());
    assert!(status.code().is_some_and(|code| codes.contains(&code)), "{status}: {lines:?}");
    let last: Vec<_> = lines.iter().filter(|line| line.starts_with("dataplane: ")).collect();
    assert_eq!(last.len(), 1, "{lines:?}");
    for word in words {
        assert!(last[0].contains(word), "no {word:?} in {last:?}");
    }
}

/// The way in which an interface's program is attached, by what the relay counts.
fn mode_of(scene: &Scene, interface: &str) -> Vec<String> {
    let page = scene.net.relay.within(|| scene.relay.page("/metrics"));
    let modes = page.lines().filter(|line| {
        line.starts_with("relay_xdp_mode{") && line.contains(interface) && line.ends_with(" 1")
    });
    let label = |line: &str| line.split("mode=\"").nth(1)?.split('"').next().map(str::to_owned);
    modes.filter_map(label).collect()
}

#[test]
fn an_ordinary_user_with_three_capabilities_forwards_and_keeps_none() {
    if !may_change_user() {
        return;
    }
    let folder = Scratch::new();
    let dataplane = copy(&folder);
    let launch = |args: &[&str]| as_nobody(&dataplane, &NEEDED, args);
    let Some(scene) = Scene::with(Mode::Native, &plan(), &[], launch) else { return };
    for (set, bits) in capabilities(&scene.relay.process) {
        // What may be had at most is not what is had.
        assert!(set == "CapBnd" || bits & NEEDED_BITS == 0, "{set}: {bits:x}");
    }
    let (mut alice, mut bob) = scene.pair(Family::V4);
    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200) + bulk(&mut bob, &mut alice, 200);
    scene.went_its_way(&before, sure);
    scene.adds_up([&alice, &bob]);
}

#[test]
fn a_mode_asked_for_by_name_is_refused_without_capabilities() {
    if !may_change_user() {
        return;
    }
    let Some(net) = Net::new(&plan()) else { return };
    let scratch = Scratch::new();
    let dataplane = copy(&scratch);
    let file = write_configuration(&scratch, 2, &[ALICE, BOB], &[[ALICE, BOB]]);
    for mode in [Mode::Native, Mode::Generic, Mode::Tcx] {
        let args = arguments(mode, 2, &file);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        for missing in NEEDED {
            let others: Vec<_> = NEEDED.into_iter().filter(|it| *it != missing).collect();
            let name = format!("lacks CAP_{}", missing.to_uppercase());
            refuses(&net, &[PRIVILEGE], &[&name], || as_nobody(&dataplane, &others, &args));
        }
        refuses(&net, &[PRIVILEGE], &["CAP_BPF"], || as_nobody(&dataplane, &[], &args));
    }
}

#[test]
fn a_free_choice_falls_to_the_sockets_without_capabilities() {
    if !may_change_user() {
        return;
    }
    let folder = Scratch::new();
    let dataplane = copy(&folder);
    let launch = |args: &[&str]| as_nobody(&dataplane, &[], args);
    let Some(scene) = Scene::with(Mode::Auto, &plan(), &[], launch) else { return };
    let said = scene.relay.process.log().join("\n");
    assert!(said.contains("CAP_BPF"), "{said}");
    assert_eq!(mode_of(&scene, "lan1"), [""; 0]);
    let mut alice = scene.peer(ALICE, BOB, Family::V4);
    let mut bob = scene.peer(BOB, ALICE, Family::V4);
    bob.begin();
    ping(&mut alice, &mut bob, b"by the sockets");
    ping(&mut bob, &mut alice, b"both ways");
}

#[test]
fn the_mode_is_shown_and_a_free_choice_is_not_native_on_virtual_cables() {
    for (mode, shown) in [
        (Mode::Auto, "tcx"),
        (Mode::Native, "native"),
        (Mode::Generic, "generic"),
        (Mode::Tcx, "tcx"),
    ] {
        let Some(scene) = Scene::new(mode, APART) else { return };
        for interface in ["lan1", "lan2"] {
            assert_eq!(mode_of(&scene, interface), [shown]);
        }
    }
}

#[test]
fn an_interface_without_a_mode_ends_the_start_only_if_that_was_asked_for() {
    let Some(net) = Net::new(&plan()) else { return };
    let scratch = Scratch::new();
    let file = write_configuration(&scratch, 2, &[ALICE, BOB], &[[ALICE, BOB]]);
    let start_on = |mode: Mode, interface: &str| {
        let mut args = arguments(mode, 0, &file);
        args.extend(["--xdp-interface".to_owned(), interface.to_owned()]);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Process::start(&args)
    };
    // Loopback has no driver to be attached in.
    let words = ["lo", "native"];
    refuses(&net, &[UNAVAILABLE], &words, || start_on(Mode::Native, "lo"));
    for mode in [Mode::Auto, Mode::Native, Mode::Tcx] {
        refuses(&net, &[UNAVAILABLE, CONFIG], &["nosuch0"], || start_on(mode, "nosuch0"));
    }
}
