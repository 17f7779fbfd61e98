//! Programs of seccomp filters, in classic BPF (Linux, Documentation/networking/filter.rst). The input of a program is
//! struct seccomp_data of a system call.
//!
//! [`Spans`] divides the call numbers into spans with one verdict each. Its program finds the span of a call by binary
//! search. This is not for the calls, whose verdict the kernel remembers, but for the filter's installation: to fill
//! that memory, the kernel runs the program for each of some 900 call numbers, and it compiles the program in several
//! passes. So a program should have few steps for most numbers, and few instructions. A chain of comparisons, as
//! seccompiler builds it, takes ten times as many steps.
//!
//! Jumps are relative and only go forward, so that a block of code may be placed anywhere.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use libc::sock_filter as Instruction;

/// Offset of the call's number in seccomp_data.
pub const NUMBER: u32 = 0;
/// Offset of the architecture.
pub const ARCHITECTURE: u32 = 4;
/// Offset of the lower half of the first argument. The upper half and the further arguments follow.
pub const ARGUMENTS: u32 = 16;
/// AUDIT_ARCH_X86_64 (linux/audit.h).
pub const X86_64: u32 = 0xc000_003e;
/// First call number of x32.
pub const X32: u32 = 0x4000_0000;

/// All call numbers, in spans with one verdict each.
#[derive(Debug)]
pub struct Spans<V>(Vec<(u32, V)>);

impl<V: PartialEq> Spans<V> {
    /// Returns one span with all numbers.
    pub fn new(verdict: V) -> Spans<V> {
        Spans(vec![(0, verdict)])
    }

    /// Gives `verdict` to all numbers from `first` on, which is in the last span.
    pub fn push(&mut self, first: u32, verdict: V) {
        match self.0.last_mut() {
            Some(last) if last.0 == first => last.1 = verdict,
            _ => self.0.push((first, verdict)),
        }
    }

    /// Returns the program. `foreign` is the answer to calls of another architecture; `code` returns the code for a
    /// verdict, all of whose ways end in an answer.
    pub fn program(mut self, foreign: u32, code: impl Fn(&V) -> Vec<Instruction>) -> Vec<Instruction> {
        self.0.dedup_by(|next, before| next.1 == before.1);
        let mut program =
            Backwards { code: Vec::with_capacity(4 * self.0.len()), verdicts: Vec::new(), of: code };
        let entry = program.search(&self.0, CALLS);
        program.go_on_at(entry);
        program.code.extend([load(NUMBER), answer(foreign), jump(BPF_JEQ, X86_64, 1, 0), load(ARCHITECTURE)]);
        program.code.reverse();
        program.code
    }
}

/// Some numbers above the last call. The kernel prepares its memory for the calls below, so these are the weights of
/// spans. Calls above them take more steps.
const CALLS: u32 = 460;
/// Maximum distance of a conditional jump, less the two instructions that [`Backwards::near`] may add.
const NEAR: usize = u8::MAX as usize - 2;

/// A program that is written from its end to its start, so that the targets of jumps are known. A target is the length
/// of the program when its code was complete.
struct Backwards<'a, V, F> {
    code: Vec<Instruction>,
    /// Code of verdicts. Several spans jump to the same code.
    verdicts: Vec<(&'a V, usize)>,
    of: F,
}

impl<'a, V: PartialEq, F: Fn(&V) -> Vec<Instruction>> Backwards<'a, V, F> {
    /// Writes the search for a call among `spans`, of which the last ends before `end`. Returns its entry.
    fn search(&mut self, spans: &'a [(u32, V)], end: u32) -> usize {
        if let [(_, verdict)] = spans {
            return self.verdict(verdict);
        }
        // Half of the numbers on each side: the kernel asks for every one of them.
        let middle = spans[0].0.midpoint(end.max(spans[0].0));
        let at = spans.partition_point(|(first, _)| *first <= middle).clamp(1, spans.len() - 1);
        let nearer = at > 1 && middle - spans[at - 1].0 < spans[at].0.abs_diff(middle);
        let at = if nearer { at - 1 } else { at };
        let (low, high) = spans.split_at(at);
        let border = high[0].0;
        let high = self.search(high, end);
        let low = self.search(low, border);
        let high = self.near(high);
        let low = self.near(low);
        let over = |target: usize| (self.code.len() - target) as u8;
        self.code.push(jump(BPF_JGE, border, over(high), over(low)));
        self.code.len()
    }

    /// Writes a verdict's code, unless it is near. Returns its entry.
    fn verdict(&mut self, verdict: &'a V) -> usize {
        let known = self.verdicts.iter().position(|(other, _)| *other == verdict);
        if let Some(at) = known
            && self.code.len() - self.verdicts[at].1 < NEAR / 2
        {
            return self.verdicts[at].1;
        }
        self.code.extend((self.of)(verdict).into_iter().rev());
        let entry = self.code.len();
        match known {
            Some(at) => self.verdicts[at].1 = entry,
            None => self.verdicts.push((verdict, entry)),
        }
        entry
    }

    /// Returns a target that a conditional jump reaches: `target`, or a jump to it.
    fn near(&mut self, target: usize) -> usize {
        if self.code.len() - target <= NEAR {
            return target;
        }
        self.go_on_at(target);
        self.code.len()
    }

    /// Continues with the code at `target`.
    fn go_on_at(&mut self, target: usize) {
        if target < self.code.len() {
            self.code.push(instruction(BPF_JMP | BPF_JA, (self.code.len() - target) as u32, 0, 0));
        }
    }
}

/// Loads the word at an offset in seccomp_data.
pub fn load(at: u32) -> Instruction {
    instruction(BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
}

/// Clears the bits of the loaded word that are not in `mask`.
pub fn and(mask: u32) -> Instruction {
    instruction(BPF_ALU | BPF_AND | BPF_K, mask, 0, 0)
}

/// Jumps `then` instructions forward if `comparison` (BPF_JEQ, BPF_JGT, BPF_JGE) of the loaded word with `value` holds,
/// otherwise `or`.
pub fn jump(comparison: u32, value: u32, then: u8, or: u8) -> Instruction {
    instruction(BPF_JMP | comparison | BPF_K, value, then, or)
}

/// Ends the program with SECCOMP_RET_*.
pub fn answer(value: u32) -> Instruction {
    instruction(BPF_RET | BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::testing::{Call, run};
    use super::*;

    #[test]
    fn a_long_filter_finds_every_call_in_few_steps() {
        let mut spans = Spans::new(1);
        for number in (0..400).step_by(2) {
            spans.push(number, 2);
            spans.push(number + 1, 1);
        }
        let program = spans.program(3, |verdict| vec![answer(*verdict)]);
        for number in 0..500 {
            let (verdict, steps) = run(&program, &Call { number, ..Call::default() });
            assert_eq!(verdict, if number < 400 && number % 2 == 0 { 2 } else { 1 }, "{number}");
            assert!(steps <= 24, "{number}: {steps}");
        }
        let foreign = Call { architecture: 7, ..Call::default() };
        assert_eq!(run(&program, &foreign).0, 3);
    }

    #[test]
    fn the_last_verdict_of_a_number_counts() {
        let mut spans = Spans::new(1);
        spans.push(5, 2);
        spans.push(5, 3);
        spans.push(6, 1);
        let program = spans.program(0, |verdict| vec![answer(*verdict)]);
        let verdicts = [4, 5, 6].map(|number| run(&program, &Call { number, ..Call::default() }).0);
        assert_eq!(verdicts, [1, 3, 1]);
    }
}
