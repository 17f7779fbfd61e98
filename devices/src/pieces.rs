//! Pieces of guest memory, so that file data moves between guest and host without an intermediate buffer.

use vm_memory::{Bytes, VolatileSlice};

/// The readable or the writable part of a request: pieces of guest memory, consumed from the front.
#[derive(Default)]
pub struct Pieces<'a> {
    slices: Vec<VolatileSlice<'a>>,
    first: usize,
    len: usize,
}

impl<'a> Pieces<'a> {
    /// Returns the pieces in order.
    pub fn new(slices: Vec<VolatileSlice<'a>>) -> Pieces<'a> {
        // This cannot overflow: there are at most MAX_CHAIN pieces with 32-bit lengths.
        let len = slices.iter().map(VolatileSlice::len).sum();
        Pieces { slices, first: 0, len }
    }

    /// Number of remaining bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes remain.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The remaining pieces.
    pub fn slices(&self) -> &[VolatileSlice<'a>] {
        &self.slices[self.first..]
    }

    /// Returns a copy without the first `count` remaining bytes.
    pub fn tail(&self, count: usize) -> Pieces<'a> {
        let mut tail = Pieces { slices: self.slices().to_vec(), first: 0, len: self.len };
        tail.skip(count);
        tail
    }

    /// Moves bytes from the front to `buffer` until it is full or no bytes remain. Returns their number.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            if done == buffer.len() {
                break;
            }
            done += slice.copy_to(&mut buffer[done..]);
        }
        self.skip(done);
        done
    }

    /// Writes `data` at the front, as much as fits. Returns the number of bytes written.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            if done == data.len() {
                break;
            }
            // This writes as much as fits. It cannot fail, because offset 0 is inside the slice.
            done += slice.write(&data[done..], 0).unwrap_or(0);
        }
        self.skip(done);
        done
    }

    /// Drops `count` bytes from the front, or all if there are fewer.
    pub fn skip(&mut self, count: usize) {
        let mut rest = count.min(self.len);
        self.len -= rest;
        while let Some(slice) = self.slices.get_mut(self.first) {
            match slice.offset(rest) {
                Ok(tail) if rest < slice.len() => {
                    *slice = tail;
                    return;
                }
                _ => {
                    rest -= slice.len();
                    self.first += 1;
                }
            }
        }
    }

    /// Drops all but the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        let mut rest = len;
        for index in self.first..self.slices.len() {
            let slice = &mut self.slices[index];
            if rest <= slice.len() {
                let keep = rest > 0;
                if let (true, Ok(head)) = (keep, slice.subslice(0, rest)) {
                    *slice = head;
                }
                self.slices.truncate(index + usize::from(keep));
                return;
            }
            rest -= slice.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(buffers: &mut [Vec<u8>]) -> Pieces<'_> {
        Pieces::new(buffers.iter_mut().map(|b| VolatileSlice::from(b.as_mut_slice())).collect())
    }

    #[test]
    fn bytes_move_across_pieces() {
        let mut buffers = [vec![1, 2, 3], vec![4], vec![5, 6]];
        let mut pieces = pieces(&mut buffers);
        let mut buffer = [0; 4];
        assert_eq!((pieces.read(&mut buffer), buffer, pieces.len()), (4, [1, 2, 3, 4], 2));
        assert_eq!(pieces.read(&mut buffer), 2);
        assert!(pieces.is_empty() && pieces.slices().is_empty());
    }

    #[test]
    fn writing_fills_and_stops_at_the_end() {
        let mut buffers = [vec![0; 3], vec![0; 2]];
        let mut all = pieces(&mut buffers);
        assert_eq!((all.write(&[1, 2, 3, 4]), all.write(&[5, 6])), (4, 1));
        assert_eq!(buffers, [vec![1, 2, 3], vec![4, 5]]);
    }

    #[test]
    fn truncate_and_skip_cut_inside_and_between() {
        for (skip, len, want) in [(0, 9, 6), (0, 3, 3), (0, 4, 4), (0, 0, 0), (2, 2, 2), (4, 1, 1), (7, 1, 0)]
        {
            let mut buffers = [vec![0; 3], vec![0; 3]];
            let mut pieces = pieces(&mut buffers);
            pieces.skip(skip);
            pieces.truncate(len);
            let sum: usize = pieces.slices().iter().map(|s| s.len()).sum();
            assert_eq!((pieces.len(), sum), (want, want), "{skip} {len}");
        }
    }
}
