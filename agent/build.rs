//! Link arguments of process 1 alone: no C library, nothing before its own entry point, no dynamic linker.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=init.ld");
    // Cargo runs this script once and keeps what it prints. In that it knows its own folder for output again when the
    // checkout has moved, but not the checkout: so the linker script is read from a copy there.
    let script =
        format!("{}/init.ld", std::env::var("OUT_DIR").expect("cargo sets it for every build script"));
    std::fs::copy("init.ld", &script).expect("copy init.ld");
    println!("cargo::rustc-link-arg-bin=init=-Wl,-T,{script}");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-z,norelro",
        "-Wl,-z,noseparate-code",
        "-Wl,-z,max-page-size=4096",
    ] {
        println!("cargo::rustc-link-arg-bin=init={argument}");
    }
}
