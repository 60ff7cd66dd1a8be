//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |what: &str, value: &str| std::env::var(what).is_ok_and(|have| have == value);
    // A position-independent program's relocations are read whole before `main`, and stay resident: in this form they
    // are a few KiB instead of 380. glibc 2.36 and later read it; a linker that does not know it warns and goes on.
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && is("PROFILE", "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
