//! Functions that expressions may call, a file for each library.

pub(crate) mod authorizer;
pub(crate) mod automaton;
mod cidr;
pub(crate) mod conversion;
pub(crate) mod format;
mod ip;
mod lists;
mod lists_kubernetes;
mod operators;
mod optional;
mod patches;
pub(crate) mod pattern;
pub(crate) mod quantity;
mod regex;
pub(crate) mod semver;
mod sets;
pub(crate) mod standard;
mod string_format;
mod strings;
#[cfg(test)]
mod tests;
mod time;
mod url;

use super::{functions::Functions, types::Type};

/// Declares everything that environments of Kubernetes 1.37 have.
pub(crate) fn declare(functions: &mut Functions) {
    operators::declare(functions);
    conversion::declare(functions);
    standard::declare(functions);
    time::declare(functions);
    strings::declare(functions);
    string_format::declare(functions);
    lists::declare(functions);
    lists_kubernetes::declare(functions);
    sets::declare(functions);
    optional::declare(functions);
    regex::declare(functions);
    url::declare(functions);
    ip::declare(functions);
    cidr::declare(functions);
    quantity::declare(functions);
    semver::declare(functions);
    format::declare(functions);
    authorizer::declare(functions);
    patches::declare(functions);
}

pub(crate) use string_format::{Clause, clauses};

/// Parameters of generic functions.
const A: Type = Type::Parameter(0);
const B: Type = Type::Parameter(1);

fn list(element: Type) -> Type {
    Type::list(element)
}

fn map(key: Type, value: Type) -> Type {
    Type::map(key, value)
}

/// Types that have an order, with the names that overloads are called after.
fn comparable() -> [(Type, &'static str); 8] {
    [
        (Type::Int, "int"),
        (Type::Uint, "uint"),
        (Type::Double, "double"),
        (Type::Bool, "bool"),
        (Type::Duration, "duration"),
        (Type::Timestamp, "timestamp"),
        (Type::String, "string"),
        (Type::Bytes, "bytes"),
    ]
}
