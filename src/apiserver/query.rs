//! What a request asks for beyond its path: the query parameters the verbs share. Pure.

use super::status::{Cause, CauseType, Status};

/// The query string, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// What to do about unknown and duplicate fields in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Query {
    pub fn parse(text: &str) -> Self {
        Self(
            form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// `true`, `1` and the bare name count.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| matches!(value, "true" | "1" | ""))
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("query parameter {name}: {text:?} is not a number"))
        })
    }

    pub fn dry_run(&self) -> Result<bool, Status> {
        let mut any = false;
        for value in self.all("dryRun") {
            if value != "All" {
                let message = format!("Unsupported value: {value:?}: supported values: \"All\"");
                return Err(invalid_option(
                    "dryRun",
                    CauseType::FieldValueNotSupported,
                    message,
                ));
            }
            any = true;
        }
        Ok(any)
    }

    pub fn field_validation(&self) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            None | Some("" | "Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let message = format!(
                    "Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                );
                Err(invalid_option(
                    "fieldValidation",
                    CauseType::FieldValueNotSupported,
                    message,
                ))
            }
        }
    }
}

/// 422 about an option rather than an object.
pub fn invalid_option(field: &str, reason: CauseType, message: String) -> Status {
    Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        "",
        vec![Cause {
            reason,
            message,
            field: field.to_owned(),
        }],
    )
}
