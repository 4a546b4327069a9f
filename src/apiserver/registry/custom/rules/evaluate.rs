//! Objects are held against rules.

use std::sync::Arc;

use serde_json::Value;

use super::{Own, Reason, Rule, Rules};
use crate::{
    apiserver::{
        registry::{
            Causes,
            custom::schema::{Items, MAX_PATH, Tree, member, same},
        },
        status::{Cause, CauseType},
    },
    cel::{Activation, Budget, EvalError, Program, Value as Cel},
};

/// Longest message that an expression may make.
const MAX_MESSAGE: usize = 5 * 1024;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";
/// Of a path at the root, as the original prints it.
const ROOT: &str = "<nil>";

/// Nothing more is to be evaluated.
struct Stop;

/// Every rule that the object breaks. What is as it was in `old` may break rules that are new, other
/// than those about what changes; that is told by warnings.
pub fn evaluate(
    rules: &Rules,
    schema: &Tree,
    object: &Value,
    old: Option<&Value>,
    causes: &mut Causes,
) -> Vec<String> {
    let budget = &mut Budget::for_rules();
    evaluate_with(rules, schema, object, old, "", budget, causes)
}

/// As [`evaluate`], of a value at `path`, with what is left of a budget.
pub fn evaluate_with(
    rules: &Rules,
    schema: &Tree,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &mut Budget,
    causes: &mut Causes,
) -> Vec<String> {
    let mut walk = Walk {
        budget,
        causes,
        warnings: Vec::new(),
    };
    let was = Was {
        old,
        like: old,
        around: None,
    };
    // What it could not look at is reported where it stopped.
    let _ = walk.node(rules, schema, value, was, path);
    walk.warnings
}

struct Walk<'w> {
    budget: &'w mut Budget,
    causes: &'w mut Causes,
    warnings: Vec<String>,
}

/// What is known of a place before the update.
#[derive(Clone, Copy)]
struct Was<'o> {
    /// `oldSelf`.
    old: Option<&'o Value>,
    /// What it is compared with to see whether it has changed.
    like: Option<&'o Value>,
    /// Whether the nearest place around that can be compared is unchanged; not asked yet if it can be
    /// compared itself.
    around: Option<bool>,
}

impl Walk<'_> {
    fn node(
        &mut self,
        rules: &Rules,
        schema: &Tree,
        value: &Value,
        was: Was<'_>,
        path: &str,
    ) -> Result<(), Stop> {
        if value.is_null() || self.causes.is_full() {
            return Ok(());
        }
        if let Some(own) = &rules.own {
            self.own(own, schema, value, was, path)?;
        }
        // Computed at most once for each list or map, and only where items cannot be told apart.
        let unchanged = || match was.like {
            Some(like) => Some(same(schema, value, like)),
            None => was.around,
        };
        match value {
            Value::Array(list) => {
                let Some(items) = &rules.items else {
                    return Ok(());
                };
                let keys: Vec<&str> = rules.keys.iter().map(String::as_str).collect();
                let olds = Items::with_keys(keys.clone(), was.old);
                let likes = Items::with_keys(keys, was.like);
                let mut around = None;
                for (index, item) in list.iter().enumerate() {
                    let like = likes.find(item);
                    if like.is_none() && around.is_none() {
                        around = Some(unchanged());
                    }
                    let was = Was {
                        old: olds.find(item),
                        like,
                        around: around.flatten(),
                    };
                    let path = format!("{path}[{index}]");
                    self.node(items, &schema["items"], item, was, &path)?;
                }
            }
            Value::Object(map) => {
                let mut around = None;
                let mut inner = |name: &str| {
                    let like = was.like.and_then(|like| member(like, name));
                    if like.is_none() && around.is_none() {
                        around = Some(unchanged());
                    }
                    Was {
                        old: was.old.and_then(|old| member(old, name)),
                        like,
                        around: around.flatten(),
                    }
                };
                if let Some(additional) = &rules.additional {
                    for (name, value) in map {
                        let was = inner(name);
                        let path = match name.len() + path.len() > MAX_PATH {
                            true => path.to_owned(),
                            false => format!("{path}[{name}]"),
                        };
                        let schema = &schema["additionalProperties"];
                        self.node(additional, schema, value, was, &path)?;
                    }
                }
                for (name, rules) in &rules.properties {
                    let Some(value) = map.get(name) else {
                        continue;
                    };
                    let was = inner(name);
                    let path = match path {
                        "" => name.clone(),
                        path => format!("{path}.{name}"),
                    };
                    let schema = &schema["properties"][name.as_str()];
                    self.node(rules, schema, value, was, &path)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn own(
        &mut self,
        own: &Own,
        schema: &Tree,
        value: &Value,
        was: Was<'_>,
        path: &str,
    ) -> Result<(), Stop> {
        if own.rules.is_empty() {
            return Ok(());
        }
        if self.budget.remaining() == 0 {
            return self.stop(own, path, OUT_OF_BUDGET);
        }
        let this = Cel::from_typed_json(value, &own.schema);
        let old = was.old.filter(|old| !old.is_null());
        let old = old.map(|old| Cel::from_typed_json(old, &own.schema));
        let activation = |optional: bool| {
            let mut activation = Activation::new(&own.environment);
            if let Ok(this) = &this {
                activation.bind("self", this.clone());
            }
            match (&old, optional) {
                (Some(Ok(old)), true) => {
                    activation.bind("oldSelf", Cel::Optional(Some(Arc::new(old.clone()))));
                }
                (None, true) => {
                    activation.bind("oldSelf", Cel::Optional(None));
                }
                (Some(Ok(old)), false) => {
                    activation.bind("oldSelf", old.clone());
                }
                _ => {}
            }
            activation
        };
        let plain = activation(false);
        let mut with_optional = None;
        let mut unchanged = None;
        for rule in &own.rules {
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    self.invalid(own, path, &format!("rule compile error: {why}"));
                    continue;
                }
            };
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            // A value that is not as its schema says fails every rule that looks at it.
            let broken = match (&this, &old) {
                (Err(error), _) if program.uses("self") => Some(error),
                (_, Some(Err(error))) if rule.uses_old => Some(error),
                _ => None,
            };
            if let Some(error) = broken {
                self.invalid(
                    own,
                    path,
                    &format!("{error} evaluating rule: {}", rule.name),
                );
                continue;
            }
            let given: &Activation<'_> = match rule.optional_old {
                true => with_optional.get_or_insert_with(|| activation(true)),
                false => &plain,
            };
            match program.evaluate(given, self.budget) {
                Ok(Cel::Bool(true)) => continue,
                Ok(_) => {}
                Err(EvalError::Budget) => return self.stop(own, path, OUT_OF_BUDGET),
                Err(error @ EvalError::CostLimit) => {
                    let what = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.name
                    );
                    return self.stop(own, path, &what);
                }
                Err(EvalError::Failed(why)) if why.starts_with("no such overload") => {
                    let what = format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                        rule.name
                    );
                    self.invalid(own, path, &what);
                    continue;
                }
                Err(EvalError::Failed(why)) => {
                    self.invalid(own, path, &format!("{why} evaluating rule: {}", rule.name));
                    continue;
                }
            }
            let at = match &rule.field {
                Some(field) if field.starts_with('[') || path.is_empty() => {
                    format!("{path}{field}")
                }
                Some(field) => format!("{path}.{field}"),
                None => path.to_owned(),
            };
            let tolerated = !rule.uses_old
                && *unchanged.get_or_insert_with(|| match was.like {
                    Some(like) => same(schema, value, like),
                    None => was.around == Some(true),
                });
            let detail = match &rule.message {
                None => rule.default_message(),
                Some((message, text)) => match self.message(message, text, &plain) {
                    Ok(Some(made)) => made,
                    Ok(None) => rule.default_message(),
                    Err(why) => {
                        let message = typed(own, &why);
                        self.add(CauseType::FieldValueInvalid, &at, message, tolerated);
                        return Err(Stop);
                    }
                },
            };
            let (reason, message) = rule.violation(own, value, &detail);
            self.add(reason, &at, message, tolerated);
        }
        Ok(())
    }

    /// What the expression makes of it; nothing if that is no message. `Err`: it cost too much.
    fn message<'v>(
        &mut self,
        program: &'v Program,
        text: &str,
        activation: &Activation<'v>,
    ) -> Result<Option<String>, String> {
        let made = match program.evaluate(activation, self.budget) {
            Ok(made) => made,
            Err(EvalError::Failed(_)) => return Ok(None),
            Err(EvalError::Budget) => {
                return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned());
            }
            Err(EvalError::CostLimit) => {
                return Err(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {text:?}"
                ));
            }
        };
        let made = made.as_str().unwrap_or_default().trim();
        let usable = !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n');
        Ok(usable.then(|| made.to_owned()))
    }

    fn invalid(&mut self, own: &Own, path: &str, what: &str) {
        self.add(CauseType::FieldValueInvalid, path, typed(own, what), false);
    }

    fn stop(&mut self, own: &Own, path: &str, what: &str) -> Result<(), Stop> {
        self.invalid(own, path, what);
        Err(Stop)
    }

    fn add(&mut self, reason: CauseType, path: &str, message: String, tolerated: bool) {
        let field = if path.is_empty() { ROOT } else { path };
        match tolerated {
            true if self.warnings.len() < 100 => self.warnings.push(format!("{field}: {message}")),
            true => {}
            false => self.causes.add(Cause {
                reason,
                message,
                field: field.to_owned(),
            }),
        }
    }
}

/// A violation that names the type of the value instead of the value.
fn typed(own: &Own, what: &str) -> String {
    format!("Invalid value: {:?}: {what}", own.kind)
}

impl Rule {
    fn default_message(&self) -> String {
        match self.has_message {
            true => self.name.clone(),
            false => format!("failed rule: {}", self.name),
        }
    }

    fn violation(&self, own: &Own, value: &Value, detail: &str) -> (CauseType, String) {
        // Of what is large only the place is named.
        let shown = match own.kind.as_str() {
            "object" | "array" => String::new(),
            _ => format!(": {value}"),
        };
        match self.reason {
            Reason::Invalid => (
                CauseType::FieldValueInvalid,
                format!("Invalid value{shown}: {detail}"),
            ),
            Reason::Required => (
                CauseType::FieldValueRequired,
                format!("Required value: {detail}"),
            ),
            Reason::Forbidden => (
                CauseType::FieldValueForbidden,
                format!("Forbidden: {detail}"),
            ),
            Reason::Duplicate => (
                CauseType::FieldValueDuplicate,
                format!("Duplicate value{shown}"),
            ),
        }
    }
}
