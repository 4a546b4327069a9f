//! Variables and what is selected from them.

use super::{
    eval::Evaluator,
    node::{Attribute, By, Qualifier, Root},
};
use crate::cel::{
    cost::NAME,
    value::{EvalError, Evaluated, Map, Value, plain},
};

/// What a qualifier selects: a value, or nothing.
type Selected<'v> = Result<Option<Value<'v>>, EvalError>;

/// How a qualifier names what it selects.
enum Name<'n, 'v> {
    Field(&'n str),
    Value(Value<'v>),
}

impl<'v> Evaluator<'_, 'v> {
    pub(super) fn attribute(&mut self, attribute: &'v Attribute) -> Evaluated<'v> {
        let root = match &attribute.root {
            Root::Variable(index) => self.variable(*index),
            Root::Local(slot) => self.local(*slot),
            Root::Node(node) => self.eval(node),
        };
        let result = match root {
            Ok(root) => self.qualify(attribute, root),
            failed => failed,
        };
        match &result {
            Err(error) if error.is_final() => {}
            _ if attribute.charged && !attribute.test => self.meter.charge(NAME)?,
            _ => {}
        }
        result
    }

    fn variable(&mut self, index: usize) -> Evaluated<'v> {
        match self.activation.values.get(index) {
            Some(Some(value)) => Ok(value.clone()),
            _ => {
                let name = self.activation.name(index);
                Err(EvalError::new(format!("no such attribute(s): {name}")))
            }
        }
    }

    fn qualify(&mut self, attribute: &'v Attribute, root: Value<'v>) -> Evaluated<'v> {
        if attribute.qualifiers.is_empty() {
            return Ok(root);
        }
        let mut optional = false;
        let mut value = match root {
            Value::Optional(None) if attribute.test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => {
                optional = true;
                (*inner).clone()
            }
            other => other,
        };
        let last = attribute.qualifiers.len() - 1;
        for (index, qualifier) in attribute.qualifiers.iter().enumerate() {
            optional = optional || qualifier.optional;
            let test = attribute.test && index == last;
            let found = match self.select(&value, qualifier, optional || test) {
                Err(error) if !error.is_final() => {
                    self.meter.charge(NAME)?;
                    return Err(error);
                }
                found => found?,
            };
            if test {
                self.meter.charge(NAME)?;
                return Ok(Value::Bool(found.is_some()));
            }
            match found {
                Some(found) => value = found,
                None if attribute.test => return Ok(Value::Bool(false)),
                None => return Ok(Value::Optional(None)),
            }
            self.meter.charge(NAME)?;
        }
        Ok(if optional { Value::some(value) } else { value })
    }

    /// What a qualifier selects from a value. `lenient`: nothing where there is nothing, instead of
    /// an error.
    fn select(
        &mut self,
        value: &Value<'v>,
        qualifier: &'v Qualifier,
        lenient: bool,
    ) -> Selected<'v> {
        let name = match &qualifier.by {
            By::Field(name) => Name::Field(name),
            By::Constant(constant) => Name::Value(constant.clone()),
            By::Computed(node) => match self.eval(node)? {
                Value::String(text) => {
                    return self.select_named(value, &Name::Field(&text), lenient);
                }
                other => Name::Value(other),
            },
        };
        self.select_named(value, &name, lenient)
    }

    fn select_named(
        &mut self,
        value: &Value<'v>,
        name: &Name<'_, 'v>,
        lenient: bool,
    ) -> Selected<'v> {
        let found = match (value, name) {
            (Value::Map(map), name) => entry(map, name),
            (Value::List(list), Name::Value(index)) => {
                let at = position(index)?;
                let found = at.and_then(|at| list.get(at));
                if found.is_none() && !lenient {
                    let index = plain(index);
                    return Err(EvalError::new(format!("index out of bounds: {index}")));
                }
                found
            }
            (Value::List(_), Name::Field(_)) => {
                return Err(EvalError::new("unsupported index type 'string' in list"));
            }
            (Value::Variables, Name::Field(name)) => self.composed(name),
            (Value::Object(object), Name::Field(name)) => match object.field(name) {
                Some(found) => Some(Ok(found.clone())),
                None if lenient => None,
                None => Some(Ok(Value::Null)),
            },
            _ => None,
        };
        match found {
            Some(found) => found.map(Some),
            None if lenient => Ok(None),
            None => {
                let key = match name {
                    Name::Field(name) => (*name).to_owned(),
                    Name::Value(value) => plain(value),
                };
                Err(EvalError::new(format!("no such key: {key}")))
            }
        }
    }

    /// The value of a composed variable, evaluated once.
    fn composed(&mut self, name: &str) -> Option<Evaluated<'v>> {
        let activation = self.activation;
        let index = activation.composed(name)?;
        if let Some(Some(known)) = activation.found.borrow().get(index) {
            return Some(known.clone());
        }
        let (name, program) = activation.program(index)?;
        let failed = |verb: &str, why: &str| {
            EvalError::new(format!(
                "composited variable {name:?} fails to {verb}: {why}"
            ))
        };
        let result = match program {
            Err(why) => Err(failed("compile", why)),
            Ok(program) => match self.nested(program) {
                Err(error) if error.is_final() => return Some(Err(error)),
                Err(error) => Err(failed("evaluate", &error.to_string())),
                found => found,
            },
        };
        if let Some(place) = activation.found.borrow_mut().get_mut(index) {
            *place = Some(result.clone());
        }
        Some(result)
    }
}

fn entry<'v>(map: &Map<'v>, name: &Name<'_, 'v>) -> Option<Evaluated<'v>> {
    match name {
        Name::Field(name) => map.get_text(name),
        Name::Value(key) => map.get(key),
    }
}

/// The place in a list that a number names; `None` if it is before the first.
fn position(index: &Value<'_>) -> Result<Option<usize>, EvalError> {
    let whole = match index {
        Value::Int(index) => Some(*index),
        Value::Uint(index) => i64::try_from(*index).ok(),
        Value::Double(index) => {
            crate::cel::value::double_to_int(*index).filter(|whole| *whole as f64 == *index)
        }
        other => {
            let name = other.type_name();
            let message = format!("unsupported index type '{name}' in list");
            return Err(EvalError::new(message));
        }
    };
    match whole {
        Some(whole) => Ok(usize::try_from(whole).ok()),
        None => {
            let message = format!("unsupported index value {} in list", plain(index));
            Err(EvalError::new(message))
        }
    }
}
