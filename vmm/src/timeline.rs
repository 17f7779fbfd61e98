//! The marks of a boot, host's and guest's on one clock.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Limit of marks, because the guest writes some of them.
const MARKS_MAX: usize = 256;

/// One milestone of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Name of the milestone.
    pub name: &'static str,
    /// Time since the timeline's start.
    pub at: Duration,
}

/// The marks since a start time. Threads share it. It drops all marks past [`MARKS_MAX`](self).
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// Byte values that the guest writes to the mark port, and the names of their marks.
    guest_marks: &'static [(u8, &'static str)],
    marks: Mutex<Vec<Mark>>,
}

impl Timeline {
    /// Returns a timeline that starts now.
    pub fn new() -> Timeline {
        Timeline::starting(Instant::now())
    }

    /// Returns a timeline that started at `start`, for example at the start of the process.
    pub fn starting(start: Instant) -> Timeline {
        Timeline { start, guest_marks: &[], marks: Mutex::new(Vec::with_capacity(32)) }
    }

    /// Sets the names of the bytes that the guest writes to the mark port. Any other byte becomes `guest_mark`.
    pub fn with_guest_marks(self, guest_marks: &'static [(u8, &'static str)]) -> Timeline {
        Timeline { guest_marks, ..self }
    }

    /// Records that milestone `name` is reached now.
    pub fn mark(&self, name: &'static str) {
        self.at(name, Instant::now());
    }

    /// Records that milestone `name` was reached at `when`.
    pub fn at(&self, name: &'static str, when: Instant) {
        let mut marks = self.marks.lock().unwrap();
        if marks.len() < MARKS_MAX {
            marks.push(Mark { name, at: when.saturating_duration_since(self.start) });
        }
    }

    /// Records a byte that the guest wrote to the mark port.
    pub fn guest_mark(&self, byte: u8) {
        let name =
            self.guest_marks.iter().find(|(code, _)| *code == byte).map_or("guest_mark", |(_, name)| name);
        self.mark(name);
    }

    /// Returns the marks so far, earliest first.
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
