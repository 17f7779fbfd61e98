//! How long others are waited for. A guest may leave everything unanswered, and so may the process that holds its machine:
//! no wait for either is without one of these.

use std::time::Duration;

/// How long an agent may owe an answer, where `VMM_AGENT_TIMEOUT` does not say otherwise.
pub const AGENT: Duration = Duration::from_secs(30);
/// How long a machine's process may take to say something that it knows by itself.
pub const ANSWER: Duration = Duration::from_secs(10);
/// How long a container may take to end after SIGKILL; then its machine ends.
pub const KILL: Duration = Duration::from_secs(10);
/// How long a process of the host may take to be gone after SIGKILL, with all of its memory.
pub const GONE: Duration = Duration::from_secs(30);
/// How long a machine's process may take for everything between its containers' last sign of life and its own end.
pub const ENDING: Duration = Duration::from_secs(60);
/// How long the machine's threads may take to end.
pub const THREADS: Duration = Duration::from_secs(10);
/// How long a client may take from its connection, or from a request's first byte, to the whole request.
pub const REQUEST: Duration = Duration::from_secs(10);
/// How long nobody is accepted after a connection could be neither taken nor refused.
pub const REST: Duration = Duration::from_secs(1);

/// Returns how long a container may take to end after SIGKILL where its agent has `agent` for an answer: less in a hurry,
/// longer where the machine has little CPU time.
pub fn kill(agent: Duration) -> Duration {
    KILL.min(agent).max(agent / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_has_a_bound_of_its_own_that_follows_the_agent_s() {
        let seconds = |agent| kill(Duration::from_secs(agent)).as_secs();
        assert_eq!([3, 30, 600].map(seconds), [3, 10, 200]);
    }
}
