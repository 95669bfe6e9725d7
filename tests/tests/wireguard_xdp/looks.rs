//! Closer looks at the programs, as an operator takes them on the debug pages.

use std::thread;

use tests::netns::{Family, Plan};
use tests::process::Process;
use tests::stun::ask;

use crate::scene::{APART, Mode, Scene};

/// What the page at `path` says when the look is over, with requests for the programs meanwhile.
fn look(scene: &Scene, path: &str) -> String {
    let alice = scene.net.host("alice");
    let socket = alice.socket(Family::V4);
    thread::scope(|scope| {
        let page = scope.spawn(|| scene.net.relay.within(|| scene.relay.page(path)));
        while !page.is_finished() {
            ask(&socket, alice.relay(Family::V4));
        }
        page.join().expect("the relay answers")
    })
}

#[test]
fn packets_are_traced_and_time_is_measured_while_somebody_looks() {
    let plan = Plan { lans: APART, whole_checksums: true, xdp: true };
    let fast = ["--stun-rate-per-s", "1000000", "--stun-burst", "1000000"];
    let Some(scene) = Scene::with(Mode::Native, &plan, &fast, Process::start) else { return };
    let alice = scene.net.host("alice");
    let traced = look(&scene, "/debug/xdp/trace?seconds=1&one_in=1");
    let (events, last) = traced.trim_end().rsplit_once('\n').expect("packets and their sum");
    let source = alice.address(Family::V4).to_string();
    let target = alice.relay(Family::V4).to_string();
    for event in events.lines() {
        assert!(event.contains(&source) && event.contains(&target), "{event}");
        assert!(event.contains(" answered_ipv4 payload="), "{event}");
    }
    assert_eq!(last, format!("packets {} lost 0", events.lines().count()));

    let timed = look(&scene, "/debug/xdp/time?seconds=1");
    let mut rows = timed.lines();
    let packets: u64 = rows
        .next()
        .and_then(|line| line.strip_prefix("packets "))
        .and_then(|count| count.parse().ok())
        .expect("how many were measured");
    let counts = rows.map(|row| {
        let count = row.split(' ').find_map(|field| field.strip_prefix("packets="));
        count.and_then(|count| count.parse::<u64>().ok()).expect("each row has a count")
    });
    assert_eq!(counts.sum::<u64>(), packets);
    assert!(packets > 0, "{timed}");

    // Nobody looks any more, and the next look begins with nothing.
    let none = scene.net.relay.within(|| scene.relay.page("/debug/xdp/trace?seconds=1&one_in=1"));
    assert_eq!(none, "packets 0 lost 0\n");
}
