//! Runs programs as the kernel does.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
};

use super::{ARCHITECTURE, ARGUMENTS, Instruction, NUMBER, X86_64};

/// The input of a program: struct seccomp_data of a call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The number.
    pub number: u32,
    /// AUDIT_ARCH_*.
    pub architecture: u32,
    /// The arguments.
    pub args: [u64; 6],
}

impl Default for Call {
    fn default() -> Call {
        Call { number: 0, architecture: X86_64, args: [0; 6] }
    }
}

impl Call {
    fn word(&self, at: u32) -> u32 {
        assert_eq!(at % 4, 0, "load at {at}");
        match at {
            NUMBER => self.number,
            ARCHITECTURE => self.architecture,
            _ => {
                let at = (at - ARGUMENTS) as usize;
                (self.args[at / 8] >> (8 * (at % 8))) as u32
            }
        }
    }
}

/// Runs a program for a call. Returns its answer and the number of instructions. Panics where the kernel would refuse
/// the program.
pub fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let (mut at, mut word) = (0, 0);
    for steps in 1.. {
        let Instruction { code, jt, jf, k } = program[at];
        let code = u32::from(code);
        let go = |holds: bool| usize::from(if holds { jt } else { jf });
        at += 1;
        match code {
            _ if code == BPF_LD | BPF_W | BPF_ABS => word = call.word(k),
            _ if code == BPF_ALU | BPF_AND | BPF_K => word &= k,
            _ if code == BPF_JMP | BPF_JEQ | BPF_K => at += go(word == k),
            _ if code == BPF_JMP | BPF_JGT | BPF_K => at += go(word > k),
            _ if code == BPF_JMP | BPF_JGE | BPF_K => at += go(word >= k),
            _ if code == BPF_JMP | BPF_JA => at += k as usize,
            _ if code == BPF_RET | BPF_K => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
    unreachable!()
}
