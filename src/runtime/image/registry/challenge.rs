//! What a registry asks for in `WWW-Authenticate`. Pure.

use super::super::json::excerpt;

/// One way to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token, which another server gives out.
    Bearer {
        realm: String,
        service: String,
        scope: String,
    },
}

/// Longer values are no challenge of a registry.
const LONGEST_VALUE: usize = 2048;
const MOST_PARAMETERS: usize = 16;

/// The challenge to answer: a token before a password.
pub fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in parse(header) {
            let value = |name: &str| {
                let mut all = parameters.iter();
                let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                return Some(Challenge::Bearer {
                    realm: value("realm"),
                    service: value("service"),
                    scope: value("scope"),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// What to ask a token for: what the registry says, if it is about reading, or the repository.
pub fn scope(asked: &str, repository: &str) -> String {
    let reads = |part: &str| part.starts_with("repository:") && part.ends_with(":pull");
    match asked.split(' ').all(reads) {
        true => asked.to_owned(),
        false => format!("repository:{repository}:pull"),
    }
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters: `Basic realm="x", Bearer realm="y",service="z"`.
fn parse(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = read_value(value.trim_start());
        if let Some((_, parameters)) = found.last_mut()
            && parameters.len() < MOST_PARAMETERS
        {
            parameters.push((word.to_owned(), excerpt(&value, LONGEST_VALUE)));
        }
        rest = after;
    }
}

/// A token or a quoted string, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, character) in quoted.char_indices() {
        match character {
            _ if escaped => {
                value.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.to_owned(),
                scope: scope.to_owned(),
            })
        };
        for (header, want) in [
            (
                r#"Bearer realm="https://a.b/token",service="a.b",scope="repository:x/y:pull""#,
                bearer("https://a.b/token", "a.b", "repository:x/y:pull"),
            ),
            (
                r#"Basic realm="a, b=c", bearer Realm = https://a.b/t , service=s"#,
                bearer("https://a.b/t", "s", ""),
            ),
            (r#"Basic realm="say \"hi\"""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Negotiate", None),
            ("Bearer", bearer("", "", "")),
            (r#"Bearer realm="unended"#, bearer("unended", "", "")),
            (",,=,\"", None),
            ("", None),
        ] {
            assert_eq!(choose([header].into_iter()), want, "{header}");
        }
    }

    #[test]
    fn scopes_are_for_reading() {
        for (asked, want) in [
            ("", "repository:a/b:pull"),
            ("repository:x/a/b:pull", "repository:x/a/b:pull"),
            ("repository:a/b:pull,push", "repository:a/b:pull"),
            ("registry:catalog:*", "repository:a/b:pull"),
        ] {
            assert_eq!(scope(asked, "a/b"), want, "{asked}");
        }
    }
}
