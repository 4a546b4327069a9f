//! Expressions in configurations: whether they compile, in the words of the original.

use std::collections::HashSet;

use serde_json::Value;

use crate::{
    apiserver::{
        expressions::{Declared, Refusal, Returns, compile, environment},
        registry::{
            Causes,
            kinds::{
                names,
                value::{items, text},
            },
        },
    },
    cel::{Environment, Origin, Program},
};

const MAX_CONDITIONS: usize = 64;

/// Compiles; what is wrong is told with the whole expression, as it was given.
pub fn expression(
    environment: &Environment,
    given: &str,
    returns: Returns,
    path: &str,
    causes: &mut Causes,
) -> Option<Program> {
    if causes.is_full() {
        return None;
    }
    match compile(environment, given, returns) {
        Ok(program) => Some(program),
        Err(Refusal::Invalid(why)) => {
            causes.invalid(path, given, &why);
            None
        }
        Err(Refusal::Internal(why)) => {
            causes.internal(path, &why);
            None
        }
    }
}

/// `matchConditions` of a webhook or, with `params`, of a policy.
pub fn match_conditions(owner: &Value, path: &str, params: bool, causes: &mut Causes) {
    let all = items(owner, "matchConditions");
    if all.is_empty() {
        return;
    }
    let path = format!("{path}.matchConditions");
    if all.len() > MAX_CONDITIONS {
        causes.too_many(&*path, all.len(), MAX_CONDITIONS);
    }
    let declared = Declared {
        params,
        authorizer: true,
        ..Declared::default()
    };
    let environment = environment(declared, Origin::New);
    let mut seen = HashSet::new();
    for (index, one) in all.iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("{path}[{index}]");
        match text(one, "expression").trim() {
            "" => causes.required(format!("{path}.expression"), ""),
            given => {
                let path = format!("{path}.expression");
                expression(&environment, given, Returns::Bool, &path, causes);
            }
        }
        let (name, path) = (text(one, "name"), format!("{path}.name"));
        if name.is_empty() {
            causes.required(path, "");
            continue;
        }
        names::report(names::qualified_name(name), name, &path, causes);
        if !seen.insert(name) {
            causes.duplicate(path, name);
        }
    }
}

/// `variables` of a policy; those that compile can be named in what is compiled after them.
pub fn variables(policy: &Value, environment: &mut Environment, causes: &mut Causes) {
    for (index, one) in items(policy, "spec.variables").iter().enumerate() {
        if causes.is_full() {
            return;
        }
        let path = format!("spec.variables[{index}]");
        let name = text(one, "name");
        if name.trim().is_empty() {
            causes.required(format!("{path}.name"), "name is not specified");
        } else if !is_identifier(name) {
            let detail = "name is not a valid CEL identifier";
            causes.invalid(format!("{path}.name"), name, detail);
        }
        let given = text(one, "expression");
        if given.trim().is_empty() {
            causes.required(format!("{path}.expression"), "expression is not specified");
            continue;
        }
        let path = format!("{path}.expression");
        let program = expression(environment, given, Returns::Anything, &path, causes);
        // What uses one that does not compile shall not be told about that as well.
        let ty = program.map_or(crate::cel::Type::Dyn, |one| one.output_type().clone());
        environment.compose(name, &ty);
    }
}

fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(fits)
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !RESERVED.contains(&name)
}
