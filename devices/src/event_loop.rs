//! The devices' event loop: one thread that serves all queues whose requests do not block.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps};

use crate::Enter;

/// A device's handler with its queues, which the loop runs.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Limit of subscribers of one device that the loop has, or is to add. A device needs one. A driver that resets and
/// starts its device faster than the loop drops subscribers is refused at this limit.
pub const SUBSCRIBERS_MAX: usize = 16;

/// Sends jobs to a loop from any thread. It never waits for the loop, so vCPU threads can use it.
#[derive(Clone)]
pub struct LoopHandle(RemoteEndpoint<Subscriber>);

impl LoopHandle {
    /// Returns a handle to a loop that the test runs itself, without a thread.
    #[cfg(any(test, feature = "driver"))]
    pub(crate) fn of(manager: &EventManager<Subscriber>) -> LoopHandle {
        LoopHandle(manager.remote_endpoint())
    }

    /// Returns an empty seat in the loop for a device.
    pub fn seat(&self) -> Seat {
        Seat { handle: self.clone(), held: None, counted: Arc::default() }
    }

    /// Runs `job` on the loop's thread. Jobs run in the order in which they were sent.
    fn send(
        &self,
        job: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Subscriber>) + Send + 'static,
    ) -> io::Result<()> {
        self.0.fire(job).map_err(io::Error::other)
    }
}

/// A device's seat in a loop. It holds at most one subscriber, which the loop drops when the device is reset.
///
/// The loop never drops a subscriber on its own, even if the subscriber's descriptors are closed. A device therefore
/// puts its handler into its seat and clears the seat on a reset, so that repeated resets leave nothing behind.
/// Dropping the seat clears it.
pub struct Seat {
    handle: LoopHandle,
    held: Option<Held>,
    /// One clone for each subscriber that the loop has not dropped.
    counted: Arc<()>,
}

/// A subscriber that the loop has, or will add when it runs the job.
struct Held {
    id: Arc<Mutex<Option<SubscriberId>>>,
    _counted: Arc<()>,
}

impl Seat {
    /// Replaces the seat's subscriber with `subscriber`, whose `init` runs on the loop's thread. An earlier kick is not
    /// lost: it stays in its eventfd.
    ///
    /// # Errors
    ///
    /// If the loop has ended, or still has to drop [`SUBSCRIBERS_MAX`] subscribers of this device.
    pub fn put(&mut self, subscriber: Subscriber) -> io::Result<()> {
        self.clear();
        if Arc::strong_count(&self.counted) > SUBSCRIBERS_MAX {
            return Err(io::Error::other("the devices' thread is too far behind"));
        }
        let id = Arc::new(Mutex::new(None));
        let held = Held { id: id.clone(), _counted: self.counted.clone() };
        self.handle.send(move |ops| {
            let added = ops.add_subscriber(subscriber);
            *id.lock().unwrap_or_else(PoisonError::into_inner) = Some(added);
        })?;
        self.held = Some(held);
        Ok(())
    }

    /// Makes the loop drop the seat's subscriber. Because jobs run in order, the loop does so after it has added the
    /// subscriber and before it adds the next one, which can then register the same descriptors.
    pub fn clear(&mut self) {
        let Some(held) = self.held.take() else { return };
        // A loop that has ended has dropped its subscribers.
        let _ = self.handle.send(move |ops| {
            let id = held.id.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(id) = id {
                // This cannot fail: only this job removes the subscriber.
                let _ = ops.remove_subscriber(id);
            }
            drop(held);
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A running loop. Dropping it stops the loop and joins its thread.
pub struct EventLoop {
    handle: LoopHandle,
    stop: Arc<AtomicBool>,
    /// Lets a loop that waits go on, when it is dropped.
    waits: Mutex<Option<Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts a loop in a thread with the name `name`, which first calls `enter`.
    pub fn start(name: &str, enter: Enter) -> io::Result<EventLoop> {
        let mut manager = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        let handle = LoopHandle(manager.remote_endpoint());
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            enter();
            while !stopping.load(Ordering::Acquire) {
                if let Err(error) = manager.run() {
                    log::error!("event loop: {error:?}");
                    break;
                }
            }
        })?;
        Ok(EventLoop { handle, stop, waits: Mutex::new(None), thread: Some(thread) })
    }

    /// Returns a handle for devices.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Makes the loop wait for [`go_on`](Self::go_on) or [`stop`](Self::stop). Returns when it waits: no handler runs then.
    pub fn hold(&self) -> io::Result<()> {
        let (waits, begun) = channel();
        let (release, released) = channel::<()>();
        self.handle.send(move |_| {
            // An error means that the loop is to go on at once.
            let _ = waits.send(());
            let _ = released.recv();
        })?;
        begun.recv().map_err(|_| io::Error::other("the devices' thread has ended"))?;
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(release);
        Ok(())
    }

    /// Lets a loop that waits go on.
    pub fn go_on(&self) {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Stops the loop, drops its subscribers and joins its thread.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.store(true, Ordering::Release);
        self.go_on();
        // An empty job wakes the loop. If the loop has already ended, sending fails and there is nothing to wake.
        let _ = self.handle.send(|_| {});
        if thread.join().is_err() {
            log::error!("event loop: the thread panicked");
        }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

    use event_manager::{EventOps, Events};
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// Sends each kick to a channel, and closes the channel when it is dropped.
    struct Reporter(EventFd, Sender<u64>);

    impl MutEventSubscriber for Reporter {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _: Events, _: &mut EventOps) {
            self.1.send(self.0.read().unwrap()).unwrap();
        }
    }

    fn reporter() -> (Subscriber, EventFd, Receiver<u64>) {
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (sender, reports) = channel();
        (Box::new(Reporter(kick.try_clone().unwrap(), sender)), kick, reports)
    }

    #[test]
    fn a_kick_that_comes_before_its_subscriber_is_not_lost() {
        let events = EventLoop::start("test", || {}).unwrap();
        let (subscriber, kick, reports) = reporter();
        kick.write(5).unwrap();
        let mut seat = events.handle().seat();
        seat.put(subscriber).unwrap();
        assert_eq!(reports.recv().unwrap(), 5);
    }

    #[test]
    fn a_stopped_loop_has_dropped_its_subscribers() {
        let mut events = EventLoop::start("test", || {}).unwrap();
        let (subscriber, kick, reports) = reporter();
        let mut seat = events.handle().seat();
        seat.put(subscriber).unwrap();
        kick.write(1).unwrap();
        reports.recv().unwrap();
        events.stop();
        events.stop();
        assert!(reports.recv().is_err());
        let (subscriber, ..) = reporter();
        assert!(seat.put(subscriber).is_err());
    }

    #[test]
    fn a_held_loop_runs_no_handler_and_loses_no_kick() {
        let events = EventLoop::start("test", || {}).unwrap();
        let (subscriber, kick, reports) = reporter();
        let mut seat = events.handle().seat();
        seat.put(subscriber).unwrap();
        events.hold().unwrap();
        kick.write(2).unwrap();
        assert_eq!(reports.try_recv(), Err(TryRecvError::Empty));
        events.go_on();
        assert_eq!(reports.recv().unwrap(), 2);
        events.hold().unwrap();
        // A loop that waits can be stopped.
        drop(events);
    }

    #[test]
    fn a_seat_holds_one_subscriber_and_drops_the_one_before() {
        let events = EventLoop::start("test", || {}).unwrap();
        let mut seat = events.handle().seat();
        let (first, kick, reports) = reporter();
        seat.put(first).unwrap();
        // The next subscriber registers the same descriptor, which the loop has released by then.
        let (sender, next_reports) = channel();
        seat.put(Box::new(Reporter(kick.try_clone().unwrap(), sender))).unwrap();
        assert!(reports.recv().is_err());
        kick.write(3).unwrap();
        assert_eq!(next_reports.recv().unwrap(), 3);
        drop(seat);
        assert!(next_reports.recv().is_err());
    }

    #[test]
    fn a_loop_that_is_behind_has_a_bounded_number_of_subscribers() {
        let mut manager = EventManager::<Subscriber>::new().unwrap();
        let mut seat = LoopHandle::of(&manager).seat();
        let mut ends = Vec::new();
        for _ in 0..SUBSCRIBERS_MAX {
            let (subscriber, _, reports) = reporter();
            seat.put(subscriber).unwrap();
            ends.push(reports);
        }
        for _ in 0..1000 {
            assert!(seat.put(reporter().0).is_err());
        }
        // When the loop has run all jobs it has dropped all subscribers, and accepts others.
        manager.run_with_timeout(0).unwrap();
        assert!(ends.iter().all(|reports| reports.recv().is_err()));
        seat.put(reporter().0).unwrap();
    }
}
