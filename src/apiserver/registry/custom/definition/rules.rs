//! Whether rules compile, and what they may cost.

use serde_json::Value;

use super::Before;
use crate::{
    apiserver::{
        registry::{
            Causes,
            custom::rules::{Compiler, Place, below, rules_of},
        },
        status::CauseType,
    },
    cel::Schema,
};

/// Most that one evaluation of an expression may cost, by estimate, times how often it can be asked.
const MAX_COST: u64 = 10_000_000;
/// Most that all expressions of a schema may cost together.
const MAX_TOTAL: u64 = 100_000_000;
/// Rules of one schema; the original has no such bound.
pub const MAX_RULES: usize = 2_000;
/// Characters of all expressions of one schema; the original has no such bound.
const MAX_TEXT: usize = 200_000;

/// What rules know of where they are.
pub struct Context {
    place: Place,
    /// How many values there can be at most; none if there is no bound.
    cardinality: Option<u64>,
}

impl Context {
    pub fn root() -> Self {
        Self {
            place: Place::Outside { root: true },
            cardinality: Some(1),
        }
    }

    /// With the type that its schema gives, from the first that has rules on.
    pub fn at(&self, schema: &Value) -> Self {
        let place = match (&self.place, rules_of(schema).is_empty()) {
            (Place::Known(known), _) => Place::Known(known.clone()),
            (other, true) => other.clone(),
            // What expressions do not see from above they may see from here.
            (Place::Unseen, false) => made(&Place::Outside { root: false }, schema),
            (outside, false) => made(outside, schema),
        };
        Self { place, ..*self }
    }

    /// The place of a property, or of the items or other members of `schema`.
    pub fn below(&self, schema: &Value, property: Option<&str>) -> Self {
        let factor = match schema["type"].as_str() {
            Some("object") if !schema["additionalProperties"].is_null() => {
                bound(schema, "maxProperties")
            }
            Some("array") => bound(schema, "maxItems"),
            _ => Some(1),
        };
        let product = self.cardinality.zip(factor);
        Self {
            place: below(&self.place, property),
            cardinality: product.map(|(here, factor)| here.saturating_mul(factor)),
        }
    }
}

fn made(place: &Place, schema: &Value) -> Place {
    place.schema(schema).map_or(Place::Unseen, Place::Known)
}

fn bound(schema: &Value, name: &str) -> Option<u64> {
    let number = &schema[name];
    // What is below nothing is nothing.
    number.as_u64().or_else(|| number.as_i64().map(|_| 0))
}

/// Goes through the rules of a schema.
pub struct Checker<'b> {
    before: &'b Before<'b>,
    /// The version's schema was accepted before: its expressions may cost what they cost.
    unchanged: bool,
    causes: Causes,
    total: u64,
    /// The four that cost most, of those that cost much.
    expensive: Vec<(String, u64)>,
    rules: usize,
    text: usize,
}

impl<'b> Checker<'b> {
    pub fn new(before: &'b Before<'b>, unchanged: bool) -> Self {
        Self {
            before,
            unchanged,
            causes: Causes::default(),
            total: 0,
            expensive: Vec::new(),
            rules: 0,
            text: 0,
        }
    }

    /// The rules of one schema. `uncorrelatable`: where it begins that nothing is known of before.
    pub fn check(
        &mut self,
        schema: &Value,
        path: &str,
        context: &Context,
        uncorrelatable: Option<&str>,
    ) {
        let path = format!("{path}.x-kubernetes-validations");
        let Place::Known(known) = &context.place else {
            let message = "Internal error: internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.causes
                .push(CauseType::InternalError, path, message.to_owned());
            return;
        };
        let compiler = Compiler::new(known.clone());
        for (index, rule) in rules_of(schema).iter().enumerate() {
            if self.causes.is_full() || self.is_too_much(rule, &path) {
                return;
            }
            self.one(
                rule,
                &format!("{path}[{index}]"),
                context,
                &compiler,
                uncorrelatable,
            );
        }
    }

    fn is_too_much(&mut self, rule: &Value, path: &str) -> bool {
        let text = |name: &str| rule[name].as_str().map_or(0, str::len);
        let was = self.rules > MAX_RULES || self.text > MAX_TEXT;
        self.rules += 1;
        self.text += text("rule") + text("messageExpression");
        let is = self.rules > MAX_RULES || self.text > MAX_TEXT;
        if is && !was {
            let detail = format!(
                "a schema may have at most {MAX_RULES} rules, with {MAX_TEXT} characters together"
            );
            self.causes.forbidden(path, &detail);
        }
        is
    }

    fn one(
        &mut self,
        rule: &Value,
        path: &str,
        context: &Context,
        compiler: &Compiler,
        uncorrelatable: Option<&str>,
    ) {
        let compiled = compiler.compile(rule, |text| self.before.origin(text));
        let Some(program) = compiled.program else {
            return;
        };
        let at = format!("{path}.rule");
        match &program {
            Err(why) => {
                let message = format!("Invalid value: {}: {why}", printed(rule));
                self.causes.push(CauseType::FieldValueInvalid, at, message);
            }
            Ok(program) => {
                let cost = program.estimated_cost().max;
                let cost = cost.saturating_mul(times(context, &compiler.schema));
                self.cost("estimated rule cost", at, cost);
            }
        }
        if let Some(message) = compiled.message {
            let at = format!("{path}.messageExpression");
            match message {
                Err(why) => {
                    let message = format!("Invalid value: {}: {why}", printed(rule));
                    self.causes.push(CauseType::FieldValueInvalid, at, message);
                }
                Ok(message) => {
                    let cost = message.estimated_cost().max;
                    self.cost("estimated messageExpression cost", at, cost);
                }
            }
        }
        if program.is_ok_and(|program| program.uses("oldSelf")) {
            if let Some(above) = uncorrelatable {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                );
                let text = rule["rule"].as_str().unwrap_or_default();
                self.causes.invalid(format!("{path}.rule"), text, &detail);
            }
        } else if let Some(optional) = rule["optionalOldSelf"].as_bool() {
            let detail = "may not be set if oldSelf is not used in rule";
            self.causes
                .invalid(format!("{path}.optionalOldSelf"), optional, detail);
        }
    }

    fn cost(&mut self, what: &str, path: String, cost: u64) {
        if cost > MAX_COST && !self.unchanged {
            self.causes
                .forbidden(&path, &exceeded(what, cost, MAX_COST));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= MAX_TOTAL / 100 {
            self.expensive.push((path, cost));
            self.expensive.sort_by(|(_, a), (_, b)| b.cmp(a));
            self.expensive.truncate(4);
        }
    }

    /// Hands over what was found; `path`: of the schema as a whole.
    pub fn finish(mut self, path: &str, causes: &mut Causes) {
        if self.total > MAX_TOTAL {
            for (path, _) in std::mem::take(&mut self.expensive) {
                self.causes.forbidden(path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema");
            }
            let what =
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            let detail = exceeded(what, self.total, MAX_TOTAL);
            self.causes.forbidden(path, &detail);
        }
        super::take(causes, self.causes);
    }
}

/// How often a rule is asked at most.
fn times(context: &Context, schema: &Schema) -> u64 {
    context
        .cardinality
        .unwrap_or_else(|| schema.max_cardinality())
}

fn exceeded(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A rule as the original prints it.
fn printed(rule: &Value) -> String {
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let reason = match rule["reason"].as_str() {
        None => "(*apiextensions.FieldValueErrorReason)(nil)".to_owned(),
        Some(reason) => format!("{reason:?}"),
    };
    let optional = match rule["optionalOldSelf"].as_bool() {
        None => "(*bool)(nil)".to_owned(),
        Some(value) => value.to_string(),
    };
    format!(
        "apiextensions.ValidationRule{{Rule:{:?}, Message:{:?}, MessageExpression:{:?}, Reason:{reason}, FieldPath:{:?}, OptionalOldSelf:{optional}}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        text("fieldPath"),
    )
}
