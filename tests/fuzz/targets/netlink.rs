//! The kernel's answers over rtnetlink, in the host's network namespace and in the guest: any bytes become objects, an
//! error or nothing, and reading them ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink::traffic::Filter;
use netlink::{Address, Link, Neighbour, Reply, Route, replies};

fuzz_target!(|data: &[u8]| {
    let Some((sequence, answer)) = data.split_first_chunk() else { return };
    let mut count = 0;
    for reply in replies(answer, u32::from_ne_bytes(*sequence)) {
        count += 1;
        assert!(count <= answer.len(), "more replies than bytes");
        let Reply::Entry(body) = reply else { continue };
        let _ = (Address::parse(body), Filter::parse(body), Link::parse(body));
        let _ = (Neighbour::parse(body), Route::parse(body));
    }
});
