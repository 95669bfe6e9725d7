//! Counters: the law they keep, and pages with every series at zero and no stray names.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn registry(cores: usize) -> Registry {
    Registry::new(cores, BuildInfo::new("epoll"), UNIX_EPOCH + Duration::from_secs(1_000))
}

/// Sample lines as (series, value).
fn samples(page: &str) -> Vec<(&str, &str)> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').expect("a value"))
        .collect()
}

fn value<'a>(page: &'a str, series: &str) -> &'a str {
    let found = samples(page).into_iter().find(|(name, _)| *name == series);
    found.unwrap_or_else(|| panic!("{series} is not on the page")).1
}

#[test]
fn received_is_forwarded_and_answered_and_dropped() {
    let core = CoreCounters::default();
    core.packets_received.add(5);
    core.packets_forwarded.add(2);
    core.packets_answered.increment();
    core.count_drop(DropReason::QueueHead, PacketKind::Other, 1400);
    assert_eq!(core.flow().waiting(), 1);
    core.count_drop(DropReason::UnknownDest, PacketKind::Disco, 62);
    for outcome in StunOutcome::ALL {
        core.count_stun(*outcome, Family::V6, 40);
    }
    let expected = Flow { received: 11, forwarded: 2, answered: 2, dropped: 7 };
    assert_eq!(core.flow(), expected);
    assert_eq!(core.flow().waiting(), 0);
}

#[test]
fn gauges_go_up_and_down() {
    let (cell, shared) = (Cell::default(), SharedCell::default());
    cell.add(3);
    cell.decrement();
    shared.set(3);
    shared.set(1);
    assert_eq!((cell.value(), shared.value()), (2, 1));
}

#[test]
fn every_series_exists_at_zero() {
    let page = registry(2).prometheus();
    let nonzero: BTreeSet<_> = samples(&page)
        .into_iter()
        .filter(|(name, value)| *value != "0" && !name.starts_with("process_"))
        .map(|(name, _)| name.split('{').next().expect("a name"))
        .collect();
    assert_eq!(nonzero, BTreeSet::from(["relay_build_info"]));
    let labels = DropReason::COUNT * PacketKind::COUNT;
    assert_eq!(page.matches("\nrelay_packets_dropped_total{").count(), labels);
    assert_eq!(page.matches("\nrelay_rounds_total{").count(), 2);
    assert_eq!(
        value(&page, "relay_stun_requests_total{disposition=\"success\",family=\"ipv6\"}"),
        "0"
    );
}

#[test]
fn pages_are_well_formed_and_name_each_series_once() {
    for page in [registry(1).prometheus(), registry(1).varz()] {
        assert!(page.ends_with('\n'));
        let samples = samples(&page);
        let names: BTreeSet<_> = samples.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), samples.len(), "a series is repeated");
        for (series, value) in &samples {
            let name = series.split('{').next().expect("a name");
            assert!(page.contains(&format!("# TYPE {name} ")), "{name} has no type");
            assert!(value.parse::<f64>().is_ok(), "{series} {value}");
        }
    }
}

#[test]
fn sums_cores_and_labels_drops() {
    let registry = registry(2);
    for core in &registry.cores {
        core.packets_received.add(3);
        core.rounds.increment();
        core.count_drop(DropReason::QueueHead, PacketKind::Disco, 100);
    }
    let page = registry.prometheus();
    assert_eq!(value(&page, "relay_packets_received_total{proto=\"derp\",path=\"epoll\"}"), "6");
    assert_eq!(
        value(&page, "relay_packets_dropped_total{reason=\"queue_head\",kind=\"disco\"}"),
        "2"
    );
    assert_eq!(
        value(&page, "relay_bytes_dropped_total{reason=\"queue_head\",kind=\"disco\"}"),
        "200"
    );
    assert_eq!(value(&page, "relay_rounds_total{core=\"1\"}"), "1");
    assert_eq!(value(&page, "process_start_time_seconds"), "1000");
    assert!(
        value(&page, "process_resident_memory_bytes")
            .parse::<u64>()
            .is_ok_and(|bytes| bytes > 100_000)
    );
}

#[test]
fn derper_names_say_what_derper_means() {
    let registry = registry(1);
    let core = &registry.cores[0];
    core.packets_received.add(10);
    core.pings.add(4);
    core.disco_received.add(1);
    core.sessions.add(5);
    core.count_drop(DropReason::StaleSlot, PacketKind::Other, 7);
    core.count_stun(StunOutcome::Success, Family::V4, 40);
    core.count_stun(StunOutcome::BadStun, Family::V4, 40);
    registry.front.dup_keys.set(1);
    registry.front.dup_sessions.set(3);
    let page = registry.varz();
    for (series, expected) in [
        ("derp_packets_received", "6"),
        ("derp_packets_received_kind{kind=\"other\"}", "5"),
        ("derp_current_connections", "5"),
        ("derp_clients_local", "3"),
        ("derp_bytes_dropped{reason=\"gone_disconnected\",kind=\"other\"}", "7"),
        ("derp_packets_dropped{reason=\"unknown_dest_on_fwd\",kind=\"disco\"}", "0"),
        ("stun_requests{disposition=\"success\"}", "1"),
        ("stun_requests{disposition=\"not_stun\"}", "1"),
        ("stun_addrfamily{family=\"ipv4\"}", "1"),
    ] {
        assert_eq!(value(&page, series), expected, "{series}");
    }
    assert!(page.contains("# TYPE derp_current_connections gauge"));
    assert!(page.contains("# TYPE derp_total_dup_client_conns counter"));
    let vars = registry.vars();
    assert_eq!(vars["derp"]["gauge_current_connections"], 5);
    assert_eq!(vars["derp"]["counter_packets_received_kind"]["disco"], 1);
    assert_eq!(vars["stun"]["counter_requests"]["success"], 1);
}
