//! What each kind takes and refuses.

use super::*;

fn fault_of<R: Resource>(mut resource: R) -> &'static str {
    resource.check().expect_err("it is wrong").field
}

fn satellite() -> Satellite {
    Satellite {
        name: "sydney".into(),
        access_url: "https://sydney.example.com/".into(),
        public_key: "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".into(),
        fingerprint: "made up".into(),
        ..Satellite::default()
    }
}

#[test]
fn a_satellite_is_brought_to_one_form() {
    let mut one = satellite();
    one.check().expect("it is right");
    assert_eq!(one.access_url, "https://sydney.example.com");
    assert!(one.fingerprint.starts_with("SHA256:"), "{}", one.fingerprint);
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n-----END PUBLIC KEY-----\n";
    let mut two = Satellite { public_key: pem.into(), ..satellite() };
    two.check().expect("PEM is taken");
    assert_eq!(one, two);
}

#[test]
fn a_satellite_with_a_wrong_field_is_refused_by_its_name() {
    for name in ["", "-a", "a b", "ä", "a/b", &"a".repeat(64)] {
        assert_eq!(fault_of(Satellite { name: name.into(), ..satellite() }), "name");
    }
    for url in ["sydney", "ftp://a", "https://a/?b=c", "https://u:p@a", "https://"] {
        assert_eq!(fault_of(Satellite { access_url: url.into(), ..satellite() }), "access_url");
    }
    for key in ["", "AQE=", "-----BEGIN PUBLIC KEY-----\nAQE=\n", "x", &"A".repeat(2000)] {
        assert_eq!(fault_of(Satellite { public_key: key.into(), ..satellite() }), "public_key");
    }
}

#[test]
fn a_link_is_the_same_in_both_directions_and_never_with_oneself() {
    let link = |one: &str, other: &str| Link { peers: [one.into(), other.into()] };
    let (mut there, mut back) = (link("a", "b"), link("b", "a"));
    there.check().expect("two peers");
    back.check().expect("two peers");
    assert_eq!((there.name(), back.name()), ("a/b".to_owned(), "a/b".to_owned()));
    assert_eq!(fault_of(link("a", "a")), "peers");
}

#[test]
fn regions_and_nodes_keep_to_what_stock_clients_take() {
    let region = Region { name: "fra".into(), region_id: 900, ..Region::default() };
    assert_eq!(fault_of(Region { region_id: 0, ..region.clone() }), "region_id");
    assert_eq!(fault_of(Region { region_id: u32::MAX, ..region.clone() }), "region_id");
    let known = serde_json::json!({"RegionCode": "x"}).as_object().cloned().expect("an object");
    assert_eq!(fault_of(Region { map_fields: known, ..region }), "map_fields");
    let node = Node {
        name: "900a".into(),
        region: "fra".into(),
        host_name: "relay.example.com".into(),
        ..Node::default()
    };
    assert_eq!(fault_of(Node { host_name: "https://a".into(), ..node.clone() }), "host_name");
    assert_eq!(fault_of(Node { ipv4: "::1".into(), ..node.clone() }), "ipv4");
    assert_eq!(fault_of(Node { ipv6: "1.2.3.4".into(), ..node.clone() }), "ipv6");
    assert_eq!(fault_of(Node { stun_port: -2, ..node.clone() }), "stun_port");
    let mut off = Node { ipv4: "none".into(), stun_port: -1, ..node };
    off.check().expect("a family and STUN may be off");
}

#[test]
fn admin_may_all_and_every_holder_may_read() {
    use Scope::{Admin, Operate, Read, Register};
    for wanted in [Read, Operate, Register, Admin] {
        assert!(wanted.allowed_by(&[Admin]));
        assert!(!wanted.allowed_by(&[]));
    }
    assert!(Read.allowed_by(&[Register]) && Register.allowed_by(&[Register]));
    assert!(!Operate.allowed_by(&[Register, Read]) && !Admin.allowed_by(&[Operate]));
}
