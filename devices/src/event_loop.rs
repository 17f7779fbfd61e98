//! The devices' event loop: one thread that serves every queue which does no blocking work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberOps};

/// What the loop runs: a device's handler with its queues.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Adds subscribers to a loop from any thread. Never waits for the loop, so that a vCPU thread may use it.
#[derive(Clone)]
pub struct LoopHandle(RemoteEndpoint<Subscriber>);

impl LoopHandle {
    /// Returns a handle to a loop that the test itself turns, without a thread.
    #[cfg(any(test, feature = "driver"))]
    pub(crate) fn of(manager: &EventManager<Subscriber>) -> LoopHandle {
        LoopHandle(manager.remote_endpoint())
    }

    /// Hands `subscriber` to the loop; its `init` runs there. A kick that came earlier stays in its eventfd.
    pub fn add(&self, subscriber: Subscriber) -> io::Result<()> {
        self.0
            .fire(move |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
                ops.add_subscriber(subscriber);
            })
            .map_err(io::Error::other)
    }
}

/// The running loop. Dropping it stops and joins its thread.
pub struct EventLoop {
    handle: LoopHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the loop in a thread called `name`.
    pub fn start(name: &str) -> io::Result<EventLoop> {
        let mut manager = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        let handle = LoopHandle(manager.remote_endpoint());
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            while !stopping.load(Ordering::Acquire) {
                if let Err(error) = manager.run() {
                    log::error!("event loop: {error:?}");
                    break;
                }
            }
        })?;
        Ok(EventLoop { handle, stop, thread: Some(thread) })
    }

    /// Returns a handle for adding subscribers.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Stops the loop, drops its subscribers and joins its thread.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.store(true, Ordering::Release);
        // An empty message wakes the loop; if it is gone already there is nothing to wake.
        let _ = self.handle.0.fire(|_: &mut dyn SubscriberOps<Subscriber = Subscriber>| {});
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
    use std::sync::mpsc::{Receiver, Sender, channel};

    use event_manager::{EventOps, Events};
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// Reports its kicks, and its end by hanging up.
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
        let events = EventLoop::start("test").unwrap();
        let (subscriber, kick, reports) = reporter();
        kick.write(5).unwrap();
        events.handle().add(subscriber).unwrap();
        assert_eq!(reports.recv().unwrap(), 5);
    }

    #[test]
    fn a_stopped_loop_has_dropped_its_subscribers() {
        let mut events = EventLoop::start("test").unwrap();
        let (subscriber, kick, reports) = reporter();
        events.handle().add(subscriber).unwrap();
        kick.write(1).unwrap();
        reports.recv().unwrap();
        events.stop();
        events.stop();
        assert!(reports.recv().is_err());
        let (subscriber, ..) = reporter();
        assert!(events.handle().add(subscriber).is_err());
    }
}
