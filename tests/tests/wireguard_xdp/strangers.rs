//! What comes from those who are nobody's peer, or pretend to be one.

use std::net::UdpSocket;
use std::time::Duration;

use tests::metrics::Metrics;
use tests::netns::{Family, Host};
use tests::process::eventually;
use tests::wireguard::{ALICE, CAROL, Peer, bulk, idle, ping};

use crate::scene::{Mode, Scene};

/// Mallory has a place beside bob.
const LANS: &[&[&str]] = &[&["alice"], &["bob", "mallory"]];

/// What has not come by then does not come.
const PAUSE: Duration = Duration::from_millis(200);

fn mallory(host: &Host, family: Family) -> Peer {
    Peer::new(CAROL, ALICE, host.socket(family))
}

fn dropped(metrics: &Metrics) -> u64 {
    metrics.sum("relay_packets_dropped_total", &[])
}

/// That no input since `before` made more bytes of it, wherever they went.
fn nothing_grew(before: &Metrics, now: &Metrics) {
    let grown = |way: &str| {
        let family = format!("relay_bytes_{way}_total");
        let sum = |metrics: &Metrics| metrics.sum(&family, &["proto=\"wireguard\""]);
        sum(now) - sum(before)
    };
    let (received, forwarded) = (grown("received"), grown("forwarded"));
    assert!(forwarded <= received, "{received} bytes became {forwarded}");
}

pub(crate) fn junk_is_counted_and_not_answered(mode: Mode) {
    for family in [Family::V4, Family::V6] {
        let Some(scene) = Scene::new(mode, LANS) else { return };
        let (mut alice, mut bob) = scene.pair(family);
        let handshakes = (alice.handshakes, bob.handshakes);
        let mut mallory = mallory(scene.net.host("mallory"), family);
        let before = scene.metrics();
        let mut sent = 0;
        for kind in 0..=5_u8 {
            for len in [0, 1, 3, 4, 31, 32, 63, 64, 91, 92, 147, 148, 149, 1472, 3000] {
                let mut datagram = vec![0xa5; len];
                for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                    *byte = value;
                }
                mallory.send_raw(&datagram);
                sent += 1;
            }
        }
        eventually("the end of the junk", || {
            let gone = dropped(&scene.metrics()) - dropped(&before);
            if gone == sent { Ok(()) } else { Err(format!("{gone} of {sent} dropped")) }
        });
        idle([&mut mallory, &mut alice, &mut bob], PAUSE);
        assert_eq!(mallory.heard, 0);
        nothing_grew(&before, &scene.metrics());
        ping(&mut bob, &mut alice, b"undisturbed");
        ping(&mut alice, &mut bob, b"both ways");
        assert_eq!((alice.handshakes, bob.handshakes), handshakes);
        eventually("the balance", || scene.metrics().balance());
    }
}

/// Whatever mallory overheard she sends again: from her own address, and from alice's, which is a
/// lie that only a network without filters carries.
pub(crate) fn replays_from_elsewhere_move_nothing(mode: Mode) {
    let Some(scene) = Scene::new(mode, LANS) else { return };
    let (mut alice, mut bob) = scene.pair(Family::V4);
    // One handshake by each that arrives, so that there is something of every kind to overhear.
    bob.begin();
    ping(&mut alice, &mut bob, b"bob's keys");
    alice.begin();
    ping(&mut bob, &mut alice, b"alice's keys");
    scene.settle(&mut alice, &mut bob);
    // A ping may pass by the old keys while the new ones are still being agreed upon.
    idle([&mut alice, &mut bob], PAUSE);
    let handshakes = (alice.handshakes, bob.handshakes);
    let overheard: Vec<_> =
        [&alice, &bob].into_iter().flat_map(|peer| peer.newest.values().cloned()).collect();
    assert!(overheard.len() >= 4, "{}", overheard.len());

    let host = scene.net.host("mallory");
    let mut mallory = mallory(host, Family::V4);
    let before = scene.metrics();
    alice.inbox.clear();
    bob.inbox.clear();
    let liar = as_alice(host, &alice);
    let mut sent = 0;
    for message in overheard.iter().flat_map(|message| [message.clone(), forged(message)]) {
        mallory.send_raw(&message);
        // The kernel may be the filter of lies.
        sent += message.len() + liar.send(&message).unwrap_or_default();
    }
    idle([&mut mallory, &mut alice, &mut bob], PAUSE);
    assert_eq!((mallory.inbox.len(), alice.inbox.len(), bob.inbox.len()), (0, 0, 0));
    // Both halves of an old exchange may find each other, and go to whoever brought the first.
    assert!(mallory.heard_bytes <= sent, "{} bytes for {sent}", mallory.heard_bytes);
    nothing_grew(&before, &scene.metrics());

    let before = scene.metrics();
    let sure = bulk(&mut alice, &mut bob, 200) + bulk(&mut bob, &mut alice, 200);
    scene.went_its_way(&before, sure);
    assert_eq!((alice.handshakes, bob.handshakes), handshakes, "nobody had to begin anew");
}

/// A message of the same kind to the same receiver, and sealed by nobody.
fn forged(message: &[u8]) -> Vec<u8> {
    let mut forged = message.to_vec();
    forged.iter_mut().skip(8).for_each(|byte| *byte ^= 0x5a);
    forged
}

/// A socket on mallory's host with alice's address and port, for what alice sends to the relay.
fn as_alice(host: &Host, alice: &Peer) -> UdpSocket {
    let place = alice.place();
    let [own, other] = [place.ip(), host.address(Family::V4)];
    let relay = host.relay(Family::V4);
    host.space.ip(&format!(
        "address add {own}/32 dev eth0\nroute add 10.77.1.1/32 via {} src {other}\n",
        relay.ip()
    ));
    host.space.within(|| {
        let socket = UdpSocket::bind(place).expect("the address is hers now");
        socket.connect(("10.77.1.1", relay.port())).expect("there is a route");
        socket
    })
}
