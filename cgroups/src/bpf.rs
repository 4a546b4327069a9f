//! The v2 device controller: a small program the kernel asks at every open and mknod.
//!
//! The program is made from the rules, last rule first, so that the first match decides. Attaching
//! replaces what this group had. Source: kernel, include/uapi/linux/bpf.h, `bpf_cgroup_dev_ctx`.
#![allow(unsafe_code)] // bpf(2) has no safe wrapper

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{
    Error, Group,
    devices::{Access, Kind, Rule},
};

/// One instruction: operation, registers (destination low, source high), offset, immediate.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const MOVE: u8 = 0xb7;
const EXIT: u8 = 0x95;

const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;

fn access_bits(access: Access) -> i32 {
    i32::from(access.make) | i32::from(access.read) << 1 | i32::from(access.write) << 2
}

/// Register 2 holds the kind, 3 the access wanted, 4 and 5 major and minor.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests: Vec<Instruction> = Vec::new();
        match rule.kind {
            Kind::All => {}
            Kind::Block => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, DEV_BLOCK)),
            Kind::Char => tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, DEV_CHAR)),
        }
        if rule.access != Access::FULL {
            // An allowing rule must cover all that is wanted; a denying one, any part of it.
            if rule.allow {
                tests.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
                tests.push(instruction(AND, 1, 0, 0, access_bits(rule.access)));
                tests.push(instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0));
            } else {
                tests.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
                tests.push(instruction(AND, 1, 0, 0, access_bits(rule.access)));
                tests.push(instruction(0x15, 1, 0, 0, 0)); // jump if equal to 0
            }
        }
        if let Some(major) = rule.major {
            tests.push(instruction(JUMP_NOT_EQUAL, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            tests.push(instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor as i32));
        }
        let length = tests.len();
        for (index, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER | 0x15) {
                // Past the remaining tests and the two instructions of the verdict.
                test.offset = (length - index - 1 + 2) as i16;
            }
        }
        let always = tests.is_empty();
        code.extend(tests);
        code.push(instruction(MOVE, 0, 0, 0, rule.allow.into()));
        code.push(instruction(EXIT, 0, 0, 0, 0));
        if always {
            return code; // nothing after it can be reached, which the kernel refuses
        }
    }
    code.push(instruction(MOVE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[repr(C, align(8))]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    /// The kernel refuses what is not zero behind the fields it knows: padding would be random.
    reserved: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are plain data of the size that is passed, and what they point at
    // outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            mem::size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Attaches a program made of `rules` to the group, in place of an earlier one of ours.
pub(crate) fn attach(group: &Group, rules: &[Rule]) -> Result<(), Error> {
    let dir = group.unified()?;
    let failed = |operation, source| Error::Io {
        operation,
        path: dir.clone(),
        source,
    };
    let folder = File::open(&dir).map_err(|source| failed("open", source))?;
    let code = program(rules);
    let load = Load {
        kind: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let program = bpf(5, &load).map_err(|source| failed("load the device rules of", source))?;
    // SAFETY: the kernel just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(program as RawFd) };
    let attach = Attach {
        target: folder.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: 6, // BPF_CGROUP_DEVICE
        // No flag: one program per group, replaced as a whole; groups below cannot override it
        // with anything of theirs, as containers see the tree read-only.
        ..Attach::default()
    };
    bpf(8, &attach).map_err(|source| failed("attach the device rules of", source))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::default_rules;

    /// Runs a program as the kernel would: what the rules say about one access.
    fn allowed(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_i64; 11];
        let mut at = 0_usize;
        loop {
            let step = code[at];
            let (to, from) = (
                usize::from(step.registers & 15),
                usize::from(step.registers >> 4),
            );
            let mut jump = false;
            match step.code {
                LOAD_WORD => registers[to] = context[step.offset as usize / 4].into(),
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= i64::from(step.immediate),
                SHIFT_RIGHT => registers[to] >>= step.immediate,
                MOVE => registers[to] = step.immediate.into(),
                JUMP_NOT_EQUAL => jump = registers[to] != i64::from(step.immediate),
                JUMP_NOT_EQUAL_REGISTER => jump = registers[to] != registers[from],
                0x15 => jump = registers[to] == i64::from(step.immediate),
                EXIT => return registers[0] != 0,
                other => panic!("unknown operation {other:#x}"),
            }
            at += 1 + if jump { step.offset as usize } else { 0 };
        }
    }

    #[test]
    fn verdicts() {
        const MAKE: i32 = 1;
        const READ: i32 = 2;
        let code = program(&default_rules());
        for (kind, access, major, minor, want) in [
            (DEV_CHAR, READ, 1, 3, true),   // null
            (DEV_CHAR, READ, 136, 7, true), // a terminal
            (DEV_CHAR, READ, 1, 1, false),  // mem
            (DEV_BLOCK, READ, 8, 0, false), // a disk
            (DEV_BLOCK, MAKE, 8, 0, true),  // making its node does no harm
            (DEV_BLOCK, MAKE | READ, 8, 0, false),
            (DEV_CHAR, READ, 10, 200, false), // tun
        ] {
            let found = allowed(&code, kind, access, major, minor);
            assert_eq!(found, want, "{kind} {access} {major}:{minor}");
        }
        let all = Rule {
            allow: true,
            kind: Kind::All,
            major: None,
            minor: None,
            access: Access::FULL,
        };
        assert!(allowed(&program(&[all]), DEV_BLOCK, READ, 8, 0));
        assert!(!allowed(&program(&[]), DEV_CHAR, READ, 1, 3));
    }
}
