//! Parts of guest memory, and their places in the file of the memory.

/// Length and alignment of a large page.
pub const LARGE: u64 = 2 << 20;

/// A part of guest memory and its place in the file, in bytes; all are whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First guest physical address.
    pub start: u64,
    /// Length.
    pub len: u64,
    /// Offset in the file.
    pub offset: u64,
}

impl Extent {
    /// The large page that the part begins in.
    pub fn whole(&self) -> Extent {
        let before = self.start % LARGE;
        Extent { start: self.start - before, len: LARGE, offset: self.offset - before }
    }

    /// What of the part is in the large page at `large`.
    pub fn within(&self, large: u64) -> Option<Extent> {
        let (start, end) = (self.start.max(large), (self.start + self.len).min(large + LARGE));
        (start < end).then(|| Extent { start, len: end - start, offset: self.offset + (start - self.start) })
    }
}
