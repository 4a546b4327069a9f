//! The short hash in names and labels of what is made from a template. Pure.
//!
//! FNV-1a over the template's JSON (keys sorted), written in an alphabet that makes no words.
//! An existing object is found by comparing templates, never by this hash, so that it need not
//! equal the hash of another implementation.

use serde::Serialize;

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Hash of `template`; another `collisions` gives another hash for the same template.
pub fn of_template(template: &impl Serialize, collisions: Option<i32>) -> String {
    // A k8s type always becomes JSON; should that ever fail, the hash of nothing is still a name.
    let json = serde_json::to_value(template).unwrap_or_default();
    let mut bytes = json.to_string().into_bytes();
    if let Some(collisions) = collisions {
        bytes.extend(i64::from(collisions).to_le_bytes());
    }
    safe(&fnv1a(&bytes).to_string())
}

pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// Source: `SafeEncodeString` of apimachinery: each byte picks a letter by remainder.
fn safe(text: &str) -> String {
    text.bytes()
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_and_alphabet() {
        // Source: the FNV-1a test vectors of the algorithm's authors.
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
        // '0' is 48: 48 % 27 = 21, the 22nd letter.
        assert_eq!(safe("0123456789"), "456789bcdf");
    }
}
