//! Runs every seed of every fuzz target, so that a fixed finding stays fixed without a fuzzer.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tests::fuzz_targets::TARGETS;

fn fuzz_crate() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Names of what is in a directory, without their extension.
fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("part of the checkout");
    entries
        .map(|entry| entry.expect("readable").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_seed_passes_its_target() {
    for (name, target) in TARGETS {
        let corpus = fuzz_crate().join("corpus").join(name);
        let seeds = fs::read_dir(&corpus).expect("every target has a corpus");
        let mut count = 0;
        for seed in seeds {
            let path = seed.expect("readable").path();
            let data = fs::read(&path).expect("readable");
            println!("{name}: {}", path.display());
            target(&data);
            for cut in 0..data.len().min(256) {
                target(&data[..cut]);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}

#[test]
fn every_target_has_a_binary_and_a_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in(&fuzz_crate().join("fuzz_targets")), names);
    assert_eq!(names_in(&fuzz_crate().join("corpus")), names);
    let manifest = fs::read_to_string(fuzz_crate().join("Cargo.toml")).expect("a manifest");
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} has no [[bin]]");
    }
}
