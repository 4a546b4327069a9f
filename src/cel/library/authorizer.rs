//! Kubernetes' authorization checks: `authorizer.group('').resource('pods').check('get').allowed()`.
//!
//! What is asked goes to an [`Authorizer`] that the caller gives.

use std::fmt;

use super::format;
use crate::cel::{
    functions::{Call, Functions},
    program::Meter,
    types::{LibraryType, Type},
    value::{EvalError, Evaluated, LibraryValue, ResourceCheck, Value},
};

/// Decides what an expression asks. Called while an expression is evaluated: it must answer from
/// memory.
pub trait Authorizer: Send + Sync {
    /// Whether `verb` is allowed on what `check` names.
    fn resource(&self, check: &ResourceCheck, verb: &str) -> Decision;

    /// Whether the HTTP method `verb` is allowed on a path that is no resource.
    fn path(&self, subject: &Subject, path: &str, verb: &str) -> Decision;
}

impl fmt::Debug for dyn Authorizer + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorizer")
    }
}

/// Who is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The user whose request it is.
    #[default]
    Requester,
    ServiceAccount {
        namespace: String,
        name: String,
    },
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    /// Why nothing could be decided.
    pub error: Option<String>,
}

const AUTHORIZER: Type = Type::Library(LibraryType::Authorizer);
const PATH: Type = Type::Library(LibraryType::PathCheck);
const GROUP: Type = Type::Library(LibraryType::GroupCheck);
const RESOURCE: Type = Type::Library(LibraryType::ResourceCheck);
const DECISION: Type = Type::Library(LibraryType::Decision);

pub(super) fn declare(functions: &mut Functions) {
    use Type::{Bool, String};
    let f = functions;
    f.member("path", "authorizer_path", [AUTHORIZER, String], PATH, path);
    f.member(
        "group",
        "authorizer_group",
        [AUTHORIZER, String],
        GROUP,
        group,
    );
    let account = [AUTHORIZER, String, String];
    let id = "authorizer_serviceaccount";
    f.member("serviceAccount", id, account, AUTHORIZER, service_account);
    f.member(
        "resource",
        "groupcheck_resource",
        [GROUP, String],
        RESOURCE,
        resource,
    );
    let narrowed: [(&'static str, &'static str, Call); 5] = [
        ("subresource", "resourcecheck_subresource", |_, args| {
            narrow("subresource", args, |check| &mut check.subresource)
        }),
        ("namespace", "resourcecheck_namespace", |_, args| {
            narrow("namespace", args, |check| &mut check.namespace)
        }),
        ("name", "resourcecheck_name", |_, args| {
            narrow("name", args, |check| &mut check.name)
        }),
        ("fieldSelector", "authorizer_fieldselector", |_, args| {
            narrow("fieldSelector", args, |check| &mut check.field_selector)
        }),
        ("labelSelector", "authorizer_labelselector", |_, args| {
            narrow("labelSelector", args, |check| &mut check.label_selector)
        }),
    ];
    for (name, id, call) in narrowed {
        f.member(name, id, [RESOURCE, String], RESOURCE, call);
    }
    f.member("check", "pathcheck_check", [PATH, String], DECISION, check);
    f.member(
        "check",
        "resourcecheck_check",
        [RESOURCE, String],
        DECISION,
        check,
    );
    f.member(
        "errored",
        "decision_errored",
        [DECISION],
        Bool,
        |_, args| {
            part("errored", args, |decision| {
                Value::Bool(decision.error.is_some())
            })
        },
    );
    f.member("error", "decision_error", [DECISION], String, |_, args| {
        part("error", args, |decision| {
            Value::text(decision.error.clone().unwrap_or_default())
        })
    });
    f.member(
        "allowed",
        "decision_allowed",
        [DECISION],
        Bool,
        |_, args| part("allowed", args, |decision| Value::Bool(decision.allowed)),
    );
    f.member(
        "reason",
        "decision_reason",
        [DECISION],
        String,
        |_, args| {
            part("reason", args, |decision| {
                Value::text(decision.reason.clone())
            })
        },
    );
}

impl<'a> Value<'a> {
    /// The variable `authorizer`: checks of who makes the request.
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Self {
        Self::library(LibraryValue::Authorizer(authorizer, Subject::Requester))
    }

    /// The variable `authorizer.requestResource`: a check of the resource of the request.
    pub fn request_resource(authorizer: &'a dyn Authorizer, check: ResourceCheck) -> Self {
        Self::library(LibraryValue::ResourceCheck(authorizer, check))
    }
}

fn path<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    if let [Value::Library(target), Value::String(path)] = args
        && let LibraryValue::Authorizer(authorizer, subject) = &**target
    {
        if path.trim().is_empty() {
            return Err(EvalError::new("path must not be empty"));
        }
        let check = LibraryValue::PathCheck(*authorizer, subject.clone(), path.to_string());
        return Ok(Value::library(check));
    }
    Err(EvalError::no_overload_for("path", args))
}

fn group<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    if let [Value::Library(target), Value::String(group)] = args
        && let LibraryValue::Authorizer(authorizer, subject) = &**target
    {
        let check = LibraryValue::GroupCheck(*authorizer, subject.clone(), group.to_string());
        return Ok(Value::library(check));
    }
    Err(EvalError::no_overload_for("group", args))
}

fn service_account<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    if let [
        Value::Library(target),
        Value::String(namespace),
        Value::String(name),
    ] = args
        && let LibraryValue::Authorizer(authorizer, _) = &**target
    {
        if !format::is_subdomain(name) {
            return Err(EvalError::new("Invalid service account name"));
        }
        if !format::is_label(namespace) {
            return Err(EvalError::new("Invalid service account namespace"));
        }
        let subject = Subject::ServiceAccount {
            namespace: namespace.to_string(),
            name: name.to_string(),
        };
        return Ok(Value::library(LibraryValue::Authorizer(
            *authorizer,
            subject,
        )));
    }
    Err(EvalError::no_overload_for("serviceAccount", args))
}

fn resource<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    if let [Value::Library(target), Value::String(resource)] = args
        && let LibraryValue::GroupCheck(authorizer, subject, group) = &**target
    {
        if resource.trim().is_empty() {
            return Err(EvalError::new("resource must not be empty"));
        }
        let check = ResourceCheck {
            subject: subject.clone(),
            group: group.clone(),
            resource: resource.to_string(),
            ..ResourceCheck::default()
        };
        return Ok(Value::library(LibraryValue::ResourceCheck(
            *authorizer,
            check,
        )));
    }
    Err(EvalError::no_overload_for("resource", args))
}

fn narrow<'a>(
    name: &str,
    args: &[Value<'a>],
    field: fn(&mut ResourceCheck) -> &mut String,
) -> Evaluated<'a> {
    if let [Value::Library(target), Value::String(text)] = args
        && let LibraryValue::ResourceCheck(authorizer, check) = &**target
    {
        let mut check = check.clone();
        *field(&mut check) = text.to_string();
        return Ok(Value::library(LibraryValue::ResourceCheck(
            *authorizer,
            check,
        )));
    }
    Err(EvalError::no_overload_for(name, args))
}

fn check<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    if let [Value::Library(target), Value::String(verb)] = args {
        let decision = match &**target {
            LibraryValue::PathCheck(authorizer, subject, path) => {
                Some(authorizer.path(subject, path, verb))
            }
            LibraryValue::ResourceCheck(authorizer, check) => {
                Some(authorizer.resource(check, verb))
            }
            _ => None,
        };
        if let Some(decision) = decision {
            return Ok(Value::library(LibraryValue::Decision(decision)));
        }
    }
    Err(EvalError::no_overload_for("check", args))
}

fn part<'a>(name: &str, args: &[Value<'a>], part: fn(&Decision) -> Value<'a>) -> Evaluated<'a> {
    if let [Value::Library(target)] = args
        && let LibraryValue::Decision(decision) = &**target
    {
        return Ok(part(decision));
    }
    Err(EvalError::no_overload_for(name, args))
}
