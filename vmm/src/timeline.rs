//! The boot's milestones on one clock.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The most marks kept: the guest writes some of them.
const MARKS_MAX: usize = 256;

/// One milestone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What was reached.
    pub name: &'static str,
    /// When, since the timeline's start.
    pub at: Duration,
}

/// Milestones since a start. Shared by threads; past [`MARKS_MAX`](self) marks the rest is dropped.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// Names of the bytes that the guest writes to the mark port.
    guest_marks: &'static [(u8, &'static str)],
    marks: Mutex<Vec<Mark>>,
}

impl Timeline {
    /// Returns a timeline that starts now.
    pub fn new() -> Timeline {
        Timeline::starting(Instant::now())
    }

    /// Returns a timeline that started at `start`, say when the process did.
    pub fn starting(start: Instant) -> Timeline {
        Timeline { start, guest_marks: &[], marks: Mutex::new(Vec::with_capacity(32)) }
    }

    /// Names the bytes that the guest writes to the mark port; any other byte is called `guest_mark`.
    pub fn with_guest_marks(self, guest_marks: &'static [(u8, &'static str)]) -> Timeline {
        Timeline { guest_marks, ..self }
    }

    /// Notes that `name` is reached now.
    pub fn mark(&self, name: &'static str) {
        self.at(name, Instant::now());
    }

    /// Notes that `name` was reached at `when`.
    pub fn at(&self, name: &'static str, when: Instant) {
        let mut marks = self.marks.lock().unwrap();
        if marks.len() < MARKS_MAX {
            marks.push(Mark { name, at: when.saturating_duration_since(self.start) });
        }
    }

    /// Notes a byte that the guest wrote to the mark port.
    pub fn guest_mark(&self, byte: u8) {
        let name =
            self.guest_marks.iter().find(|(code, _)| *code == byte).map_or("guest_mark", |(_, name)| name);
        self.mark(name);
    }

    /// The marks so far, earliest first.
    pub fn marks(&self) -> Vec<Mark> {
        let mut marks = self.marks.lock().unwrap().clone();
        marks.sort_by_key(|mark| mark.at);
        marks
    }
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_in_the_order_of_time() {
        let start = Instant::now();
        let timeline = Timeline::starting(start);
        timeline.at("second", start + Duration::from_millis(2));
        timeline.at("first", start + Duration::from_millis(1));
        timeline.at("before", start - Duration::from_millis(1));
        let marks = timeline.marks();
        assert_eq!(marks.iter().map(|m| m.name).collect::<Vec<_>>(), ["before", "first", "second"]);
        assert_eq!(marks[0].at, Duration::ZERO);
        assert_eq!(marks[2].at, Duration::from_millis(2));
    }

    #[test]
    fn a_guest_cannot_fill_memory_with_marks() {
        let timeline = Timeline::new().with_guest_marks(&[(1, "started")]);
        for n in 0..10_000u32 {
            timeline.guest_mark(n as u8);
        }
        let marks = timeline.marks();
        assert_eq!(marks.len(), MARKS_MAX);
        assert_eq!(marks[0].name, "guest_mark");
        assert_eq!(marks[1].name, "started");
    }
}
