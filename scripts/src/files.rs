//! Rules of single files: places, headers, lengths, `unsafe`, and words that belong to no file.

use crate::Tracked;

/// What the top level holds; the names are fixed so that it stays a table of contents.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "bench",
    "clippy.toml",
    "control",
    "dataplane",
    "deny.toml",
    "ebpf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "scripts",
    "tests",
];

/// Lines of a Rust file without its tests.
const LINES_MAX: usize = 800;
/// Lines of a module header.
const HEADER_LINES_MAX: usize = 10;

/// Where `unsafe` may stand (invariant 10).
const UNSAFE_PLACES: &[&str] =
    &["dataplane/src/io/uring/", "dataplane/src/affinity", "dataplane/src/handover", "ebpf/"];
/// The crate root that cannot forbid what one of its modules is allowed.
const DENYING_ROOT: &str = "dataplane/src/lib.rs";

/// Folders of one machine, and hosts that mirrors replace. In pieces, so as not to name themselves.
const WORDS: &[&str] = &[
    concat!("/", "root/"),
    concat!("/", "work/"),
    concat!("/", "home/"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("proxy.", "golang.org"),
    concat!("registry.", "npmjs.org"),
    concat!("pypi.", "org"),
    concat!("deb.", "debian.org"),
];

/// Broken rules of `file`.
pub(crate) fn check(file: &Tracked) -> Vec<String> {
    let mut broken = Vec::new();
    let top = file.path.split('/').next().unwrap_or_default();
    if !TOP_LEVEL.contains(&top) {
        broken.push("does not belong to the top level; move it".to_owned());
    }
    if let Some(text) = &file.text {
        broken.extend(words(&file.path, text));
        if file.path.ends_with(".rs") {
            broken.extend(header(text));
            broken.extend(length(text));
            broken.extend(unsafe_code(&file.path, text));
        }
    }
    broken.into_iter().map(|what| format!("{}: {what}", file.path)).collect()
}

fn words(path: &str, text: &str) -> Option<String> {
    if path == "Cargo.lock" {
        return None;
    }
    let word = WORDS.iter().find(|word| text.contains(*word))?;
    let line = text.lines().position(|line| line.contains(word)).unwrap_or_default() + 1;
    Some(format!("line {line} names {word}, which other machines have not; take it out"))
}

/// A module says in its first lines what it owns. Programs that a tool generates a frame for, such
/// as fuzz targets, begin with an attribute.
fn header(text: &str) -> Option<String> {
    let lines = text
        .lines()
        .skip_while(|line| line.starts_with("#!["))
        .take_while(|line| line.starts_with("//!"));
    match lines.count() {
        0 if text.contains("fuzz_target!") => None,
        0 => Some("has no module header; say what it owns in //! lines".to_owned()),
        count if count > HEADER_LINES_MAX => {
            Some(format!("has a header of {count} lines; {HEADER_LINES_MAX} are the most"))
        }
        _ => None,
    }
}

fn length(text: &str) -> Option<String> {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    (lines > LINES_MAX)
        .then(|| format!("has {lines} lines without tests; split it, {LINES_MAX} are the most"))
}

fn unsafe_code(path: &str, text: &str) -> Option<String> {
    let test = path.rsplit('/').nth(1) == Some("tests") && !path.contains("/src/");
    let is_root = test || ["/src/lib.rs", "/src/main.rs"].iter().any(|root| path.ends_with(root));
    let wanted =
        if path == DENYING_ROOT { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
    if is_root && !path.starts_with("ebpf/") && !text.contains(wanted) {
        return Some(format!("a crate root without {wanted}; add it"));
    }
    if UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
        return None;
    }
    let is_unsafe = |line: &str| {
        let code = code_of(line);
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|open| code.contains(open))
    };
    let line = text.lines().position(is_unsafe)? + 1;
    Some(format!("line {line} is unsafe outside of {}; write it safely", UNSAFE_PLACES.join(", ")))
}

/// `line` without its comment and without what its texts say: a text that names a keyword is no use
/// of it. Texts that span lines are read as if they ended with each.
fn code_of(line: &str) -> String {
    let (mut code, mut in_text) = (String::new(), false);
    let line = line.replace("'\"'", "");
    let mut rest = line.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\\' => drop(rest.next()),
            '"' => in_text = !in_text,
            '/' if !in_text && rest.peek() == Some(&'/') => break,
            _ if in_text => {}
            _ => code.push(letter),
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        check(&Tracked { path: path.to_owned(), text: Some(text.to_owned()) })
    }

    #[test]
    fn a_good_file_passes() {
        assert_eq!(broken("dataplane/src/a.rs", "//! Owns a.\n\nfn a() {}\n"), [""; 0]);
        let told = "//! Owns a.\nfn a() { b(\"// unsafe {\") } // unsafe fn\n";
        assert_eq!(broken("dataplane/src/a.rs", told), [""; 0]);
        assert_eq!(
            broken("tests/fuzz/fuzz_targets/a.rs", "#![no_main]\nfuzz_target!(a);\n"),
            [""; 0]
        );
    }

    #[test]
    fn each_broken_rule_is_named() {
        let long = format!("//! Long.\n{}#[cfg(test)]\n", "//\n".repeat(LINES_MAX));
        let wordy = "//! Wordy.\n".repeat(HEADER_LINES_MAX + 1);
        let local = format!("//! Local.\n// see {}x\n", WORDS[0]);
        for (path, text, what) in [
            ("notes.txt", "", "top level"),
            ("bench/src/a.rs", "fn a() {}\n", "no module header"),
            ("bench/src/a.rs", &wordy, "header of 11 lines"),
            ("bench/src/a.rs", &long, "801 lines"),
            ("bench/src/a.rs", &local, "line 2 names"),
            ("bench/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", "line 2 is unsafe"),
            (
                "bench/src/a.rs",
                "//! A.\nfn a() { b(\"\\\"\"); unsafe { c() } }\n",
                "line 2 is unsafe",
            ),
            ("bench/src/main.rs", "//! A.\n", "without #![forbid(unsafe_code)]"),
            ("dataplane/src/lib.rs", "//! A.\n", "without #![deny(unsafe_code)]"),
        ] {
            let lines = broken(path, text);
            assert!(lines.len() == 1 && lines[0].contains(what), "{path}: {lines:?}, not {what}");
        }
    }
}
