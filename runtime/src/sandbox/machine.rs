//! A running machine whose shutdown takes a limited time, even if its threads hang.

use std::ops::Deref;
use std::sync::mpsc::RecvTimeoutError::Disconnected;
use std::sync::mpsc::channel;
use std::thread::Builder;

use vmm::RunningVm;

use crate::deadlines;

/// A running machine. Dropping it stops the machine and waits for its threads, for a limited time: a thread may be in a
/// system call that does not return, for example in a share on an unreachable server. Such a thread ends with the
/// process.
pub struct Machine(Option<RunningVm>);

impl Machine {
    pub fn new(vm: RunningVm) -> Machine {
        Machine(Some(vm))
    }
}

impl Deref for Machine {
    type Target = RunningVm;

    fn deref(&self) -> &RunningVm {
        self.0.as_ref().expect("only drop takes the machine")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Some(vm) = self.0.take() else { return };
        let (done, ended) = channel::<()>();
        let stop = Builder::new().name("stop".to_owned()).spawn(move || {
            drop(vm);
            drop(done);
        });
        match stop {
            // The channel closes when the thread ends.
            Ok(_) if ended.recv_timeout(deadlines::THREADS).is_err_and(|error| error != Disconnected) => {
                log::warn!("the machine's threads have not ended within {} s", deadlines::THREADS.as_secs());
            }
            Ok(_) => {}
            // The failed spawn dropped its closure, and so the machine, in this thread.
            Err(error) => log::debug!("start a thread to stop the machine: {error}"),
        }
    }
}
