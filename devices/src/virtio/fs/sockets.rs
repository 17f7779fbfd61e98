//! SOCKET: what the guest's kernel asks when processes connect, listen, and close sockets of shared directories.

use super::server::{FuseServer, Request};
use super::wire::{SocketIn, SocketOut, socket};
use crate::share::errno::{Errno, Result};

impl FuseServer {
    pub(super) fn socket(&mut self, request: &Request) -> Result<()> {
        let input = SocketIn::parse(request.body).ok_or(Errno(libc::EINVAL))?;
        match input.what {
            socket::CONNECT => {
                let reached = self.share.connect_socket(request.nodeid, input.value)?;
                let out =
                    SocketOut { ticket: reached.ticket, uid: reached.uid, gid: reached.gid, padding: 0 };
                out.put(&mut self.reply);
            }
            socket::CANCEL => self.share.cancel_connection(input.value)?,
            socket::LISTEN => self.share.listen_on_socket(request.nodeid, input.value)?,
            socket::CLOSE => self.share.close_socket(request.nodeid),
            _ => return Err(Errno(libc::EINVAL)),
        }
        Ok(())
    }
}
