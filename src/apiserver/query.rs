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
    /// Pairs with a `;` or with a broken escape are no pairs, as in the original: whoever the query
    /// is passed on to must not find in it what was not found here.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| is_pair(pair));
        Self(
            pairs
                .flat_map(|pair| form_urlencoded::parse(pair.as_bytes()).into_owned())
                .collect(),
        )
    }

    /// Removes a parameter; its first value counts. Whoever reads the query later does not see it.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let mut first = None;
        self.0.retain_mut(|(key, value)| {
            if key != name {
                return true;
            }
            first.get_or_insert_with(|| std::mem::take(value));
            false
        });
        first
    }

    /// As [`Query::take`], for a switch.
    pub fn take_flag(&mut self, name: &str) -> bool {
        self.take(name).is_some_and(|value| is_true(&value))
    }

    /// The query as it was understood, encoded again.
    pub fn encode(&self) -> String {
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&self.0)
            .finish()
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

    /// Whether a switch is on, by its first value.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(is_true)
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

/// Everything is true but `false` and `0`, the bare name too.
pub fn is_true(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

fn is_pair(pair: &str) -> bool {
    let mut escapes = pair.split('%').skip(1);
    let whole = |escape: &str| {
        let digits = escape.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    !pair.contains(';') && escapes.all(whole)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches() {
        for (query, want) in [
            ("", false),
            ("watch", true),
            ("watch=", true),
            ("watch=1", true),
            ("watch=True", true),
            ("watch=yes", true), // as the original's conversion
            ("watch=0", false),
            ("watch=FALSE", false),
            ("watch=0&watch=1", false), // the first counts
            ("watch=1&watch=0", true),
            ("wat%63h=1", true),
            ("Watch=1", false),
            ("watch=1;", false), // no pair
            ("watch=%zz&a=b", false),
        ] {
            assert_eq!(Query::parse(query).flag("watch"), want, "{query}");
            let mut query = Query::parse(query);
            assert_eq!(query.take_flag("watch"), want);
            assert_eq!(query.get("watch"), None, "it is taken");
        }
    }

    #[test]
    fn encoded_again_it_says_the_same() {
        let query = Query::parse("a=b;c&d=%20%26e&f&g=%2&d=2");
        assert_eq!(query.encode(), "d=+%26e&f=&d=2");
    }
}
