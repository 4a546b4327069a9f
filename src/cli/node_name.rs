//! What a node is called: by `up`'s flag, as it was called before, or after its host.

use sha2::{Digest, Sha256};

use crate::hex::hex;

/// The longest value of a label, and `kubernetes.io/hostname` is one.
const LONGEST: usize = 63;
/// What a name that is cut ends with, so that two of them stay two: a dash and as many digits.
const TAG_BYTES: usize = 4;

/// A node's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub name: String,
    /// That it is not the host's own.
    pub note: Option<String>,
}

impl From<&str> for Chosen {
    fn from(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            note: None,
        }
    }
}

/// The machine's name.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// `given` by the flag, `recorded` at an earlier start. A host that was renamed keeps its node: the
/// pods on it are bound to that name. A host may have a name that is no node's: then the nearest that is one.
pub fn choose(given: Option<&str>, recorded: Option<&str>, host: &str) -> Result<Chosen, String> {
    if let Some(name) = given {
        return match is_valid(name) {
            true => Ok(name.into()),
            false => Err(format!("--node-name {name:?} is no node's name: {RULE}")),
        };
    }
    if let Some(name) = recorded {
        return Ok(name.into());
    }
    let name = nearest(host);
    if !is_valid(&name) {
        return Err(format!(
            "this host's name, {host:?}, cannot be the node's: {RULE}. Name the node with --node-name NAME"
        ));
    }
    let note = (name != host.to_lowercase()).then(|| {
        format!(
            "this host's name, {host:?}, cannot be the node's: the node is called {name}; --node-name NAME \
             chooses another"
        )
    });
    Ok(Chosen { name, note })
}

const RULE: &str = "it may have up to 63 lower-case letters, digits, '-' and '.', and each part between \
                    dots begins and ends with a letter or digit";

/// In small letters, with dashes for what a node's name cannot have, and cut where it is too long.
fn nearest(host: &str) -> String {
    let small = host.to_lowercase();
    let parts = small.split('.').map(|part| {
        let plain = |c: char| match c.is_ascii_alphanumeric() {
            true => c,
            false => '-',
        };
        let part: String = part.chars().map(plain).collect();
        part.trim_matches('-').to_owned()
    });
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    let name = parts.join(".");
    if name.len() <= LONGEST {
        return name;
    }
    let digest = Sha256::digest(small.as_bytes());
    let tag = hex(digest.get(..TAG_BYTES).unwrap_or_default());
    // All of it is ASCII by now.
    let kept = name.get(..LONGEST - tag.len() - 1).unwrap_or_default();
    format!("{}-{tag}", kept.trim_end_matches(['-', '.']))
}

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
        for (given, recorded, host, want) in [
            (None, None, "web1.example.org", Ok("web1.example.org")),
            (None, None, "Web1", Ok("web1")),
            (None, None, "", Err("--node-name")),
            (None, None, "___", Err("--node-name")),
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
                Ok(want) => assert_eq!(chosen, Ok(want.into()), "{host}"),
                Err(want) => assert!(chosen.unwrap_err().contains(want), "{host}"),
            }
        }
    }

    #[test]
    fn hosts_have_names_that_nodes_cannot_have() {
        for (host, want) in [
            ("My_Host", "my-host"),
            ("_Build_01_", "build-01"),
            ("a..b", "a.b"),
            ("-a", "a"),
            ("web_1.example.org.", "web-1.example.org"),
            ("caf\u{e9}", "caf"),
        ] {
            let chosen = choose(None, None, host).unwrap();
            assert_eq!(chosen.name, want, "{host}");
            let note = chosen.note.unwrap();
            assert!(note.contains(host) && note.contains(want), "{note}");
        }
        // As long as Linux allows, and one character more than a label does.
        let (one, other) = ("n".repeat(64), format!("{}m", "n".repeat(63)));
        let [one, other] = [one, other].map(|host| choose(None, None, &host).unwrap().name);
        assert_eq!((one.len(), other.len()), (63, 63));
        assert!(is_valid(&one) && is_valid(&other) && one != other);
        let dotted = format!("{}.{}", "n".repeat(53), "m".repeat(10));
        let dotted = choose(None, None, &dotted).unwrap().name;
        assert!(is_valid(&dotted), "{dotted}");
    }
}
