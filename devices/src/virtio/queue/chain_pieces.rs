//! The parts of a descriptor chain as pieces of guest memory.

use std::io;

use vm_memory::{GuestMemory, GuestMemoryMmap};

use super::{Chain, Check, malformed};
use crate::pieces::Pieces;

/// Checks a descriptor chain and splits it into the request and the space for the reply.
pub(super) fn split<'a>(
    memory: &'a GuestMemoryMmap,
    chain: Chain<'_>,
) -> io::Result<(Pieces<'a>, Pieces<'a>)> {
    let mut request = Vec::new();
    let mut reply = Vec::new();
    let mut check = Check::default();
    for descriptor in chain {
        check.add(&descriptor).map_err(malformed)?;
        let slice =
            memory.get_slice(descriptor.addr(), descriptor.len() as usize).map_err(io::Error::other)?;
        match descriptor.is_write_only() {
            true => reply.push(slice),
            false => request.push(slice),
        }
    }
    check.end().map_err(malformed)?;
    Ok((Pieces::new(request), Pieces::new(reply)))
}
