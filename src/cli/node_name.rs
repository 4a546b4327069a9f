//! What a node is called: by `up`'s flag, as it was called before, or after its host.

/// The longest value of a label, and `kubernetes.io/hostname` is one.
const LONGEST: usize = 63;

/// `given` by the flag, `recorded` at an earlier start. A host that was renamed keeps its node: the
/// pods on it are bound to that name.
pub fn choose(given: Option<&str>, recorded: Option<&str>, host: &str) -> Result<String, String> {
    if let Some(name) = given {
        return match is_valid(name) {
            true => Ok(name.to_owned()),
            false => Err(format!("--node-name {name:?} is no node's name: {RULE}")),
        };
    }
    if let Some(name) = recorded {
        return Ok(name.to_owned());
    }
    let name = host.to_lowercase();
    match is_valid(&name) {
        true => Ok(name),
        false => Err(format!(
            "this host's name, {host:?}, cannot be the node's: {RULE}. Name the node with --node-name NAME"
        )),
    }
}

const RULE: &str = "it may have up to 63 lower-case letters, digits, '-' and '.', and each part between \
                    dots begins and ends with a letter or digit";

/// A DNS subdomain that can be a label's value.
fn is_valid(name: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
    };
    name.len() <= LONGEST && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "n".repeat(64);
        for (given, recorded, host, want) in [
            (None, None, "web1.example.org", Ok("web1.example.org")),
            (None, None, "Web1", Ok("web1")),
            (None, None, "My_Host", Err("--node-name")),
            (None, None, "a..b", Err("--node-name")),
            (None, None, "-a", Err("--node-name")),
            (None, None, "", Err("--node-name")),
            (None, None, &long, Err("--node-name")),
            (Some("n"), None, "My_Host", Ok("n")),
            (
                Some("My_Host"),
                Some("n"),
                "n",
                Err("--node-name \"My_Host\""),
            ),
            // Renamed.
            (None, Some("old"), "new", Ok("old")),
            (Some("newer"), Some("old"), "new", Ok("newer")),
        ] {
            let chosen = choose(given, recorded, host);
            match want {
                Ok(want) => assert_eq!(chosen.as_deref(), Ok(want), "{host}"),
                Err(want) => assert!(chosen.unwrap_err().contains(want), "{host}"),
            }
        }
    }
}
