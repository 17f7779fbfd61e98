//! The thread of a file device. It owns the device's queues and its server, because system calls on files block and
//! must not delay a vCPU or the console. All file protocols use it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::pieces::Pieces;
use crate::virtio::queue::split;
use crate::virtio::queue::{QueueError, Served, VirtQueue};

/// User data of the stop event in the poller. A queue's kick has the index of the queue.
const STOP: u64 = u64::MAX;

/// The server of one protocol.
pub trait FileServer: Send {
    /// Reads one request and writes its reply. Returns the number of bytes written, 0 for a request without a reply. On
    /// an error, which is for requests that cannot be answered, the queue completes the request with length 0 and
    /// counts a fault.
    ///
    /// Only one thread calls this, from the first request on.
    fn handle(&mut self, request: Pieces, reply: Pieces) -> io::Result<usize>;
}

/// A server, and its thread while the device is active.
pub struct Worker {
    name: &'static str,
    server: Option<Box<dyn FileServer>>,
    running: Option<Running>,
}

/// A running thread, and the event that stops it.
struct Running {
    stop: Arc<EventFd>,
    thread: JoinHandle<Option<Box<dyn FileServer>>>,
}

impl Worker {
    /// Returns a worker for `server` whose thread will be called `name`.
    pub fn new(name: &'static str, server: Box<dyn FileServer>) -> Worker {
        Worker { name, server: Some(server), running: None }
    }

    /// Starts the thread, which serves `queues`.
    pub fn serve(&mut self, queues: Vec<VirtQueue>) -> io::Result<()> {
        // When the driver starts the device again after a reset, the previous thread still runs. It is idle, because a
        // reset completes only when no request is being processed.
        self.stop();
        if self.server.is_none() {
            return Err(io::Error::other("the file server's thread panicked"));
        }
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let poller = poller(&stop, &queues)?;
        // The server is sent to the thread only after the thread was created. If that fails, for example because the
        // guest has used up the file descriptors, the server stays here for the driver's next attempt.
        let (give, take) = channel();
        let thread = Builder::new().name(self.name.to_owned());
        let thread = thread.spawn(move || take.recv().ok().map(|server| run(&poller, queues, server)))?;
        if let Some(server) = self.server.take() {
            // This cannot fail: the thread waits for the server.
            let _ = give.send(server);
        }
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Stops the thread, if there is one, and takes the server back.
    fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        // If the counter is full, the thread has already been woken.
        let _ = running.stop.write(1);
        match running.thread.join() {
            Ok(server) => self.server = server,
            Err(_) => log::error!("{}: the thread panicked", self.name),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Registers all kicks, and the stop event. Kicks are edge-triggered and need not be read, which saves a system call
/// for each. A kick that comes while its queue is served makes the next wait return at once.
fn poller(stop: &EventFd, queues: &[VirtQueue]) -> io::Result<Epoll> {
    let poller = Epoll::new()?;
    poller.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
    for queue in queues {
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, u64::from(queue.index()));
        poller.ctl(ControlOperation::Add, queue.kick().as_raw_fd(), interest)?;
    }
    Ok(poller)
}

/// Body of the thread: serves each queue that is kicked until the stop event. Returns the server.
fn run(poller: &Epoll, mut queues: Vec<VirtQueue>, mut server: Box<dyn FileServer>) -> Box<dyn FileServer> {
    let mut events = [EpollEvent::default(); 4];
    loop {
        let count = match poller.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("wait for requests: {error}");
                return server;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return server;
            }
            let Some(at) = queues.iter().position(|queue| u64::from(queue.index()) == event.data()) else {
                continue;
            };
            if let Err(error) = serve(&mut queues[at], server.as_mut()) {
                // The driver has reset the device, or its rings are invalid. The kick stays registered, but being
                // edge-triggered it wakes this thread at most once per kick.
                queues.remove(at).break_down(&error);
            }
        }
    }
}

/// Serves all requests in the queue.
pub(super) fn serve(queue: &mut VirtQueue, server: &mut dyn FileServer) -> Result<(), QueueError> {
    queue.serve_chains(|memory, chain| {
        let (request, reply) = split(memory, chain)?;
        // The guest waits for most requests one at a time, so it is interrupted after each.
        server.handle(request, reply).map(|written| Served::DoneNow(written as u32))
    })
}
