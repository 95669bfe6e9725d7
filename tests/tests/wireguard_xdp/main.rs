//! The real relay between hosts on virtual cables, with each way of attaching XDP and with none.
//!
//! Every scenario is a test of its own in each mode, so that its name says what fails where. What
//! may not be done here, for want of namespaces or of BPF, is skipped with its reason.
#![forbid(unsafe_code)]

mod journeys;
mod restarts;
mod scene;
mod starts;
mod strangers;
mod traffic;

/// Each scenario as a test of each mode.
macro_rules! in_every_mode {
    ($($module:ident: $($scenario:ident),+;)+) => {
        in_every_mode!(@mode native, Native, $($module: $($scenario),+;)+);
        in_every_mode!(@mode generic, Generic, $($module: $($scenario),+;)+);
        in_every_mode!(@mode tcx, Tcx, $($module: $($scenario),+;)+);
        in_every_mode!(@mode off, Off, $($module: $($scenario),+;)+);
    };
    (@mode $name:ident, $mode:ident, $($module:ident: $($scenario:ident),+;)+) => {
        mod $name {
            $($(
                #[test]
                fn $scenario() {
                    crate::$module::$scenario(crate::scene::Mode::$mode);
                }
            )+)+
        }
    };
}

in_every_mode! {
    traffic:
        bulk_between_two_interfaces_goes_the_chosen_way_and_adds_up,
        bulk_by_way_of_one_interface_turns_around,
        checksums_left_to_the_card_are_delivered_all_the_same,
        peers_of_two_families_talk_through_the_sockets,
        stun_is_answered_on_the_same_port,
        foreign_stun_clients_learn_their_address;
    journeys:
        rekeying_under_traffic_loses_nothing,
        a_peer_on_another_address_is_found_again,
        a_restarted_peer_is_found_again,
        a_reload_leaves_flows_alone;
    strangers:
        junk_is_counted_and_not_answered,
        replays_from_elsewhere_move_nothing;
}
