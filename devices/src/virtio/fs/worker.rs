//! The thread behind a file device: it owns the device's queues and its server, since file calls block, and must hold up
//! neither a vCPU nor the console. It is the same for every protocol.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::message::{self, Pieces};
use crate::virtio::queue::{QueueError, Served, VirtQueue};

/// The stop event in the poller; queues are there under their index.
const STOP: u64 = u64::MAX;

/// Answers the requests of one protocol.
pub trait FileServer: Send {
    /// Reads one request and writes its reply; returns the bytes written, 0 for a request that has no reply. An error
    /// refuses a request that cannot be answered: the queue completes it with nothing written and counts it.
    ///
    /// Called by one thread only, once the first request has come.
    fn handle(&mut self, request: Pieces, reply: Pieces) -> io::Result<usize>;
}

/// A server, and the thread that it is on while the device is active.
pub struct Worker {
    name: &'static str,
    server: Option<Box<dyn FileServer>>,
    running: Option<Running>,
}

/// The thread that serves, and the event that ends it.
struct Running {
    stop: Arc<EventFd>,
    thread: JoinHandle<Option<Box<dyn FileServer>>>,
}

impl Worker {
    /// Returns a worker whose thread will have this name.
    pub fn new(name: &'static str, server: Box<dyn FileServer>) -> Worker {
        Worker { name, server: Some(server), running: None }
    }

    /// Starts the thread with the device's queues.
    pub fn serve(&mut self, queues: Vec<VirtQueue>) -> io::Result<()> {
        // A driver that starts anew after a reset finds the thread of the last time still there. It is at work on nothing:
        // a reset is complete only when no request is.
        self.stop();
        if self.server.is_none() {
            return Err(io::Error::other("the file server is gone"));
        }
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let poller = poller(&stop, &queues)?;
        // The server goes to a thread that is there. A guest may have used up the host's descriptors by now; when they are
        // back, the next driver finds the server still here.
        let (give, take) = channel();
        let thread = Builder::new().name(self.name.to_owned());
        let thread = thread.spawn(move || take.recv().ok().map(|server| run(&poller, queues, server)))?;
        if let Some(server) = self.server.take() {
            // The thread waits for it.
            let _ = give.send(server);
        }
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Ends the thread, if there is one, and takes the server back.
    fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        // A counter that is full has woken the thread already.
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

/// Registers every kick, and the stop event. Edge-triggered: a kick need not be read back, which saves a system call
/// for each; one that comes while its queue is served makes the next wait return at once.
fn poller(stop: &EventFd, queues: &[VirtQueue]) -> io::Result<Epoll> {
    let poller = Epoll::new()?;
    poller.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
    for queue in queues {
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, u64::from(queue.index()));
        poller.ctl(ControlOperation::Add, queue.kick().as_raw_fd(), interest)?;
    }
    Ok(poller)
}

/// The thread: serves each queue that is kicked, until it is told to stop. Gives the server back.
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
                // The driver took its memory back, or its rings make no sense. Its kick is edge-triggered, and wakes
                // nobody for long.
                queues.remove(at).break_down(&error);
            }
        }
    }
}

/// Answers every request that is in the queue.
pub(super) fn serve(queue: &mut VirtQueue, server: &mut dyn FileServer) -> Result<(), QueueError> {
    queue.serve_chains(|memory, chain| {
        let (request, reply) = message::split(memory, chain)?;
        // The guest waits for most requests, one at a time: it hears of each as soon as it is done.
        server.handle(request, reply).map(|written| Served::DoneNow(written as u32))
    })
}
