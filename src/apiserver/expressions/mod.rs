//! Expressions (CEL) about requests: what they may name, and how they are compiled.
//!
//! Used where configurations of webhooks and policies are checked, and by admission, which
//! evaluates them. Always true: what is compiled here names its variables in one order, so that
//! one activation serves all expressions of a policy.

pub mod kinds;
mod types;

use crate::cel::{CompileError, Environment, LibraryType, Origin, Program, Type};

/// What expressions of one owner have besides `object`, `oldObject`, `request` and
/// `namespaceObject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub params: bool,
    pub authorizer: bool,
    /// Types that patches are made of.
    pub patches: bool,
    /// `variables`, the policy's own.
    pub variables: bool,
}

/// What an expression must evaluate to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    Anything,
    Bool,
    Text,
    TextOrNull,
    ApplyConfiguration,
    JsonPatch,
}

impl Returns {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Anything => &[],
            Self::Bool => &["bool"],
            Self::Text => &["string"],
            Self::TextOrNull => &["string", "null_type"],
            Self::ApplyConfiguration => &["Object"],
            Self::JsonPatch => &["list(JSONPatch)"],
        }
    }
}

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Internal(String),
}

pub fn environment(declared: Declared, origin: Origin) -> Environment {
    let mut environment = Environment::new(origin)
        .with_variable("object", Type::Dyn)
        .with_variable("oldObject", Type::Dyn);
    environment = with_common(environment);
    if declared.variables {
        environment = environment.with_composition();
    }
    if declared.params {
        environment = environment.with_variable("params", Type::Dyn);
    }
    if declared.authorizer {
        environment = with_authorizer(environment);
    }
    if declared.patches {
        environment = environment.with_patches();
    }
    environment
}

/// The variables whose types are the same for every kind of object.
pub fn with_common(environment: Environment) -> Environment {
    environment
        .with_schema("namespaceObject", types::namespace())
        .with_schema("request", types::request())
}

pub fn with_authorizer(environment: Environment) -> Environment {
    environment
        .with_variable("authorizer", Type::Library(LibraryType::Authorizer))
        .with_variable(
            "authorizer.requestResource",
            Type::Library(LibraryType::ResourceCheck),
        )
}

pub fn compile(
    environment: &Environment,
    text: &str,
    returns: Returns,
) -> Result<Program, Refusal> {
    let program = Program::compile(environment, text).map_err(|error| match error {
        CompileError::Issues(issues) => Refusal::Invalid(format!("compilation failed: {issues}")),
        CompileError::Constant(why) => {
            Refusal::Internal(format!("program instantiation failed: {why}"))
        }
    })?;
    let names = returns.names();
    let got = program.output_type().declared();
    match names {
        [] => Ok(program),
        names if names.contains(&got.as_str()) => Ok(program),
        [one] => Err(Refusal::Invalid(format!(
            "must evaluate to {one} but got {got}"
        ))),
        several => Err(Refusal::Invalid(format!(
            "must evaluate to one of [{}] but got {got}",
            several.join(" ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compiles() {
        let all = Declared {
            params: true,
            authorizer: true,
            patches: true,
            variables: true,
        };
        use Returns::{Anything, ApplyConfiguration, Bool, JsonPatch, Text, TextOrNull};
        for (declared, text, returns, want) in [
            (Declared::default(), "object.spec.replicas > 1", Bool, ""),
            (
                Declared::default(),
                "object.spec",
                Bool,
                "must evaluate to bool but got dyn",
            ),
            (
                Declared::default(),
                "1",
                Text,
                "must evaluate to string but got int",
            ),
            (
                Declared::default(),
                "1",
                TextOrNull,
                "must evaluate to one of [string null_type] but got int",
            ),
            (Declared::default(), "null", TextOrNull, ""),
            (Declared::default(), "1", Anything, ""),
            (
                Declared::default(),
                "params.x",
                Anything,
                "undeclared reference to 'params'",
            ),
            (
                Declared::default(),
                "authorizer.path('/x').check('get').allowed()",
                Bool,
                "undeclared reference to 'authorizer'",
            ),
            (
                all,
                "params.x == 1 && authorizer.requestResource.check('get').allowed()",
                Bool,
                "",
            ),
            (
                all,
                "request.operation == 'CREATE' && request.userInfo.groups.exists(g, g == 'a')",
                Bool,
                "",
            ),
            (all, "request.uid == ''", Bool, "undefined field 'uid'"),
            (all, "namespaceObject.metadata.labels['a'] == 'b'", Bool, ""),
            (
                all,
                "namespaceObject.metadata.managedFields == 1",
                Bool,
                "undefined field 'managedFields'",
            ),
            (
                all,
                "Object{metadata: Object.metadata{labels: {'a': 'b'}}}",
                ApplyConfiguration,
                "",
            ),
            (
                all,
                "{'a': 'b'}",
                ApplyConfiguration,
                "must evaluate to Object but got map(string, string)",
            ),
            (
                all,
                "[JSONPatch{op: 'add', path: '/a', value: 1}]",
                JsonPatch,
                "",
            ),
            (all, "'('.matches('(')", Bool, "invalid matches argument"),
        ] {
            let got = match compile(&environment(declared, Origin::New), text, returns) {
                Ok(_) => String::new(),
                Err(refusal) => refusal.to_string(),
            };
            assert!(
                got.contains(want) && want.is_empty() == got.is_empty(),
                "{text}: {got}"
            );
        }
    }
}
