//! The registry table: every API kind is one [`Resource`] row.
//!
//! A row says what is its own; all verbs, Table output, discovery and OpenAPI are written once
//! over rows. A custom resource will be the same row, made at run time, hence the owned strings'
//! absence is only a convenience of the built-in table: nothing may depend on `'static`.

pub mod custom;
pub mod kinds;
pub mod table;

use serde_json::Value;

use super::status::{Cause, CauseType};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// One served kind in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    /// In discovery order: `create delete deletecollection get list patch update watch`.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// The schema's type name, `io.k8s.api.core.v1.Pod`.
    pub type_name: &'static str,
    /// Where objects lie in the store: `/registry/<storage>/<namespace>/<name>`. Two versions or
    /// groups of one kind share it (core and events.k8s.io Events) and set `convert`.
    pub storage: &'static str,
    /// Columns after Name, which every kind has first; one that lists a column `Name` itself
    /// (Event) has it there only.
    pub columns: &'static [Column],
    /// Field selectors besides metadata.name and metadata.namespace: label and JSON path.
    pub fields: &'static [Field],
    pub behaviour: Behaviour,
    /// Rows that share storage with another version: from and to the stored form.
    pub convert: Option<Conversion>,
    /// What a row made at run time has besides.
    pub custom: Option<&'static custom::Custom>,
}

impl Resource {
    /// Whether its objects are stored, and of this kind.
    pub fn is_kind(&self, group: &str, version: &str, kind: &str) -> bool {
        self.kind == kind
            && self.group == group
            && self.version == version
            && self.verbs.contains(&"get")
    }

    /// Items of a list carry neither kind nor apiVersion; those of custom resources do.
    pub fn names_kind_in_lists(&self) -> bool {
        self.custom.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    /// JSON pointers into the object: `/spec/replicas`, `/status/replicas`, and the selector.
    Scale(&'static ScalePaths),
    /// A verb of its own with a handler of its own: `log`, `exec`, `binding`, `token`, `eviction`...
    Special(&'static SpecialSubresource),
}

#[derive(Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    pub selector: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
pub struct SpecialSubresource {
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    /// Group, version and kind of its body as discovery shows them.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// A Table column. `cell` reads the object (JSON form, with kind).
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// 1: only with `-o wide`.
    pub priority: u8,
    pub cell: fn(&Value) -> Value,
}

/// A field selector's label and how its value is read from the object.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub label: &'static str,
    pub value: fn(&Value) -> String,
}

/// The few functions that are really a kind's own. All pure.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Fills in defaults; runs on requests and on stored objects, so it must be idempotent.
    pub default: fn(&mut Value),
    /// Before create: reset status, server-made values that need no lookup.
    pub prepare_create: fn(&mut Value),
    /// Before update through the main endpoint (`new`, `old`): keep what clients may not set.
    /// The generic code has already kept metadata and, where there is a status subresource, status.
    pub prepare_update: fn(&mut Value, &Value),
    pub validate: fn(&Value, &mut Causes),
    /// Rules over a new object besides: what may come later, and not from the beginning.
    pub validate_new: fn(&Value, &mut Causes),
    /// Rules over (`new`, `old`): immutable fields. `validate(new)` runs besides.
    pub validate_update: fn(&Value, &Value, &mut Causes),
    /// What is right of a new or changed (`new`, `old`) object and yet hardly meant so.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// As `prepare_update`, before a write through the subresource of this name.
    pub prepare_subresource: fn(&str, &mut Value, &Value),
    /// As `validate_update`, over a write through the subresource of this name.
    pub validate_subresource: fn(&str, &Value, &Value, &mut Causes),
    /// What of metadata a write of the status may change.
    pub status_metadata: StatusMetadata,
    /// Whether metadata.generation is kept (1 on create, +1 when spec changes).
    pub generation: bool,
    /// PUT on a missing name creates.
    pub create_on_update: bool,
    /// PUT without resourceVersion is an unconditional update; else 422.
    pub unconditional_update: bool,
    /// Grace period on delete: pods only, for all others deletion is at once.
    pub graceful: Option<fn(&Value) -> i64>,
    /// Who deletes one without saying what becomes of its dependents leaves them alone: as the
    /// first versions of the API did.
    pub orphans: bool,
}

/// What clients may change of an object's metadata through its status endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusMetadata {
    /// Labels, annotations, finalizers and owners: node agents and old controllers do.
    Free,
    /// All of these but one, which stays as it was.
    AllBut(&'static str),
    /// Nothing.
    Kept,
}

impl StatusMetadata {
    /// The members that may be changed.
    pub fn changeable(self) -> impl Iterator<Item = &'static str> {
        let free = ["labels", "annotations", "finalizers", "ownerReferences"];
        free.into_iter().filter(move |name| match self {
            Self::Free => true,
            Self::AllBut(kept) => *name != kept,
            Self::Kept => false,
        })
    }
}

/// A kind without anything of its own.
pub const PLAIN: Behaviour = Behaviour {
    default: |_| {},
    prepare_create: |_| {},
    prepare_update: |_, _| {},
    validate: |_, _| {},
    validate_new: |_, _| {},
    validate_update: |_, _, _| {},
    warnings: |_, _| Vec::new(),
    prepare_subresource: |_, _, _| {},
    validate_subresource: |_, _, _, _| {},
    status_metadata: StatusMetadata::Free,
    generation: false,
    create_on_update: false,
    unconditional_update: true,
    graceful: None,
    orphans: false,
};

/// To and from the form in the store.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
}

/// Violations that an answer names; the rest is only said to exist.
const MAX_CAUSES: usize = 100;
/// Bytes of one violation's message or path: both can quote the object.
const MAX_CAUSE_BYTES: usize = 2048;

/// Collects violations, all at once, each with its path. Always true: they are few and short,
/// whatever the object; validation that loops over lists stops when [`Causes::is_full`].
#[derive(Debug, Default)]
pub struct Causes(pub Vec<Cause>, Effort);

/// What validation has cost so far.
#[derive(Clone, Copy, Debug, Default)]
struct Effort {
    steps: usize,
    /// Only whether there is a violation is asked.
    probing: bool,
}

/// Values that may be held against schemas for one object; alternatives multiply them.
const MAX_STEPS: usize = 1_000_000;

impl Causes {
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        let message = if detail.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {detail}")
        };
        self.push(CauseType::FieldValueRequired, field, message);
    }

    pub fn invalid(
        &mut self,
        field: impl Into<String>,
        value: impl serde::Serialize,
        detail: &str,
    ) {
        if self.is_full() {
            return;
        }
        let value = shortened(serde_json::to_string(&value).unwrap_or_default());
        self.push(
            CauseType::FieldValueInvalid,
            field,
            format!("Invalid value: {value}: {detail}"),
        );
    }

    pub fn unsupported(&mut self, field: impl Into<String>, value: &str, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let message = format!(
            "Unsupported value: {value:?}: supported values: {}",
            supported.join(", ")
        );
        self.push(CauseType::FieldValueNotSupported, field, message);
    }

    pub fn duplicate(&mut self, field: impl Into<String>, value: &str) {
        self.push(
            CauseType::FieldValueDuplicate,
            field,
            format!("Duplicate value: {value:?}"),
        );
    }

    pub fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.push(
            CauseType::FieldValueForbidden,
            field,
            format!("Forbidden: {detail}"),
        );
    }

    pub fn not_found(&mut self, field: impl Into<String>, value: &str) {
        self.push(
            CauseType::FieldValueNotFound,
            field,
            format!("Not found: {value:?}"),
        );
    }

    pub fn internal(&mut self, field: impl Into<String>, detail: &str) {
        self.push(
            CauseType::InternalError,
            field,
            format!("Internal error: {detail}"),
        );
    }

    pub fn too_many(&mut self, field: impl Into<String>, count: usize, limit: usize) {
        self.push(
            CauseType::FieldValueTooMany,
            field,
            format!("Too many: {count}: must have at most {limit} items"),
        );
    }

    pub fn push(&mut self, reason: CauseType, field: impl Into<String>, message: String) {
        self.add(Cause {
            reason,
            message,
            field: field.into(),
        });
    }

    /// Takes a violation, unless there are enough of them.
    pub fn add(&mut self, cause: Cause) {
        match self.0.len() {
            count if count < MAX_CAUSES => self.0.push(Cause {
                reason: cause.reason,
                message: shortened(cause.message),
                field: shortened(cause.field),
            }),
            MAX_CAUSES => self.0.push(Cause {
                reason: CauseType::FieldValueTooMany,
                message: format!("too many errors, only the first {MAX_CAUSES} are shown"),
                field: String::new(),
            }),
            _ => {}
        }
    }

    /// Of what is said about a name, a kind's own words count more than those that hold for all.
    pub fn settle_name(&mut self) {
        let is_about_it = |cause: &Cause| cause.field == "metadata.name";
        if self.0.iter().filter(|cause| is_about_it(cause)).count() > 1
            && let Some(first) = self.0.iter().position(is_about_it)
        {
            self.0.remove(first);
        }
    }

    /// Nothing more is taken: who looks for violations may stop.
    pub fn is_full(&self) -> bool {
        let enough = if self.1.probing { 0 } else { MAX_CAUSES };
        self.0.len() > enough || self.1.steps > MAX_STEPS
    }

    /// Counts work; too much of it is a violation.
    pub fn spend(&mut self, steps: usize) {
        let before = self.1.steps;
        self.1.steps = before.saturating_add(steps);
        if before <= MAX_STEPS && self.1.steps > MAX_STEPS {
            self.add(Cause {
                reason: CauseType::FieldValueTooMany,
                message: format!(
                    "the object takes more than {MAX_STEPS} steps to hold against its schema"
                ),
                field: String::new(),
            });
        }
    }

    /// Whether `look` finds nothing. What it finds is forgotten, what it costs is not.
    pub fn probe(&mut self, look: impl FnOnce(&mut Self)) -> bool {
        let mut inner = Self(
            Vec::new(),
            Effort {
                steps: self.1.steps,
                probing: true,
            },
        );
        look(&mut inner);
        self.spend(inner.1.steps - self.1.steps);
        inner.0.is_empty()
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_CAUSE_BYTES {
        let mut end = MAX_CAUSE_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_cause() {
        let mut causes = Causes::default();
        causes.invalid("metadata.name", "A", "all say so");
        causes.required("spec", "");
        causes.invalid("metadata.name", "A", "too long");
        causes.invalid("metadata.name", "A", "capital");
        causes.settle_name();
        let left: Vec<&str> = causes.0.iter().map(|cause| &*cause.message).collect();
        let (long, capital) = (
            "Invalid value: \"A\": too long",
            "Invalid value: \"A\": capital",
        );
        assert_eq!(left, ["Required value", long, capital]);
        let mut causes = Causes::default();
        causes.invalid("metadata.name", "A", "all say so");
        causes.settle_name();
        assert_eq!(causes.0.len(), 1);
    }

    #[test]
    fn causes_are_few_and_short() {
        let mut causes = Causes::default();
        for at in 0..1000 {
            causes.invalid(format!("spec.list[{at}]"), "\u{e9}".repeat(10_000), "bad");
        }
        assert!(causes.is_full());
        assert_eq!(causes.0.len(), MAX_CAUSES + 1);
        let (last, others) = causes.0.split_last().expect("some");
        assert_eq!(
            last.message,
            "too many errors, only the first 100 are shown"
        );
        assert!(others.iter().all(|cause| cause.message.len() < 2100));
    }
}
