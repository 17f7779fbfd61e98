//! The thread of a file device. It owns the device's queues and its server, because system calls on files block and
//! must not delay a vCPU or the console. All file protocols use it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::Enter;
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

/// A thread that owns a server. It serves the queues of one activation after the other.
///
/// The thread starts with the device and not when the driver activates it: that happens on a vCPU's thread, whose rights
/// a new thread would inherit.
pub struct Worker {
    name: &'static str,
    /// Ends the service of the present queues.
    stop: Arc<EventFd>,
    /// `None` when the thread is to end.
    jobs: Option<Sender<Job>>,
    /// One message for each job that has ended.
    ended: Receiver<()>,
    /// The thread has a job.
    serving: bool,
    thread: Option<JoinHandle<()>>,
}

/// The queues of an activation, and a poller with their kicks and the stop event.
type Job = (Epoll, Vec<VirtQueue>);

impl Worker {
    /// Starts a thread with the name `name` for `server`, which first calls `enter`.
    pub fn new(name: &'static str, mut server: Box<dyn FileServer>, enter: Enter) -> io::Result<Worker> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (jobs, taken) = channel::<Job>();
        let (over, ended) = channel();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            enter();
            for (poller, queues) in taken {
                run(&poller, queues, server.as_mut());
                if over.send(()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Worker { name, stop, jobs: Some(jobs), ended, serving: false, thread: Some(thread) })
    }

    /// Makes the thread serve `queues` instead of those before.
    pub fn serve(&mut self, queues: Vec<VirtQueue>) -> io::Result<()> {
        // When the driver starts the device again after a reset, the thread still has the previous queues. It is idle,
        // because a reset completes only when no request is being processed.
        self.stop();
        let poller = poller(&self.stop, &queues)?;
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((poller, queues)).is_ok());
        if !sent {
            return Err(io::Error::other("the file server's thread panicked"));
        }
        self.serving = true;
        Ok(())
    }

    /// Ends the thread's job, if it has one.
    fn stop(&mut self) {
        if !std::mem::take(&mut self.serving) {
            return;
        }
        // If the counter is full, the thread has already been woken.
        let _ = self.stop.write(1);
        // An error means that the thread has panicked, which the next job or the drop reports.
        let _ = self.ended.recv();
        let _ = self.stop.read();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("{}: the thread panicked", self.name);
        }
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

/// Serves each queue that is kicked until the stop event.
fn run(poller: &Epoll, mut queues: Vec<VirtQueue>, server: &mut dyn FileServer) {
    let mut events = [EpollEvent::default(); 4];
    loop {
        let count = match poller.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("wait for requests: {error}");
                return;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            let Some(at) = queues.iter().position(|queue| u64::from(queue.index()) == event.data()) else {
                continue;
            };
            if let Err(error) = serve(&mut queues[at], server) {
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
