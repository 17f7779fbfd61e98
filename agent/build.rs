//! Link arguments of the binary `init`: no C library, no start-up code, no dynamic linker.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=init.ld");
    // Cargo caches this script's output. In a checkout that has moved, Cargo updates paths below OUT_DIR in the cached
    // output but no others, so the linker reads a copy of its script there.
    let script = format!("{}/init.ld", std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
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
