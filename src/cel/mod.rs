//! Common Expression Language with Kubernetes' libraries, as of Kubernetes 1.37 (cel-go 0.29).
//!
//! Owns parsing, type checking, cost estimation, compilation and metered evaluation of expressions.
//! Knows no API kind, no store and no request: callers say which variables there are, of which
//! types, and give their values as JSON, which is read in place.
//!
//! Always true:
//! - Every recursion is bounded, and so are text, tree and types: no expression overflows the stack,
//!   takes more than a tenth of a second to be refused, or runs on when its cost is exceeded.
//! - The same rule is refused, for its estimated cost, as the original refuses; it costs the same
//!   when it runs.
//! - Messages are the original's.
//!
//! How it is called:
//! - Validation rules of custom resources: one [`Environment`] per schema with rules, made with
//!   [`Environment::with_schema`] (`self`, `oldSelf`); [`Program::compile`] per rule;
//!   [`Program::estimated_cost`] times the cardinality of the schema around is compared with the
//!   limits of a definition; [`Value::from_typed_json`] of the object and [`Program::evaluate`] with
//!   [`Budget::for_rules`] per object.
//! - `matchConditions` of webhooks and policies: variables `object`, `oldObject`, `request`,
//!   `authorizer`; [`Budget::for_match_conditions`].
//! - Admission policies: the same, with `params`, `namespaceObject` and composed variables
//!   ([`Environment::compose`], [`Activation::define`]); mutating ones also
//!   [`Environment::with_patches`].
//!
//! Start at [`Program::compile`]: `syntax` makes the tree, `check` finds types, `cost` estimates,
//! `program/plan.rs` resolves names and constants, `program/eval.rs` evaluates. `library` holds the
//! functions, a file for each library; `value` what they compute with. Why this is our own:
//! `docs/decisions/cel.md`.

mod ast;
mod check;
mod cost;
mod environment;
mod functions;
mod issue;
mod library;
mod program;
mod schema;
mod source;
mod syntax;
#[cfg(test)]
mod testing;
mod types;
mod value;

pub use self::{
    cost::CostEstimate,
    environment::{Environment, Origin},
    issue::{Issue, Issues},
    library::authorizer::{Authorizer, Decision, Subject},
    program::{Activation, Budget, CompileError, PER_CALL_LIMIT, Program},
    schema::{MAX_REQUEST_BYTES, Schema},
    source::Location,
    types::{LibraryType, Type},
    value::{
        Blob, Cidr, EvalError, Ip, Key, LibraryValue, List, Map, Object, ResourceCheck, Text,
        Timestamp, Url, Value,
    },
};
