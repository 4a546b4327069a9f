//! A Status as JSON, its members in the order of the original: there are clients that compare the
//! bytes.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

pub const TYPE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// A part of a Status.
pub enum Ordered<'a> {
    Status(&'a Value),
    Details(&'a Value),
    Causes(&'a Value),
    Cause(&'a Value),
    Other(&'a Value),
}

impl Ordered<'_> {
    fn order(&self) -> &'static [&'static str] {
        match self {
            Self::Status(_) => &[
                "kind",
                "apiVersion",
                "metadata",
                "status",
                "message",
                "reason",
                "details",
                "code",
            ],
            Self::Details(_) => &[
                "name",
                "group",
                "kind",
                "uid",
                "causes",
                "retryAfterSeconds",
            ],
            Self::Cause(_) => &["reason", "message", "field"],
            Self::Causes(_) | Self::Other(_) => &[],
        }
    }

    fn value(&self) -> &Value {
        match self {
            Self::Status(value)
            | Self::Details(value)
            | Self::Causes(value)
            | Self::Cause(value)
            | Self::Other(value) => value,
        }
    }
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let object = match (self, self.value()) {
            (Self::Other(value), _) => return value.serialize(serializer),
            (Self::Causes(_), Value::Array(causes)) => {
                return serializer.collect_seq(causes.iter().map(Ordered::Cause));
            }
            (_, Value::Object(object)) => object,
            (_, other) => return other.serialize(serializer),
        };
        let order = self.order();
        let mut map = serializer.serialize_map(Some(object.len()))?;
        let named = order.iter().filter_map(|name| object.get_key_value(*name));
        let others = object
            .iter()
            .filter(|(name, _)| !order.contains(&name.as_str()));
        for (name, value) in named.chain(others) {
            let part = match (self, name.as_str()) {
                (Self::Status(_), "details") => Ordered::Details(value),
                (Self::Details(_), "causes") => Ordered::Causes(value),
                _ => Ordered::Other(value),
            };
            map.serialize_entry(name, &part)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{
        encode,
        negotiate::Format,
        response::status_value,
        status::{Cause, CauseType, Status},
    };

    #[test]
    fn bytes_as_the_original_has_them() {
        let text = |status: &Status, pretty| {
            let value = status_value(status);
            let encoded = encode::plain(&value, TYPE, Format::Json { pretty }).expect("JSON");
            String::from_utf8(encoded.bytes.to_vec()).expect("text")
        };
        assert_eq!(
            text(&Status::not_found("apps", "deployments", "x"), false),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"deployments.apps \\\"x\\\" not found\",\"reason\":\"NotFound\",\"details\":{\"name\":\"x\",\"group\":\"apps\",\"kind\":\"deployments\"},\"code\":404}\n"
        );
        let cause = Cause {
            reason: CauseType::FieldValueInvalid,
            message: "bad".to_owned(),
            field: "spec.a".to_owned(),
        };
        assert_eq!(
            text(&Status::invalid("", "Pod", "p", vec![cause]), true),
            "{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n  \"status\": \"Failure\",\n  \"message\": \"Pod \\\"p\\\" is invalid: spec.a: bad\",\n  \"reason\": \"Invalid\",\n  \"details\": {\n    \"name\": \"p\",\n    \"kind\": \"Pod\",\n    \"causes\": [\n      {\n        \"reason\": \"FieldValueInvalid\",\n        \"message\": \"bad\",\n        \"field\": \"spec.a\"\n      }\n    ]\n  },\n  \"code\": 422\n}\n"
        );
    }
}
