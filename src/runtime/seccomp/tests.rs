use libc::{
    BPF_ALU, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_LD, BPF_RET, sock_filter,
};
use serde_json::{Value, json};

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = RETURN_ERRNO | 1;
const MISSING: u32 = RETURN_ERRNO | ENOSYS;

fn profile(rules: Value) -> LinuxSeccomp {
    serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules,
    }))
    .unwrap()
}

/// Runs a program as the kernel would, by the rules of bpf(4).
fn run(program: &[sock_filter], architecture: u32, number: u32, args: &[u64]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend([0; 8]);
    for index in 0..6 {
        data.extend(args.get(index).copied().unwrap_or(0).to_ne_bytes());
    }
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let step = program[at];
        at += 1;
        let code = u32::from(step.code);
        let jumps = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match code & 7 {
            BPF_LD => {
                let place = step.k as usize;
                value = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
            }
            BPF_ALU => value &= step.k,
            BPF_RET => return step.k,
            BPF_JMP => {
                at += match code & 0xf0 {
                    BPF_JA => step.k as usize,
                    BPF_JEQ => jumps(value == step.k),
                    BPF_JGT => jumps(value > step.k),
                    BPF_JGE => jumps(value >= step.k),
                    BPF_JSET => jumps(value & step.k != 0),
                    other => panic!("jump {other:x}"),
                };
            }
            other => panic!("instruction {other:x}"),
        }
    }
}

#[test]
fn every_operator_in_64_bits() {
    const BIG: u64 = 0x1_0000_0005;
    for (op, value, value_two, holds, fails) in [
        (
            "SCMP_CMP_EQ",
            BIG,
            0,
            vec![BIG],
            vec![5, BIG + 1, 0x2_0000_0005],
        ),
        ("SCMP_CMP_NE", BIG, 0, vec![5, BIG + 1, u64::MAX], vec![BIG]),
        (
            "SCMP_CMP_LT",
            BIG,
            0,
            vec![0, 6, BIG - 1],
            vec![BIG, BIG + 1, u64::MAX],
        ),
        (
            "SCMP_CMP_LE",
            BIG,
            0,
            vec![0, 6, BIG],
            vec![BIG + 1, 0x2_0000_0000],
        ),
        (
            "SCMP_CMP_GE",
            BIG,
            0,
            vec![BIG, BIG + 1, 0x2_0000_0000],
            vec![0, 6, BIG - 1],
        ),
        (
            "SCMP_CMP_GT",
            BIG,
            0,
            vec![BIG + 1, u64::MAX],
            vec![0, 6, BIG],
        ),
        (
            "SCMP_CMP_MASKED_EQ",
            0x1_0000_00f0_u64,
            0x1_0000_0010_u64,
            vec![0x1_0000_0010, 0xf_0000_001f],
            vec![0x10, 0x1_0000_0020],
        ),
    ] {
        let rule = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "value": value, "valueTwo": value_two, "op": op}]}]);
        let program = compile(&profile(rule)).unwrap();
        let read = table::number("read").unwrap();
        for argument in holds {
            assert_eq!(
                run(&program, program::NATIVE, read, &[0, argument]),
                ALLOW,
                "{op} {argument:x}"
            );
        }
        for argument in fails {
            assert_eq!(
                run(&program, program::NATIVE, read, &[0, argument]),
                EPERM,
                "{op} {argument:x}"
            );
        }
    }
}

#[test]
fn rules_and_defaults() {
    let argument =
        |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let program = compile(&profile(json!([
        {"names": ["write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [argument(0, 1), argument(1, 2)]},
        {"names": ["dup3"], "action": "SCMP_ACT_ALLOW", "args": [argument(0, 1), argument(0, 2)]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [argument(0, 40)]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
    ])))
    .unwrap();
    let call = |name: &str, args: &[u64]| {
        run(
            &program,
            program::NATIVE,
            table::number(name).unwrap(),
            args,
        )
    };
    assert_eq!(call("write", &[]), ALLOW);
    assert_eq!(call("read", &[]), EPERM);
    assert_eq!(call("close", &[1, 2]), ALLOW);
    assert_eq!(call("close", &[1, 3]), EPERM);
    assert_eq!(
        (call("dup3", &[1]), call("dup3", &[2]), call("dup3", &[3])),
        (ALLOW, ALLOW, EPERM)
    );
    assert_eq!(call("clone3", &[]), MISSING);
    assert_eq!(
        (call("socket", &[40]), call("socket", &[2])),
        (RETURN_ERRNO | 97, ALLOW)
    );
    let write = table::number("write").unwrap();
    for (architecture, number) in [
        (0x4000_0003, write),                   // 32-bit x86
        (program::NATIVE, 0x4000_0000 | write), // x32
        (program::NATIVE, table::NEWEST + 1),   // a newer kernel's
    ] {
        assert_eq!(
            run(&program, architecture, number, &[]),
            MISSING,
            "{architecture:x} {number}"
        );
    }
    let notify = profile(json!([{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]));
    assert!(compile(&notify).is_err());
}

#[test]
fn long_programs_jump_far() {
    // Every second call with a chain: ranges cannot be merged, and subtrees are long.
    let even = table::all().filter(|(_, number)| number % 2 == 0);
    let rules = even.map(|(name, number)| {
        let args = json!([{"index": 0, "value": number, "op": "SCMP_CMP_EQ"},
            {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]);
        json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
    });
    let rules: Vec<Value> = rules.collect();
    assert!(rules.len() > 100);
    let program = compile(&profile(json!(rules))).unwrap();
    assert!(program.len() > 1000);
    for rule in &rules {
        let name = rule["names"][0].as_str().unwrap();
        let number = table::number(name).unwrap();
        let right = run(&program, program::NATIVE, number, &[number.into(), 1]);
        let wrong = run(&program, program::NATIVE, number, &[number.into(), 2]);
        assert_eq!((right, wrong), (ALLOW, EPERM), "{name}");
    }
}
