//! Paths in schemas: `fieldPath` of rules, `jsonPath` of selectable fields.

use serde_json::Value;

/// What a path leads to.
#[derive(Debug)]
pub struct Found<'s> {
    /// As paths are written in messages: `spec.map[key].x`.
    pub path: String,
    /// The names in it.
    pub steps: Vec<String>,
    pub schema: &'s Value,
}

/// Follows a path of names, `.name` or `['name']`.
pub fn read<'s>(path: &str, schema: &'s Value) -> Result<Found<'s>, String> {
    follow(path, schema, true)
}

/// As [`read`], without brackets.
pub fn read_plain<'s>(path: &str, schema: &'s Value) -> Result<Found<'s>, String> {
    follow(path, schema, false)
}

fn follow<'s>(path: &str, schema: &'s Value, brackets: bool) -> Result<Found<'s>, String> {
    let mut found = Found {
        path: String::new(),
        steps: Vec::new(),
        schema,
    };
    let end = || "unexpected end of JSON path".to_owned();
    let mut tokens = Tokens(path);
    while let Some(token) = tokens.next() {
        match token {
            "." => {
                let name = tokens.next().ok_or_else(end)?;
                step(&mut found, name)?;
            }
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let token = tokens.next().ok_or_else(end)?;
                let inner = token
                    .strip_prefix('\'')
                    .and_then(|inner| inner.strip_suffix('\''))
                    .ok_or_else(|| format!("expected single quoted string but got {token}"))?;
                step(&mut found, &unescaped(inner)?)?;
                match tokens.next().ok_or_else(end)? {
                    "]" => {}
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    Ok(found)
}

fn step(found: &mut Found<'_>, name: &str) -> Result<(), String> {
    let missing = || "does not refer to a valid field".to_owned();
    let properties = found.schema["properties"].as_object();
    let others = &found.schema["additionalProperties"];
    if let Some(properties) = properties.filter(|all| !all.is_empty()) {
        found.schema = properties.get(name).ok_or_else(missing)?;
        if !found.path.is_empty() {
            found.path.push('.');
        }
        found.path.push_str(name);
    } else if others.is_object() {
        found.schema = others;
        found.path.push_str(&format!("[{name}]"));
    } else {
        return Err(missing());
    }
    found.steps.push(name.to_owned());
    Ok(())
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        out.push(match rest.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(same @ ('\'' | '\\')) => same,
            other => {
                let sequence: String = std::iter::once('\\').chain(other).collect();
                return Err(format!(
                    "invalid string literal: invalid escape char {sequence}"
                ));
            }
        });
    }
    Ok(out)
}

/// A path's delimiters and what is between them; a quoted text is one.
struct Tokens<'p>(&'p str);

impl<'p> Iterator for Tokens<'p> {
    type Item = &'p str;

    fn next(&mut self) -> Option<&'p str> {
        let text = self.0;
        let first = text.chars().next()?;
        let length = match first {
            '.' | '[' | ']' => 1,
            '\'' => {
                let mut escaped = false;
                let close = text.char_indices().skip(1).find(|(_, letter)| {
                    let closes = *letter == '\'' && !escaped;
                    escaped = *letter == '\\';
                    closes
                });
                close.map_or(text.len(), |(at, _)| at + 1)
            }
            _ => text.find(['.', '[', ']']).unwrap_or(text.len()),
        };
        let (token, rest) = text.split_at(length);
        self.0 = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_in_a_schema() {
        let schema = json!({"properties": {"spec": {"properties": {
            "a.b": {"type": "string"}, "n": {"type": "integer"},
            "map": {"additionalProperties": {"properties": {"x": {"type": "string"}}}},
            "list": {"type": "array", "items": {"properties": {"y": {}}}},
        }}}});
        for (path, want) in [
            ("", Ok("")),
            (".spec.n", Ok("spec.n")),
            (".spec['a.b']", Ok("spec.a.b")),
            ("['spec'].map['k'].x", Ok("spec.map[k].x")),
            (".spec.map.k", Ok("spec.map[k]")),
            (".spec.gone", Err("does not refer to a valid field")),
            (".spec.n.deeper", Err("does not refer to a valid field")),
            (
                ".spec.list[0]",
                Err("expected single quoted string but got 0"),
            ),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec.", Err("unexpected end of JSON path")),
            (".spec['n'", Err("unexpected end of JSON path")),
            (".spec['n'.x", Err("expected ] but got .")),
            (
                r".spec['\q']",
                Err(r"invalid string literal: invalid escape char \q"),
            ),
        ] {
            let found = read(path, &schema).map(|found| found.path);
            assert_eq!(
                found,
                want.map(str::to_owned).map_err(str::to_owned),
                "{path}"
            );
        }
        let plain = read_plain(".spec['n']", &schema).map(|found| found.path);
        assert_eq!(plain, Err("array notation is not allowed".to_owned()));
    }
}
