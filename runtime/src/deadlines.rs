//! Maximum times for answers of other processes and of guests. A guest, or the process of its machine, may never
//! answer, so every wait for one has one of these limits.

use std::time::Duration;

/// Maximum time for an agent's answer, unless `VMM_AGENT_TIMEOUT` sets another.
pub const AGENT: Duration = Duration::from_secs(30);
/// Maximum factor by which a guest's time is longer if the host gives the machine no CPU.
pub const STARVED: u32 = 10;
/// Maximum time for a machine's process to answer without its guest.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Maximum time for a container to end after SIGKILL. Then its machine is ended.
pub const KILL: Duration = Duration::from_secs(10);
/// Maximum time for a process of the host to be gone after SIGKILL, with all of its memory.
pub const GONE: Duration = Duration::from_secs(30);
/// Maximum time for a machine's process between the end of its containers and its own end.
pub const ENDING: Duration = Duration::from_secs(60);
/// Maximum time for a client to write a checkpoint to the disk. The machine waits meanwhile.
pub const SYNC: Duration = Duration::from_secs(600);
/// Maximum time for the machine's threads to end.
pub const THREADS: Duration = Duration::from_secs(10);
/// Maximum time from a client's connection, or from a request's first byte, to the complete request.
pub const REQUEST: Duration = Duration::from_secs(10);
/// Time without accepts after a connection could be neither accepted nor refused.
pub const REST: Duration = Duration::from_secs(1);

/// Returns the maximum time for a container to end after SIGKILL, for an agent with the time limit `agent`: shorter if
/// that was lowered, longer if it was raised for a slow machine.
pub fn kill(agent: Duration) -> Duration {
    KILL.min(agent).max(agent / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_kill_follows_that_of_the_agent() {
        let seconds = |agent| kill(Duration::from_secs(agent)).as_secs();
        assert_eq!([3, 30, 600].map(seconds), [3, 10, 200]);
    }
}
