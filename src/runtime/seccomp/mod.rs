//! Seccomp filters: from an OCI profile to the program the kernel runs.
//!
//! Called by the container's start, in the child, as the last step before exec. Pure.
//!
//! Always true of a program that comes from here:
//! - Calls of another architecture (32-bit programs, x32) fail with ENOSYS: their numbers mean
//!   something else, and no profile speaks of them.
//! - If the profile refuses with an errno, a call newer than our table fails with ENOSYS, so that C
//!   libraries fall back to what they know.
//! - A call's rules with conditions are tried in order, then its rule without, then the default.

mod program;
mod table;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator as Operator,
};

use program::{Condition, Leaf, Test};

const ENOSYS: u32 = 38;
const RETURN_ERRNO: u32 = 0x0005_0000;
/// What a filter may say beside an action.
const DATA: u32 = 0xffff;

/// What is to happen to one call.
#[derive(Default)]
struct Rules {
    conditional: Vec<(Vec<Condition>, u32)>,
    otherwise: Option<u32>,
}

/// Compiles a profile for this machine's architecture.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<libc::sock_filter>, String> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut calls: BTreeMap<u32, Rules> = BTreeMap::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let alternatives = alternatives(rule.args().as_deref().unwrap_or_default())?;
        // A name of another architecture, or of a newer kernel, has no number here.
        for number in rule.names().iter().filter_map(|name| table::number(name)) {
            let rules = calls.entry(number).or_default();
            match alternatives.is_empty() {
                true => rules.otherwise = Some(action),
                false => {
                    let more = alternatives.iter().map(|all| (all.clone(), action));
                    rules.conditional.extend(more);
                }
            }
        }
    }
    let mut leaves = vec![(0, Leaf::Return(default))];
    for (number, rules) in calls {
        let otherwise = rules.otherwise.unwrap_or(default);
        leaves.push(match rules.conditional.is_empty() {
            true => (number, Leaf::Return(otherwise)),
            false => (number, Leaf::Chain(rules.conditional, otherwise)),
        });
        leaves.push((number + 1, Leaf::Return(default)));
    }
    let refuses = profile.default_action() == LinuxSeccompAction::ScmpActErrno;
    if refuses {
        leaves.push((table::NEWEST + 1, Leaf::Return(RETURN_ERRNO | ENOSYS)));
    }
    program::assemble(leaves, RETURN_ERRNO | ENOSYS)
}

/// Whether this architecture has a call of that name; others are passed over.
pub fn is_known(name: &str) -> bool {
    table::number(name).is_some()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, String> {
    match action {
        LinuxSeccompAction::ScmpActNotify => {
            Err("seccomp profiles with SCMP_ACT_NOTIFY are not supported".into())
        }
        action => Ok(action.as_u32(errno.map(|errno| errno & DATA))),
    }
}

/// Conditions on different arguments must all hold; two on the same one are alternatives, as other
/// runtimes have it.
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, String> {
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut seen = [false; 6];
    let repeated = conditions
        .iter()
        .any(|one| std::mem::replace(&mut seen[usize::from(one.argument)], true));
    Ok(match (conditions.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|one| vec![one]).collect(),
        (false, false) => vec![conditions],
    })
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, String> {
    let argument = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
    let argument = argument.ok_or_else(|| format!("a call has no argument {}", arg.index()))?;
    let value = arg.value();
    let test = match arg.op() {
        Operator::ScmpCmpNe => Test::NotEqual(value),
        Operator::ScmpCmpLt => Test::Less(value),
        Operator::ScmpCmpLe => Test::LessOrEqual(value),
        Operator::ScmpCmpEq => Test::Equal(value),
        Operator::ScmpCmpGe => Test::GreaterOrEqual(value),
        Operator::ScmpCmpGt => Test::Greater(value),
        Operator::ScmpCmpMaskedEq => Test::Masked {
            mask: value,
            value: arg.value_two().unwrap_or(0),
        },
    };
    Ok(Condition { argument, test })
}

#[cfg(test)]
mod tests;
