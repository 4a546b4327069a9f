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

    /// `options`: the kind of the options that they all belong to.
    pub fn dry_run(&self, options: &str) -> Result<bool, Status> {
        let mut any = false;
        for value in self.all("dryRun") {
            if value != "All" {
                let message = format!("Unsupported value: {value:?}: supported values: \"All\"");
                let reason = CauseType::FieldValueNotSupported;
                return Err(invalid(options, "dryRun", reason, message));
            }
            any = true;
        }
        Ok(any)
    }

    /// In whose name fields are changed, if it is said.
    pub fn field_manager(&self, options: &str) -> Result<Option<&str>, Status> {
        let Some(name) = self.get("fieldManager").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        if name.len() > MAX_FIELD_MANAGER {
            let message = format!("Too long: may not be more than {MAX_FIELD_MANAGER} bytes");
            let reason = CauseType::FieldValueTooLong;
            return Err(invalid(options, "fieldManager", reason, message));
        }
        if !name.chars().all(is_printable) {
            let message =
                format!("Invalid value: {name:?}: should only contain printable characters");
            let reason = CauseType::FieldValueInvalid;
            return Err(invalid(options, "fieldManager", reason, message));
        }
        Ok(Some(name))
    }

    pub fn field_validation(&self, options: &str) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            None | Some("" | "Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let message = format!(
                    "Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                );
                let reason = CauseType::FieldValueNotSupported;
                Err(invalid(options, "fieldValidation", reason, message))
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

/// Bytes of a field manager's name.
const MAX_FIELD_MANAGER: usize = 128;

/// As Go sees it: no control characters, and of spaces only the plain one.
fn is_printable(character: char) -> bool {
    character == ' ' || !(character.is_control() || character.is_whitespace())
}

/// The manager that a User-Agent stands for: what is before the first slash.
pub fn agent_manager(agent: &str) -> String {
    let name = agent.split('/').next().unwrap_or_default();
    let mut kept = String::new();
    for character in name.chars().filter(|character| is_printable(*character)) {
        if kept.len() + character.len_utf8() > MAX_FIELD_MANAGER {
            break;
        }
        kept.push(character);
    }
    kept
}

/// 422 about an option of a list rather than an object.
pub fn invalid_option(field: &str, reason: CauseType, message: String) -> Status {
    invalid("ListOptions", field, reason, message)
}

/// 422 about an option, by the kind of the options.
pub fn invalid(options: &str, field: &str, reason: CauseType, message: String) -> Status {
    Status::invalid(
        "meta.k8s.io",
        options,
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
    fn who_writes() {
        for (agent, want) in [
            ("kubectl/v1.37.0 (linux/amd64)", "kubectl"),
            ("my agent\u{7}/2", "my agent"),
            ("", ""),
            ("/x", ""),
        ] {
            assert_eq!(agent_manager(agent), want);
        }
        assert_eq!(agent_manager(&"\u{e9}".repeat(100)), "\u{e9}".repeat(64));
        for (query, want) in [
            ("", Ok(None)),
            ("fieldManager=", Ok(None)),
            ("fieldManager=a%20b", Ok(Some("a b"))),
            (
                "fieldManager=a%0Ab",
                Err(
                    "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\nb\": should only contain printable characters",
                ),
            ),
        ] {
            let query = Query::parse(query);
            let got = query.field_manager("PatchOptions");
            assert_eq!(
                got.map_err(|status| status.message),
                want.map_err(str::to_owned)
            );
        }
        let long = Query::parse(&format!("fieldManager={}", "a".repeat(129)));
        let refused = long.field_manager("CreateOptions").expect_err("too long");
        assert_eq!(
            refused.message,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes"
        );
    }

    #[test]
    fn encoded_again_it_says_the_same() {
        let query = Query::parse("a=b;c&d=%20%26e&f&g=%2&d=2");
        assert_eq!(query.encode(), "d=+%26e&f=&d=2");
    }
}
