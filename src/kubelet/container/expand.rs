//! `$(NAME)` in commands, arguments, variables and subpaths. Pure.
//!
//! `$$` is a dollar sign, so that `$$(NAME)` stays as text; what does not parse stays as it is.

/// A name that nothing gives a value to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved(pub String);

/// Unknown names stay as they are written.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    expand_with(text, |name, out| match value(name) {
        Some(value) => out.push_str(&value),
        None => {
            out.push_str("$(");
            out.push_str(name);
            out.push(')');
        }
    })
}

/// An unknown name is an error.
pub fn expand_strict(
    text: &str,
    value: impl Fn(&str) -> Option<String>,
) -> Result<String, Unresolved> {
    let mut missing = None;
    let expanded = expand_with(text, |name, out| match value(name) {
        Some(value) => out.push_str(&value),
        None => {
            missing.get_or_insert_with(|| name.to_owned());
        }
    });
    missing.map_or(Ok(expanded), |name| Err(Unresolved(name)))
}

fn expand_with(text: &str, mut put: impl FnMut(&str, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match after.chars().next() {
            Some('$') => {
                out.push('$');
                &after[1..]
            }
            Some('(') => match after.find(')') {
                Some(end) => {
                    put(&after[1..end], &mut out);
                    &after[end + 1..]
                }
                None => {
                    out.push_str("$(");
                    &after[1..]
                }
            },
            _ => {
                out.push('$');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("$(A)".into()),
            _ => None,
        }
    }

    #[test]
    fn names_and_escapes() {
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "one"),
            ("x$(A)y$(A)z", "xoneyonez"),
            ("$(EMPTY)|", "|"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("$(A$(A)", "$(A$(A)"), // the name runs to the first closing parenthesis
            ("$(NESTED)", "$(A)"),  // values are not expanded again
            ("$()", "$()"),
            ("$é$(A)é", "$éoneé"), // bytes after a dollar are not cut
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
    }

    #[test]
    fn strictly() {
        assert_eq!(expand_strict("a/$(A)", value), Ok("a/one".into()));
        assert_eq!(
            expand_strict("$(A)/$(B)/$(C)", value),
            Err(Unresolved("B".into()))
        );
    }
}
