//! The state from which a file server goes on: any bytes are an error, or a server that can be saved again or says why not.
#![no_main]

use devices::virtio::fs::server;
use libfuzzer_sys::fuzz_target;

mod scratch;

fuzz_target!(|data: &[u8]| {
    let tree = scratch::tree();
    let mut server = server(&tree);
    if server.restore(data).is_ok() {
        let _ = server.save();
    }
});
