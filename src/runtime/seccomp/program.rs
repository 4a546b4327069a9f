//! Classic BPF for seccomp: a binary search over call numbers, then argument tests. Pure.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_RET, BPF_W, sock_filter,
};

/// The kernel takes no longer programs.
const LENGTH_MAX: usize = 4096;
/// Conditional jumps reach this far.
const JUMP_MAX: usize = 255;
/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
pub const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub const NATIVE: u32 = 0xc000_00b7;
/// Set in the numbers of x32 calls, which share the architecture of 64-bit ones.
const X32: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Masked { mask: u64, value: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub test: Test,
}

/// What becomes of the calls of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    Return(u32),
    /// The first whose conditions all hold, else the last.
    Chain(Vec<(Vec<Condition>, u32)>, u32),
}

/// A program from ranges of call numbers, each by its first number, in rising order; of two that
/// start at the same number the later one counts. Foreign architectures get `foreign`.
pub fn assemble(leaves: Vec<(u32, Leaf)>, foreign: u32) -> Result<Vec<sock_filter>, String> {
    let mut ranges: Vec<(u32, Leaf)> = Vec::with_capacity(leaves.len());
    for (start, leaf) in leaves {
        if ranges.last().is_some_and(|(last, _)| *last == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != leaf) {
            ranges.push((start, leaf));
        }
    }
    let mut program = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, NATIVE, 1, 0),
        give(foreign),
        load(NUMBER),
        jump(BPF_JSET, X32, 0, 1),
        give(foreign),
    ];
    program.extend(search(&ranges)?);
    match program.len() <= LENGTH_MAX {
        true => Ok(program),
        false => Err(format!(
            "the seccomp profile makes a program of {} instructions, {LENGTH_MAX} is the most",
            program.len()
        )),
    }
}

/// Ends in a return on every path.
fn search(ranges: &[(u32, Leaf)]) -> Result<Vec<sock_filter>, String> {
    match ranges {
        [] => Err("no ranges of calls".into()),
        [(_, leaf)] => chain(leaf),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (below, above) = (search(low)?, search(high)?);
            let pivot = high[0].0;
            let mut code = match u8::try_from(below.len()) {
                Ok(length) => vec![jump(BPF_JGE, pivot, length, 0)],
                Err(_) => {
                    let length = u32::try_from(below.len()).map_err(|error| error.to_string())?;
                    vec![
                        jump(BPF_JGE, pivot, 0, 1),
                        statement(BPF_JMP | BPF_JA, length),
                    ]
                }
            };
            code.extend(below);
            code.extend(above);
            Ok(code)
        }
    }
}

fn chain(leaf: &Leaf) -> Result<Vec<sock_filter>, String> {
    let (alternatives, otherwise) = match leaf {
        Leaf::Return(action) => return Ok(vec![give(*action)]),
        Leaf::Chain(alternatives, otherwise) => (alternatives, otherwise),
    };
    let mut code = Vec::new();
    for (conditions, action) in alternatives {
        let tests: Vec<Vec<Step>> = conditions.iter().map(steps).collect();
        let total = tests.iter().map(Vec::len).sum::<usize>() + 1;
        let mut done = 0;
        for test in &tests {
            let end = done + test.len();
            for (index, step) in test.iter().enumerate() {
                let next = done + index + 1;
                // Jumps count from the next instruction.
                let distance = |to: To| match to {
                    To::Next => 0,
                    To::Holds => end - next,
                    To::Fails => total - next,
                };
                code.push(match *step {
                    Step::Load(place) => load(place),
                    Step::And(mask) => statement(BPF_ALU | BPF_AND | BPF_K, mask),
                    Step::Jump(kind, value, yes, no) => {
                        let (yes, no) = (distance(yes), distance(no));
                        if yes.max(no) > JUMP_MAX {
                            return Err("a seccomp rule has too many conditions".into());
                        }
                        jump(kind, value, yes as u8, no as u8)
                    }
                });
            }
            done = end;
        }
        code.push(give(*action));
    }
    code.push(give(*otherwise));
    Ok(code)
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// This condition holds: behind its last step.
    Holds,
    /// The rule does not apply: behind its return.
    Fails,
}

#[derive(Clone, Copy)]
enum Step {
    Load(u32),
    And(u32),
    Jump(u32, u32, To, To),
}

/// A 64-bit test in 32-bit steps, high half first.
fn steps(condition: &Condition) -> Vec<Step> {
    use Step::{And, Jump, Load};
    use To::{Fails, Holds, Next};
    let place = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = match cfg!(target_endian = "little") {
        true => (place, place + 4),
        false => (place + 4, place),
    };
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let ordered = |value: u64, above: To, below: To, last: Step| {
        let high_value = halves(value).0;
        vec![
            Load(high),
            Jump(BPF_JGT, high_value, above, Next),
            Jump(BPF_JEQ, high_value, Next, below),
            Load(low),
            last,
        ]
    };
    match condition.test {
        Test::Equal(value) => {
            let (top, bottom) = halves(value);
            vec![
                Load(high),
                Jump(BPF_JEQ, top, Next, Fails),
                Load(low),
                Jump(BPF_JEQ, bottom, Next, Fails),
            ]
        }
        Test::NotEqual(value) => {
            let (top, bottom) = halves(value);
            vec![
                Load(high),
                Jump(BPF_JEQ, top, Next, Holds),
                Load(low),
                Jump(BPF_JEQ, bottom, Fails, Next),
            ]
        }
        Test::Masked { mask, value } => {
            let ((top_mask, bottom_mask), (top, bottom)) = (halves(mask), halves(value));
            vec![
                Load(high),
                And(top_mask),
                Jump(BPF_JEQ, top, Next, Fails),
                Load(low),
                And(bottom_mask),
                Jump(BPF_JEQ, bottom, Next, Fails),
            ]
        }
        Test::Greater(value) => {
            let last = Jump(BPF_JGT, halves(value).1, Next, Fails);
            ordered(value, Holds, Fails, last)
        }
        Test::GreaterOrEqual(value) => {
            let last = Jump(BPF_JGE, halves(value).1, Next, Fails);
            ordered(value, Holds, Fails, last)
        }
        Test::Less(value) => {
            let last = Jump(BPF_JGE, halves(value).1, Fails, Next);
            ordered(value, Fails, Holds, last)
        }
        Test::LessOrEqual(value) => {
            let last = Jump(BPF_JGT, halves(value).1, Fails, Next);
            ordered(value, Fails, Holds, last)
        }
    }
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

fn load(place: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, place)
}

fn give(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

fn jump(kind: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter {
        jt: yes,
        jf: no,
        ..statement(BPF_JMP | kind | BPF_K, value)
    }
}
