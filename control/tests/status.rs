//! The status page: without script, and in headless Chromium with relays that it can really ask.
#![forbid(unsafe_code)]

mod harness;
mod peers;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Once, OnceLock};

use serde_json::json;

use harness::{Control, Scratch, command, run, serve_with, write};
use peers::{Derper, skip};

/// What Debian and others call it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Milliseconds of the page's own time, which passes as fast as its requests are answered: enough for
/// the script to look again.
const PAGE_TIME: &str = "--virtual-time-budget=50000";

/// The page after its script has run, as HTML; `None` where there is no browser.
fn browse(url: &str) -> Option<String> {
    let profile = Scratch::new();
    let mut tried = BROWSERS.iter().filter_map(|browser| {
        let mut command = Command::new(browser);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors"])
            .arg(format!("--user-data-dir={}", profile.path("profile").display()))
            .args([PAGE_TIME, "--dump-dom", url]);
        command.output().ok()
    });
    let Some(ran) = tried.next() else {
        skip("chromium", "none of its programs starts");
        return None;
    };
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Some(String::from_utf8(ran.stdout).expect("HTML in UTF-8"))
}

/// The cells of the row of `target`: name, state, from control, from the browser.
fn row(page: &str, target: &str) -> Vec<String> {
    let start = page.find(&format!("<tr data-target=\"{target}\"")).expect("it has a row");
    let row = page[start..].split("</tr>").next().expect("a row ends");
    let cells = row.split("</th>").flat_map(|part| part.split("</td>"));
    let text = |cell: &str| {
        let words = cell.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text);
        words.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
    };
    cells.map(text).filter(|cell| !cell.is_empty()).collect()
}

/// A control with one relay that answers and one that does not, after it has found out.
fn scene(derper: &Derper) -> Control {
    let mut live = derper.node.clone();
    (live["Name"], live["RegionID"]) = (json!("900a"), json!(900));
    let dead = json!({"Name": "901a", "RegionID": 901, "HostName": "127.0.0.1", "IPv6": "none",
        "DERPPort": 1, "STUNPort": -1});
    let region = |id: u32, code: &str, title: &str, node| json!({"RegionID": id, "RegionCode": code, "RegionName": title, "Nodes": [node]});
    let map = json!({"Regions": {
        "900": region(900, "fra", "Frankfurt <am Main>", live),
        "901": region(901, "syd", "Sydney", dead),
    }});
    let control = Control::start_with(&["--probe-every", "200ms"]);
    let file = write(&control.scratch, "map.json", &map.to_string());
    control.cli(&["derpmap", "publish", &file, "--yes"]).expect_success();
    // One becomes healthy, the other unhealthy, in either order.
    control.wait_for("healthy kind=Node");
    control.wait_for("healthy kind=Node");
    control
}

#[test]
fn the_page_is_whole_without_script_and_open_to_all() {
    let Some(derper) = Derper::start(&[]) else { return };
    let control = scene(&derper);
    let page = control.get("/status");
    assert_eq!(page.status, 200);
    assert_eq!(control.get("/").status, 200);
    let live = row(&page.body, "node/900a");
    assert_eq!(live[..2], ["Frankfurt &lt;am Main&gt; fra · 900a", "healthy"]);
    assert!(live[2].ends_with(" ms good"), "{live:?}");
    let dead = row(&page.body, "node/901a");
    assert_eq!(dead[0], "Sydney syd · 901a");
    assert!(dead[1].starts_with("unhealthy for "), "{dead:?}");
    assert_eq!(dead[2..], ["–", "–"]);
    assert!(!page.body.contains("refused") && page.body.len() < 50_000);
    let policy = page.header("content-security-policy").expect("it has one");
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    let port = derper.node["DERPPort"].as_u64().expect("a port");
    let host = derper.node["HostName"].as_str().expect("a host");
    assert!(policy.contains(&format!(" https://{host}:{port}")), "{policy}");

    let status = control.get("/status.json").json();
    let node = &status["regions"][1]["nodes"][0];
    assert_eq!((&node["name"], &node["state"]), (&json!("901a"), &json!("unhealthy")));
    assert_eq!(node["why"], json!(null), "that is for those who may read the API");
    assert_eq!(status["latency_bands_ms"]["good_below"], 150);
}

#[test]
fn a_browser_measures_for_itself() {
    let Some(derper) = Derper::start(&[]) else { return };
    let control = scene(&derper);
    let Some(page) = browse(&format!("http://{}/", control.address)) else { return };
    let live = row(&page, "node/900a");
    let (ms, word) = live[3].split_once(" ms ").expect("a latency with its word");
    assert!(ms.parse::<f64>().expect("a number") > 0.0);
    assert_eq!(word, "good");
    assert_eq!(row(&page, "node/901a")[3], "no answer");
    assert!(page.contains("Nearest to you: Frankfurt &lt;am Main&gt;, "), "{page}");
}

#[test]
fn an_open_page_follows_when_targets_come_and_go() {
    let serving: Arc<OnceLock<(PathBuf, SocketAddr)>> = Arc::default();
    let changed = Once::new();
    let seen = Arc::clone(&serving);
    // The first question of the page that was loaded is when one node goes and another comes.
    let relay = serve_with(move |head| {
        let (socket, address) = seen.get()?;
        changed.call_once(|| change(socket, *address));
        head.starts_with("GET /derp/latency-check?").then(String::new)
    });
    let port = relay.rsplit(':').next().expect("a port").to_owned();
    let control = Control::start_with(&["--probe-every", "off"]);
    let ok = |args: &[&str]| control.cli(args).expect_success();
    ok(&["regions", "create", "fra", "900"]);
    let node = ["--force-http", "--derp-port", &port];
    ok(&[&["nodes", "create", "900a", "fra", "127.0.0.1"][..], &node].concat());
    ok(&[&["nodes", "create", "900b", "fra", "127.0.0.1"][..], &node].concat());
    serving.set((control.socket.clone(), control.address)).expect("nobody else sets it");
    let Some(page) = browse(&format!("http://{}/", control.address)) else { return };
    assert!(!page.contains("data-target=\"node/900b\""), "{page}");
    for target in ["node/900a", "node/900c"] {
        let cells = row(&page, target);
        assert!(cells[3].contains(" ms "), "its latency is measured: {cells:?}");
    }
}

/// Puts 900c, on another origin, in the place of 900b, and waits until the page says so.
fn change(socket: &Path, address: SocketAddr) {
    let relay = serve_with(|_| Some(String::new()));
    let port = relay.rsplit(':').next().expect("a port");
    let create =
        ["nodes", "create", "900c", "fra", "127.0.0.1", "--force-http", "--derp-port", port];
    for args in [&["nodes", "rm", "900b", "--yes"][..], &create] {
        run(command().args(args).arg("--socket").arg(socket)).expect_success();
    }
    loop {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").expect("it reads");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("a page");
        if page.contains("node/900c") && !page.contains("node/900b") {
            return;
        }
    }
}
