//! The parts of a descriptor chain as pieces of guest memory.

use std::io;

use vm_memory::{GuestMemory, GuestMemoryMmap};

use super::Chain;
use crate::pieces::Pieces;

/// Splits a checked descriptor chain into the request and the space for the reply.
pub(in crate::virtio) fn split<'a>(
    memory: &'a GuestMemoryMmap,
    chain: Chain<'_>,
) -> io::Result<(Pieces<'a>, Pieces<'a>)> {
    let mut request = Vec::new();
    let mut reply = Vec::new();
    for descriptor in chain {
        let slice =
            memory.get_slice(descriptor.addr(), descriptor.len() as usize).map_err(io::Error::other)?;
        match descriptor.is_write_only() {
            true => reply.push(slice),
            false => request.push(slice),
        }
    }
    Ok((Pieces::new(request), Pieces::new(reply)))
}
