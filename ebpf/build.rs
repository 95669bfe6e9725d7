//! Tells the linker what the verifier takes on every machine that we serve: unaligned words in
//! packets. Without it each becomes four bytes, shifted and joined.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
}
