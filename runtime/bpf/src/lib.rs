//! Programs of seccomp filters, in classic BPF (Linux, Documentation/networking/filter.rst). The input of a program is
//! struct seccomp_data of a system call.
//!
//! [`Spans`] divides the call numbers into spans with one verdict each. Its program finds the span of a call by binary
//! search. This is not for the calls, whose verdict the kernel remembers, but for the filter's installation: to fill
//! that memory, the kernel runs the program for each of some 900 call numbers. A chain of comparisons, as seccompiler
//! builds it, takes ten times as long there.
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
        let start = [load(ARCHITECTURE), jump(BPF_JEQ, X86_64, 1, 0), answer(foreign), load(NUMBER)];
        start.into_iter().chain(search(&self.0, &code)).collect()
    }
}

fn search<V>(spans: &[(u32, V)], code: &impl Fn(&V) -> Vec<Instruction>) -> Vec<Instruction> {
    if let [(_, verdict)] = spans {
        return code(verdict);
    }
    let (low, high) = spans.split_at(spans.len() / 2);
    let (border, low, high) = (high[0].0, search(low, code), search(high, code));
    let mut all = match u8::try_from(low.len()) {
        Ok(over) => vec![jump(BPF_JGE, border, over, 0)],
        // The block is longer than the maximum distance of a conditional jump.
        Err(_) => vec![jump(BPF_JGE, border, 0, 1), instruction(BPF_JMP | BPF_JA, low.len() as u32, 0, 0)],
    };
    all.extend(low);
    all.extend(high);
    all
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
