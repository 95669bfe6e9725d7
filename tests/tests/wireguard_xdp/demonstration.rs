//! What the README says first of the fast path, with less data.

use std::process::Command;

use tests::netns::{Net, Plan};
use tests::process::{cargo, program};
use tests::skip::skip;

use crate::scene::APART;

#[test]
fn the_demonstration_shows_sums_that_come_out() {
    // Whoever may make this network may run it.
    if Net::new(&Plan { lans: APART, whole_checksums: true, xdp: true }).is_none() {
        return;
    }
    if let Err(error) = Command::new("go").arg("version").output() {
        return skip("go", &error.to_string());
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/wireguard-demo");
    let folder = cargo().get_current_dir().map(ToOwned::to_owned).expect("the workspace");
    let mut command = Command::new(script);
    command.current_dir(folder).args(["--mebibytes", "4", "--dataplane"]).arg(program());
    let output = command.output().expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}: {said}", output.status);
    // How much that has to be, the script judges itself.
    assert!(said.contains("% of the data went by XDP"), "{said}");
}
