//! What mutating policies have in addition: `jsonpatch.escapeKey`.

use crate::cel::{
    functions::{Feature, Functions},
    program::Meter,
    types::Type,
    value::{EvalError, Evaluated, Value},
};

pub(super) fn declare(functions: &mut Functions) {
    functions.with(Feature::Patches);
    let (name, id) = ("jsonpatch.escapeKey", "string_jsonpatch_escapeKey_string");
    functions.global(name, id, [Type::String], Type::String, escape_key);
    functions.with(Feature::Always);
}

fn escape_key<'a>(_: &mut Meter<'a>, args: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_overload_for("jsonpatch.escapeKey", args));
    };
    // The tilde first: the slash's escape has one.
    Ok(Value::text(text.replace('~', "~0").replace('/', "~1")))
}
