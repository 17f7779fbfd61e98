//! A machine that runs, and its end within a bound, whatever its threads wait for.

use std::ops::Deref;
use std::sync::mpsc::RecvTimeoutError::Disconnected;
use std::sync::mpsc::channel;
use std::thread::Builder;

use vmm::RunningVm;

use crate::deadlines;

/// The machine. Dropping it stops it and waits for its threads, but not for ever: one may be in a call of the host's that
/// does not return, as with a share on a server that is gone. Such a thread ends with the process.
pub struct Machine(Option<RunningVm>);

impl Machine {
    /// Takes a machine.
    pub fn new(vm: RunningVm) -> Machine {
        Machine(Some(vm))
    }
}

impl Deref for Machine {
    type Target = RunningVm;

    fn deref(&self) -> &RunningVm {
        self.0.as_ref().expect("it is there until it is dropped")
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
            // The channel ends with the thread.
            Ok(_) if ended.recv_timeout(deadlines::THREADS).is_err_and(|error| error != Disconnected) => {
                log::warn!("the machine's threads have not ended within {} s", deadlines::THREADS.as_secs());
            }
            Ok(_) => {}
            // The machine went with what the thread was to do, here and now.
            Err(error) => log::debug!("start a thread to stop the machine: {error}"),
        }
    }
}
