//! The thread of a file device. It owns the device's queues and its server, because system calls on files block and
//! must not delay a vCPU or the console. All file protocols use it.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::pieces::Pieces;
use crate::virtio::queue::{QueueError, Served, VirtQueue};
use crate::{Enter, StateError};

/// User data of the stop event in the poller. A queue's kick has the index of the queue.
const STOP: u64 = u64::MAX;
/// User data of the server's events.
const EVENTS: u64 = u64::MAX - 1;

/// The server of one protocol.
pub trait FileServer: Send {
    /// Reads one request and writes its reply. Returns the number of bytes written, 0 for a request without a reply. On
    /// an error, which is for requests that cannot be answered, the queue completes the request with length 0 and
    /// counts a fault.
    ///
    /// Only one thread calls this, from the first request on.
    fn handle(&mut self, request: Pieces, reply: Pieces) -> io::Result<usize>;

    /// A descriptor that is readable when the host has changed something. It stays the same.
    fn events(&self) -> Option<RawFd> {
        None
    }

    /// Whether requests of the quiet queue that came before another request must be served before it.
    fn serves_in_order(&self) -> bool {
        false
    }

    /// When [`collect`](Self::collect) must be called although there is no event.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Finds out what the host has changed. Returns after which time to do so again, `None` for when there is an event
    /// or it is [`due`](Self::due).
    fn collect(&mut self) -> Option<Duration> {
        None
    }

    /// Whether the driver has not been told of all changes.
    fn has_notices(&self) -> bool {
        false
    }

    /// Returns what the server keeps between two requests, as plain data.
    fn save(&mut self) -> Result<Vec<u8>, StateError> {
        Err(StateError::Busy("the guest has used the share, whose protocol cannot be saved"))
    }

    /// Takes over what [`save`](Self::save) returned, before the first request.
    fn restore(&mut self, _state: &[u8]) -> Result<(), StateError> {
        Err(StateError::Foreign("the share's protocol cannot be saved"))
    }

    /// Takes the next message that tells the driver of a change.
    fn notice(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// A thread that owns a server. It serves the queues of one activation after the other.
///
/// The thread starts with the device and not when the driver activates it: that happens on a vCPU's thread, whose rights
/// a new thread would inherit.
pub struct Worker {
    name: &'static str,
    /// Ends the service of the present queues, or interrupts it for `orders`.
    stop: Arc<EventFd>,
    /// `None` when the thread is to end.
    jobs: Option<Sender<Work>>,
    /// Orders to save the server while the thread has a job.
    orders: Sender<Order>,
    /// Lets a thread that has saved its server go on, when it is dropped.
    waits: Mutex<Option<Sender<()>>>,
    /// One message for each job that has ended.
    ended: Receiver<()>,
    /// The thread has a job.
    serving: bool,
    thread: Option<JoinHandle<()>>,
}

/// Queues of a device that are not like others, by index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles {
    /// The driver is told of changes here.
    pub notices: Option<u16>,
    /// The driver puts requests here that need not be served before the next one elsewhere, and kicks later or not at all.
    pub quiet: Option<u16>,
}

/// What the thread does next.
enum Work {
    /// Serves queues.
    Serve(Job),
    /// Makes its server continue from a state.
    Restore(Vec<u8>, Sender<Result<(), StateError>>),
}

/// The server is to be saved. The thread then waits until the sender of `go_on` is dropped.
struct Order {
    saved: Sender<Result<Vec<u8>, StateError>>,
    go_on: Receiver<()>,
}

/// The queues of an activation, and a poller with their kicks and the stop event.
struct Job {
    poller: Epoll,
    queues: Vec<VirtQueue>,
    roles: Roles,
}

impl Worker {
    /// Starts a thread with the name `name` for `server`, which first calls `enter`.
    pub fn new(name: &'static str, mut server: Box<dyn FileServer>, enter: Enter) -> io::Result<Worker> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (jobs, taken) = channel::<Work>();
        let (over, ended) = channel();
        let (orders, given) = channel();
        let kick = stop.clone();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            enter();
            for work in taken {
                match work {
                    Work::Serve(job) => {
                        run(job, server.as_mut(), &kick, &given);
                        if over.send(()).is_err() {
                            break;
                        }
                    }
                    // The device waits for the answer.
                    Work::Restore(state, done) => _ = done.send(server.restore(&state)),
                }
            }
        })?;
        let (waits, thread) = (Mutex::new(None), Some(thread));
        Ok(Worker { name, stop, jobs: Some(jobs), orders, waits, ended, serving: false, thread })
    }

    /// Returns the server's state. The thread then waits for [`go_on`](Self::go_on) or its end. No vCPU runs meanwhile.
    pub fn save(&self) -> Result<Vec<u8>, StateError> {
        let ((saved, state), (release, go_on)) = (channel(), channel());
        let ordered = self.serving && self.orders.send(Order { saved, go_on }).is_ok();
        if !ordered || self.stop.write(1).is_err() {
            return Err(StateError::Busy("the file server does not run"));
        }
        *self.waits.lock().unwrap() = Some(release);
        state.recv().unwrap_or(Err(StateError::Busy("the file server's thread has ended")))
    }

    /// Lets the thread serve again after [`save`](Self::save).
    pub fn go_on(&self) {
        self.waits.lock().unwrap().take();
    }

    /// Makes the server continue from a state.
    pub fn restore(&self, state: &[u8]) -> Result<(), StateError> {
        let (done, result) = channel();
        let work = Work::Restore(state.to_vec(), done);
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(work).is_err()) {
            return Err(StateError::Busy("the file server does not run"));
        }
        result.recv().unwrap_or(Err(StateError::Busy("the file server's thread has ended")))
    }

    /// Makes the thread serve `queues` instead of those before.
    pub fn serve(&mut self, mut queues: Vec<VirtQueue>, roles: Roles) -> io::Result<()> {
        // When the driver starts the device again after a reset, the thread still has the previous queues. It is idle,
        // because a reset completes only when no request is being processed.
        self.stop();
        if let Some(queue) = queues.iter_mut().find(|queue| Some(queue.index()) == roles.notices) {
            // The driver need not kick before the device has used a buffer.
            queue.quiet();
        }
        let poller = poller(&self.stop, &queues)?;
        let job = Job { poller, queues, roles };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Work::Serve(job)).is_ok());
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
        self.go_on();
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

/// When the server's events are read.
enum Collecting {
    /// The server has none.
    Never,
    /// As soon as there is one, for which the poller waits once, or when the server wants it.
    Armed,
    /// At this time, because there were some before.
    At(Instant),
}

impl Collecting {
    /// Begins to wait for the server's events.
    fn begin(poller: &Epoll, server: &dyn FileServer, wanted: bool) -> Collecting {
        let Some(events) = server.events().filter(|_| wanted) else { return Collecting::Never };
        match poller.ctl(ControlOperation::Add, events, interest()) {
            Ok(()) => Collecting::Armed,
            Err(error) => {
                log::error!("wait for changes by the host: {error}");
                Collecting::Never
            }
        }
    }

    /// Milliseconds to wait, -1 without a limit.
    fn timeout(&self, server: &dyn FileServer) -> i32 {
        let time = match self {
            Collecting::Never => None,
            Collecting::Armed => server.due(),
            Collecting::At(time) => Some(*time),
        };
        time.map_or(-1, |time| time.saturating_duration_since(Instant::now()).as_millis() as i32 + 1)
    }

    /// Reads the events if it is time, or if there was one.
    fn proceed(&mut self, poller: &Epoll, server: &mut dyn FileServer, there: bool) {
        let now = Instant::now();
        match self {
            Collecting::Armed if there || server.due().is_some_and(|due| due <= now) => {}
            Collecting::At(time) if *time <= now => {}
            _ => return,
        }
        *self = match (server.collect(), server.events()) {
            (Some(time), _) => Collecting::At(now + time),
            (None, Some(events)) => match poller.ctl(ControlOperation::Modify, events, interest()) {
                Ok(()) => Collecting::Armed,
                Err(error) => {
                    log::error!("wait for changes by the host: {error}");
                    Collecting::Never
                }
            },
            (None, None) => Collecting::Never,
        };
    }
}

fn interest() -> EpollEvent {
    EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, EVENTS)
}

/// Serves each queue that is kicked until the stop event. That event without an order is the end.
fn run(job: Job, server: &mut dyn FileServer, stop: &EventFd, orders: &Receiver<Order>) {
    let Job { poller, mut queues, roles } = job;
    let mut collecting = Collecting::begin(&poller, server, roles.notices.is_some());
    let mut events = [EpollEvent::default(); 4];
    loop {
        let count = match poller.wait(collecting.timeout(server), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("wait for requests: {error}");
                return;
            }
        };
        let events = &events[..count];
        if events.iter().any(|event| event.data() == STOP) {
            let Ok(Order { saved, go_on }) = orders.try_recv() else { return };
            let _ = stop.read();
            // The device waits for the answer.
            let _ = saved.send(server.save());
            let _ = go_on.recv();
            // A machine that ends must not serve requests that are in its state.
            if stop.read().is_ok() {
                return;
            }
        }
        for event in events {
            serve_one(&mut queues, u16::try_from(event.data()).ok(), server, roles);
        }
        serve_quiet(&mut queues, server, roles);
        collecting.proceed(&poller, server, events.iter().any(|event| event.data() == EVENTS));
        if server.has_notices() {
            serve_one(&mut queues, roles.notices, server, roles);
        }
    }
}

/// The state of a file device that the driver has not used: nothing. The server's table of files is not saved.
pub fn unused(served: &[bool]) -> Result<Vec<u8>, StateError> {
    if served.contains(&true) {
        return Err(StateError::Busy("the guest has used the share"));
    }
    Ok(Vec::new())
}

/// Serves the quiet queue, if there are requests.
fn serve_quiet(queues: &mut Vec<VirtQueue>, server: &mut dyn FileServer, roles: Roles) {
    if queues.iter().any(|queue| Some(queue.index()) == roles.quiet && queue.has_requests()) {
        serve_one(queues, roles.quiet, server, roles);
    }
}

/// Serves the queue with this index, and removes it if that fails.
fn serve_one(queues: &mut Vec<VirtQueue>, index: Option<u16>, server: &mut dyn FileServer, roles: Roles) {
    let place = |index: Option<u16>| queues.iter().position(|queue| Some(queue.index()) == index);
    let Some(at) = place(index) else { return };
    let served = match place(roles.quiet).filter(|quiet| *quiet != at) {
        Some(quiet) => {
            let [queue, quiet] = queues.get_disjoint_mut([at, quiet]).expect("two places");
            serve(queue, Some(quiet), server, roles.notices)
        }
        None => serve(&mut queues[at], None, server, roles.notices),
    };
    if let Err(error) = served {
        // The driver has reset the device, or its rings are invalid. The kick stays registered, but being
        // edge-triggered it wakes this thread at most once per kick.
        queues.remove(at).break_down(&error);
    }
}

/// Serves all requests in the queue, each after those in the `quiet` queue if the server needs that, or sends what the driver must
/// be told if it is that queue.
pub(super) fn serve(
    queue: &mut VirtQueue,
    mut quiet: Option<&mut VirtQueue>,
    server: &mut dyn FileServer,
    notices: Option<u16>,
) -> Result<(), QueueError> {
    if Some(queue.index()) == notices {
        return queue.serve(|_, mut buffer| {
            let Some(message) = server.notice() else { return Ok(Served::Later) };
            buffer.write_all(&message)?;
            Ok(Served::Done(message.len() as u32))
        });
    }
    queue.serve_pieces(|request, reply| {
        if server.serves_in_order()
            && let Some(quiet) = quiet.as_deref_mut().filter(|quiet| quiet.has_requests())
            && let Err(error) = serve(quiet, None, server, notices)
        {
            // It is served once more after this queue, and then breaks down.
            log::debug!("{error}");
        }
        // The guest waits for most requests one at a time, so it is interrupted after each.
        server.handle(request, reply).map(|written| Served::DoneNow(written as u32))
    })
}
