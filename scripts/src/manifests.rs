//! Rules of manifests: who may depend on whom, and that lints are the workspace's.

use toml::{Table, Value};

use crate::Tracked;

/// Every package and those of ours it may depend on. These arrows are the architecture: to add one,
/// change ARCHITECTURE.md first.
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("proto", &["wire"]),
    ("steer", &["wire"]),
    ("dataplane", &["wire", "proto", "steer"]),
    ("control", &["wire", "proto", "steer"]),
    ("bench", &["wire", "proto", "steer"]),
    ("tests", &["wire", "proto", "steer"]),
    ("ebpf", &["wire"]),
    ("fuzz", &["tests"]),
    ("scripts", &[]),
];

const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Broken rules of the manifests in `tree`.
pub(crate) fn check(tree: &[Tracked]) -> Vec<String> {
    let mut broken = Vec::new();
    for file in tree.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let text = file.text.as_deref().unwrap_or_default();
        match text.parse::<Table>() {
            Ok(manifest) => broken.extend(
                check_one(&manifest).into_iter().map(|what| format!("{}: {what}", file.path)),
            ),
            Err(error) => broken.push(format!("{}: {}", file.path, error.message())),
        }
    }
    broken
}

fn check_one(manifest: &Table) -> Vec<String> {
    let name = manifest.get("package").and_then(|package| package.get("name"));
    let name = name.and_then(Value::as_str).unwrap_or_default();
    let Some((_, allowed)) = ARROWS.iter().find(|(package, _)| *package == name) else {
        return vec![format!(
            "package {name:?} has no place among the arrows; give it one in tidy"
        )];
    };
    let mut broken = Vec::new();
    for table in DEPENDENCY_TABLES {
        let listed = manifest.get(table).and_then(Value::as_table);
        for dependency in listed.into_iter().flat_map(Table::keys) {
            let ours = ARROWS.iter().any(|(package, _)| package == dependency);
            if ours && !allowed.contains(&dependency.as_str()) {
                broken.push(format!("{name} must not depend on {dependency}; take it out"));
            }
        }
    }
    // A workspace of its own has no lints to inherit.
    let alone = manifest.contains_key("workspace");
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    if !alone && inherits.and_then(Value::as_bool) != Some(true) {
        broken.push("lints are not the workspace's; write [lints] workspace = true".to_owned());
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(manifest: &str) -> Vec<String> {
        check_one(&manifest.parse().expect("a manifest"))
    }

    #[test]
    fn an_arrow_against_the_architecture_is_named() {
        let lints = "[lints]\nworkspace = true\n";
        let good = format!(
            "[package]\nname = \"proto\"\n[dependencies]\nwire = {{}}\nserde = {{}}\n{lints}"
        );
        assert_eq!(broken(&good), [""; 0]);
        let bad =
            format!("[package]\nname = \"tests\"\n[dev-dependencies]\ndataplane = {{}}\n{lints}");
        assert_eq!(broken(&bad), ["tests must not depend on dataplane; take it out"]);
    }

    #[test]
    fn strangers_and_own_lints_are_named() {
        assert_eq!(broken("[package]\nname = \"wire\"").len(), 1);
        assert_eq!(broken("[package]\nname = \"fuzz\"\n[workspace]").len(), 0);
        assert!(broken("[package]\nname = \"util\"")[0].contains("no place among the arrows"));
    }
}
