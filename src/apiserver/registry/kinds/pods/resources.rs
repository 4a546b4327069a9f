//! Resource lists: quantities that parse, and requests within limits.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{members, text},
    },
};
use proto::quantity::Quantity;

const FORM: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
/// Resources of which a pod cannot have a part or more than its request.
const WHOLE: [&str; 2] = ["hugepages-", "/"];

/// Every quantity in the list `object.<name>` parses and is not negative.
pub fn quantities(object: &Value, name: &str, path: &str, causes: &mut Causes) {
    for (resource, amount) in members(object, name).into_iter().flatten() {
        let path = format!("{path}.{name}[{resource}]");
        let shown = amount
            .as_str()
            .map_or_else(|| amount.to_string(), str::to_owned);
        match Quantity::parse(&shown) {
            Err(_) => causes.invalid(path, amount, FORM),
            Ok(quantity) if quantity.is_negative() => {
                causes.invalid(path, shown, "must be greater than or equal to 0");
            }
            Ok(_) => {}
        }
    }
}

/// A container's `resources` at `path`.
pub fn validate(resources: &Value, path: &str, causes: &mut Causes) {
    for list in ["limits", "requests"] {
        quantities(resources, list, path, causes);
        for (name, _) in members(resources, list).into_iter().flatten() {
            let path = format!("{path}.{list}[{name}]");
            names::report(names::qualified_name(name), name, &path, causes);
            let standard = matches!(&**name, "cpu" | "memory" | "ephemeral-storage")
                || WHOLE.iter().any(|mark| name.contains(mark));
            if !standard {
                causes.invalid(&path, name, "must be a standard resource for containers");
            }
        }
    }
    for (name, request) in members(resources, "requests").into_iter().flatten() {
        let limit = text(&resources["limits"], name);
        let shown = request.as_str().unwrap_or_default();
        let (Ok(asked), Ok(most)) = (Quantity::parse(shown), Quantity::parse(limit)) else {
            continue;
        };
        if asked > most {
            causes.invalid(
                format!("{path}.requests"),
                shown,
                &format!("must be less than or equal to {name} limit of {limit}"),
            );
        }
    }
}
