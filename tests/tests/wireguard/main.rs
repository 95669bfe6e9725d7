//! Stock WireGuard peers that know each other through the relay alone.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tests::process::{eventually, program};
use tests::relay::Relay;
use tests::scratch::Scratch;
use tests::stun::ask;
use tests::wireguard::{
    ALICE, BOB, CAROL, Identity, Peer, bulk, configuration, idle, loopback, ping, reach, run,
};

/// Long enough for anything on loopback that should not happen.
const PAUSE: Duration = Duration::from_millis(300);

const BOTH: &str = "\"127.0.0.1:0\", \"[::1]:0\"";

/// A configuration with these peers and links, and its file.
fn config(scratch: &Scratch, listen: &str, peers: &[Identity], links: &[[Identity; 2]]) -> String {
    let text = configuration(listen, peers, links);
    text_of(&scratch.write("relay.toml", text)).to_owned()
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

fn start(file: &str, io: &str, cores: &str) -> Relay {
    let tcp = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log-format", "json"];
    let mut args = vec!["--config", file, "--io", io, "--cores", cores];
    args.extend(tcp);
    Relay::start(&args)
}

/// A relay for alice and bob on both families of loopback.
fn relay_for_two(scratch: &Scratch, io: &str, cores: &str) -> Relay {
    start(&config(scratch, BOTH, &[ALICE, BOB], &[[ALICE, BOB]]), io, cores)
}

/// A peer that talks to one other by way of this address of the relay.
fn peer(own: Identity, other: Identity, relay: SocketAddr) -> Peer {
    Peer::new(own, other, loopback(relay))
}

fn pair(relay: SocketAddr) -> (Peer, Peer) {
    (peer(ALICE, BOB, relay), peer(BOB, ALICE, relay))
}

/// Waits until every packet has its fate and the count of `family` is `count`.
fn counted(relay: &Relay, family: &str, labels: &[&str], count: u64) {
    eventually("the counters", || {
        let metrics = relay.metrics();
        metrics.balance()?;
        let now = metrics.sum(family, labels);
        if now == count { Ok(()) } else { Err(format!("{family} {labels:?}: {now}, not {count}")) }
    });
}

fn ask_stun(address: SocketAddr) {
    ask(&UdpSocket::bind((address.ip(), 0)).expect("loopback has free ports"), address);
}

#[test]
fn handshakes_from_both_sides_then_data_both_ways_and_stun_between() {
    for (io, cores) in [("epoll", "1"), ("auto", "2")] {
        let scratch = Scratch::new();
        let relay = relay_for_two(&scratch, io, cores);
        let (mut alice, mut bob) = pair(relay.ready.stun[0]);
        alice.send(b"from alice");
        bob.send(b"from bob");
        run("an exchange", [&mut alice, &mut bob], |[alice, bob]| {
            !alice.inbox.is_empty() && !bob.inbox.is_empty()
        });
        ask_stun(relay.ready.stun[0]);
        ask_stun(relay.ready.stun[1]);
        ping(&mut alice, &mut bob, b"still there?");
        ping(&mut bob, &mut alice, b"yes");
        counted(&relay, "relay_packets_answered_total", &["stun"], 2);
        let carried = relay.metrics().sum("relay_wireguard_link_packets_total", &["alice/bob"]);
        assert!(carried >= 2, "{io}: {carried}");
    }
}

#[test]
fn bulk_data_arrives_whole_and_in_order() {
    const PACKETS: u64 = 1280;
    for (io, cores) in [("epoll", "1"), ("auto", "2")] {
        let scratch = Scratch::new();
        let relay = relay_for_two(&scratch, io, cores);
        let (mut alice, mut bob) = pair(relay.ready.stun[0]);
        bob.begin();
        ping(&mut alice, &mut bob, b"begin");
        bulk(&mut alice, &mut bob, PACKETS);
        eventually("the balance", || relay.metrics().balance());
        let metrics = relay.metrics();
        let carried = metrics.sum("relay_wireguard_link_packets_total", &["alice/bob"]);
        assert!(carried >= PACKETS, "{io}: {carried}");
        assert!(metrics.sum("relay_wireguard_runs_total", &[]) > 0);
    }
}

#[test]
fn a_peer_on_ipv4_talks_to_one_on_ipv6() {
    let scratch = Scratch::new();
    let relay = relay_for_two(&scratch, "auto", "1");
    let mut alice = peer(ALICE, BOB, relay.ready.stun[0]);
    let mut bob = peer(BOB, ALICE, relay.ready.stun[1]);
    bob.send(b"hello");
    ping(&mut alice, &mut bob, b"from IPv4");
    ping(&mut bob, &mut alice, b"from IPv6");
    eventually("the balance", || relay.metrics().balance());
}

#[test]
fn packets_leave_from_the_address_their_peer_knows() {
    let scratch = Scratch::new();
    let relay = start(&config(&scratch, "\"[::]:0\"", &[ALICE, BOB], &[[ALICE, BOB]]), "auto", "2");
    let port = relay.ready.stun[0].port();
    let mut alice = peer(ALICE, BOB, ([127, 0, 0, 2], port).into());
    let mut bob = peer(BOB, ALICE, ([127, 0, 0, 3], port).into());
    bob.send(b"hello");
    ping(&mut alice, &mut bob, b"by way of 127.0.0.2");
    ping(&mut bob, &mut alice, b"by way of 127.0.0.3");
    for _ in 0..100 {
        alice.send(b"one of many");
    }
    run("a burst", [&mut alice, &mut bob], |[_, bob]| bob.inbox.len() > 100);
    eventually("the balance", || relay.metrics().balance());
}

#[test]
fn a_restarted_peer_and_one_on_a_new_port_are_found_again() {
    let scratch = Scratch::new();
    let relay = relay_for_two(&scratch, "auto", "1");
    let (mut alice, mut bob) = pair(relay.ready.stun[0]);
    bob.begin();
    ping(&mut alice, &mut bob, b"before");
    bob.restart(loopback(relay.ready.stun[0]));
    ping(&mut bob, &mut alice, b"after a restart");
    ping(&mut alice, &mut bob, b"welcome back");
    alice.move_to(loopback(relay.ready.stun[0]));
    alice.begin();
    reach(&mut bob, &mut alice, b"to the new port");
    ping(&mut alice, &mut bob, b"from the new port");
}

/// Lets `stranger` begin a handshake that `host` would answer, and waits until the relay has refused
/// to bring the answer back.
fn is_kept_away(relay: &Relay, stranger: &mut Peer, host: &mut Peer) {
    stranger.send(b"let me in");
    run("an answer", [host], |[host]| host.handshakes == 1);
    counted(relay, "relay_packets_dropped_total", &["not_linked"], 1);
    idle([&mut *stranger, &mut *host], PAUSE);
    assert_eq!((stranger.heard, host.inbox.len()), (0, 0));
}

#[test]
fn a_peer_without_a_link_reaches_nobody() {
    let scratch = Scratch::new();
    let file = config(&scratch, BOTH, &[ALICE, BOB, CAROL], &[[ALICE, BOB]]);
    let relay = start(&file, "auto", "1");
    let (mut alice, mut bob) = pair(relay.ready.stun[0]);
    bob.begin();
    ping(&mut alice, &mut bob, b"between friends");
    let mut carol = peer(CAROL, ALICE, relay.ready.stun[0]);
    is_kept_away(&relay, &mut carol, &mut alice.beside(CAROL));
    ping(&mut bob, &mut alice, b"undisturbed");
    eventually("the balance", || relay.metrics().balance());
}

#[test]
fn junk_is_dropped_counted_and_not_answered() {
    let scratch = Scratch::new();
    let relay = relay_for_two(&scratch, "auto", "2");
    let (mut alice, mut bob) = pair(relay.ready.stun[0]);
    bob.begin();
    ping(&mut alice, &mut bob, b"begin");
    let dropped = || relay.metrics().sum("relay_packets_dropped_total", &[]);
    let before = dropped();
    let mut junk = peer(CAROL, ALICE, relay.ready.stun[0]);
    let mut sent = 0;
    for kind in 0..=5_u8 {
        for len in [0, 1, 3, 4, 31, 32, 63, 64, 91, 92, 147, 148, 149, 1500] {
            let mut datagram = vec![0xa5; len];
            for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                *byte = value;
            }
            junk.send_raw(&datagram);
            sent += 1;
        }
    }
    eventually("the end of the junk", || {
        let now = dropped();
        if now == before + sent { Ok(()) } else { Err(format!("{now}, not {before} + {sent}")) }
    });
    idle([&mut junk, &mut alice], PAUSE);
    assert_eq!(junk.heard, 0);
    ping(&mut bob, &mut alice, b"undisturbed");
    eventually("the balance", || relay.metrics().balance());
}

#[test]
fn a_reload_adds_peers_and_leaves_flows_alone() {
    let scratch = Scratch::new();
    let relay = relay_for_two(&scratch, "auto", "2");
    let (mut alice, mut bob) = pair(relay.ready.stun[0]);
    bob.begin();
    ping(&mut alice, &mut bob, b"before");
    let mut carol = peer(CAROL, BOB, relay.ready.stun[0]);
    is_kept_away(&relay, &mut carol, &mut bob.beside(CAROL));
    let handshakes = (alice.handshakes, bob.handshakes);

    let good = config(&scratch, BOTH, &[ALICE, BOB, CAROL], &[[ALICE, BOB], [BOB, CAROL]]);
    relay.process.signal(Signal::HUP);
    let reloaded = |line: &str| line.contains("peers and links reloaded").then_some(());
    relay.process.wait_for("reload", reloaded);
    ping(&mut alice, &mut bob, b"the same session");
    ping(&mut bob, &mut alice, b"both ways");
    assert_eq!((alice.handshakes, bob.handshakes), handshakes);
    let mut bob_for_carol = peer(BOB, CAROL, relay.ready.stun[0]);
    bob_for_carol.begin();
    carol.begin();
    ping(&mut carol, &mut bob_for_carol, b"now I may");

    let text = std::fs::read_to_string(&good).expect("it was written");
    scratch.write("relay.toml", text.replace("[\"alice\", \"bob\"]", "[\"alice\", \"bobb\"]"));
    relay.process.signal(Signal::HUP);
    let refused = |line: &str| line.contains("links not reloaded").then(|| line.to_owned());
    let refused = relay.process.wait_for("refusal", refused);
    for word in ["relay.toml", "wireguard.link", "did you mean bob?"] {
        assert!(refused.contains(word), "{refused}");
    }
    ping(&mut alice, &mut bob, b"the old ones stay");
    let reloads = |result| relay.metrics().sum("relay_wireguard_reloads_total", &[result]);
    assert_eq!((reloads("ok"), reloads("refused")), (1, 1));
    counted(&relay, "relay_wireguard_links", &[], 2);
}

#[test]
fn check_shows_peers_and_links_and_reads_what_it_shows() {
    let scratch = Scratch::new();
    let file = config(&scratch, BOTH, &[ALICE, BOB], &[[ALICE, BOB]]);
    let check = |file: &str| {
        let args = ["check", "--config", file, "--cores", "1"];
        let output = std::process::Command::new(program()).args(args).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let shown = check(&file);
    for words in [
        "udp.listen = [\"127.0.0.1:0\", \"[::1]:0\"]",
        &ALICE.table(),
        "peers = [\"alice\", \"bob\"]",
        "# wireguard: 2 peers, 1 links",
        "# wireguard link: alice/bob",
    ] {
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    let again = check(text_of(&scratch.write("again.toml", &shown)));
    assert!(again.contains(&ALICE.table()), "{again}");
}
