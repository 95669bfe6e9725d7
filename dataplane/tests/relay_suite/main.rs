//! One suite for the relay over every driver: simulation, epoll and io_uring.
//!
//! A case is written once against [`harness::Relay`] and runs three times. Where the kernel refuses
//! io_uring the reason is printed and the case passes; `PERIGEE_REQUIRE=uring` makes it fail.

#[path = "../common/frames.rs"]
mod frames;
mod harness;
mod kernel;
mod sim;
#[path = "../common/skip.rs"]
mod skip;

mod crossing;
mod delivery;
mod ending;
mod faults;
mod queues;

/// Makes tests of the named cases for each driver.
macro_rules! over_every_driver {
    ($($part:ident: $($case:ident),+;)+) => {
        mod simulated {
            $($(#[test] fn $case() { crate::$part::$case::<crate::sim::Simulated>(); })+)+
        }
        mod epoll {
            use dataplane::io::epoll::Epoll;
            $($(#[test] fn $case() { crate::$part::$case::<crate::kernel::Threads<Epoll>>(); })+)+
        }
        mod uring {
            use dataplane::io::uring::Uring;
            $($(#[test] fn $case() {
                if crate::skip::uring_works() {
                    crate::$part::$case::<crate::kernel::Threads<Uring>>();
                }
            })+)+
        }
    };
}

over_every_driver! {
    delivery:
        greets_before_anything_else,
        delivers_with_the_key_of_the_source,
        keeps_the_order_of_packets,
        carries_every_size,
        delivers_to_the_sender_itself,
        answers_pings_with_their_first_eight_bytes,
        takes_bytes_that_were_read_before_the_adoption,
        splits_long_frames_for_websocket_clients;
    faults:
        skips_unknown_frames,
        ends_a_session_at_a_bad_length,
        tells_of_an_unknown_destination_three_times,
        says_nothing_of_an_unknown_destination_of_data;
    queues:
        sends_disco_before_waiting_bulk,
        keeps_the_newest_packets_of_a_stopped_reader,
        resumes_a_stopped_reader_without_loss,
        cuts_a_reader_that_stands_still_and_no_other,
        forgets_what_waited_for_a_closed_session,
        keeps_queues_of_all_clients_within_the_budget;
    ending:
        the_last_writer_of_a_key_is_active,
        tells_those_who_heard_from_a_key_when_it_is_gone,
        ends_every_session_of_who_is_admitted_no_longer,
        a_session_revoked_on_its_way_is_ended_as_it_comes,
        goes_by_other_bounds_from_when_it_is_told,
        a_key_with_too_many_sessions_loses_the_one_silent_for_longest,
        keeps_sessions_alive_with_jitter,
        announces_a_restart_and_ends_everything,
        who_comes_amid_a_drain_is_told_as_the_others_were,
        a_stop_lets_the_notice_out_first,
        a_stopped_worker_returns;
    crossing:
        relays_both_ways_under_load,
        counts_every_packet_once_among_many_clients,
        takes_a_burst_from_everybody_at_once,
        greets_a_crowd_that_comes_at_once;
}
