//! What plugins answer: the result of an ADD, the versions that they speak, and what went wrong. Pure.
//!
//! Source: CNI specification 1.1.0, section 5.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::version::Version;
use crate::addresses::{
    Scope,
    family::{Family, OfFamily, PerFamily},
    scope,
};

/// A result has at most so many interfaces and addresses.
const MOST: usize = 256;

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    #[error("it answered nothing")]
    Nothing,
    #[error("its answer is no JSON: {0}")]
    Json(String),
    #[error("its answer has no result's shape: {0}")]
    Shape(String),
    #[error("it answered in CNI version {found:?}, and was asked in {asked}")]
    Version { found: String, asked: Version },
    #[error("the address {0} is none that a pod can have")]
    Address(IpAddr),
    #[error("an address is of the interface {index}, and there are {interfaces}")]
    Interface { index: i64, interfaces: usize },
    #[error("the pod has no address on {0}")]
    NoAddress(String),
}

/// What a plugin says that it could not do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.msg)?;
        if !self.details.is_empty() {
            write!(out, "; {}", self.details)?;
        }
        write!(out, " (code {})", self.code)
    }
}

/// The answer of a plugin that failed, if it is in the form for that.
pub fn failure(answer: &[u8]) -> Option<Failure> {
    serde_json::from_slice(answer).ok()
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "cniVersion")]
    version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    /// The namespace that it is in; empty for the host's.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    /// "4" or "6"; of versions before 1.0.0.
    #[serde(default)]
    version: Option<String>,
    address: IpNet,
    #[serde(default)]
    interface: Option<i64>,
}

/// Checks what a plugin has answered to ADD. It is handed on as it is.
pub fn result(answer: &[u8], asked: Version) -> Result<Value, Garbage> {
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Err(Garbage::Nothing);
    }
    let value: Value =
        serde_json::from_slice(answer).map_err(|error| Garbage::Json(error.to_string()))?;
    checked(&value, Some(asked))?;
    Ok(value)
}

/// The pod's addresses by the last result of an ADD: one of each family, the one that is in `order` first.
pub fn addresses(
    result: &Value,
    link: &str,
    order: impl Iterator<Item = Family>,
) -> Result<PerFamily<IpAddr>, Garbage> {
    let answer = checked(result, None)?;
    let interfaces = answer.interfaces.unwrap_or_default();
    let is_the_pods = |ip: &&Ip| match ip.interface {
        // Who names no interface has made only one.
        None => true,
        Some(index) => usize::try_from(index)
            .ok()
            .and_then(|index| interfaces.get(index))
            .is_some_and(|one| one.name == link && !one.sandbox.is_empty()),
    };
    let ips = answer.ips.unwrap_or_default();
    let found: Vec<IpAddr> = { ips.iter() }
        .filter(is_the_pods)
        .map(|ip| ip.address.addr())
        .collect();
    let first_of = |family: Family| found.iter().copied().find(|one| one.family() == family);
    let mut families: Vec<Family> = order.collect();
    let others = Family::ALL
        .into_iter()
        .filter(|family| !families.contains(family));
    families.extend(others.collect::<Vec<_>>());
    let list = families.into_iter().filter_map(first_of);
    PerFamily::of_list(list).map_err(|_| Garbage::NoAddress(link.to_owned()))
}

fn checked(value: &Value, asked: Option<Version>) -> Result<Answer, Garbage> {
    if !value.is_object() {
        return Err(Garbage::Shape("it is no object".into()));
    }
    let answer = Answer::deserialize(value).map_err(|error| Garbage::Shape(error.to_string()))?;
    if let Some(asked) = asked
        && answer.version.as_deref() != Some(asked.name())
    {
        let found = answer.version.unwrap_or_default();
        return Err(Garbage::Version { found, asked });
    }
    let interfaces = answer.interfaces.as_ref().map_or(0, Vec::len);
    let ips = answer.ips.as_deref().unwrap_or_default();
    if interfaces > MOST || ips.len() > MOST {
        let why = format!("it has {interfaces} interfaces and {} addresses", ips.len());
        return Err(Garbage::Shape(why));
    }
    for ip in ips {
        let address = ip.address.addr();
        if !matches!(scope(address), Scope::Private | Scope::Global) {
            return Err(Garbage::Address(address));
        }
        let said = match address.family() {
            Family::V4 => "4",
            Family::V6 => "6",
        };
        if let Some(version) = ip.version.as_ref().filter(|version| *version != said) {
            let why = format!("{address} is said to be of IP version {version:?}");
            return Err(Garbage::Shape(why));
        }
        let is_there = |index: i64| usize::try_from(index).is_ok_and(|index| index < interfaces);
        if let Some(index) = ip.interface.filter(|index| !is_there(*index)) {
            return Err(Garbage::Interface { index, interfaces });
        }
    }
    Ok(answer)
}

/// The versions that a plugin says it speaks.
pub fn versions(answer: &[u8]) -> Result<Vec<String>, Garbage> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spoken {
        supported_versions: Vec<String>,
    }
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Err(Garbage::Nothing);
    }
    let spoken: Spoken =
        serde_json::from_slice(answer).map_err(|error| Garbage::Json(error.to_string()))?;
    Ok(spoken.supported_versions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_results() {
        let interfaces = json!([
            {"name": "cni0", "mac": "0a:58:0a:2a:00:01"},
            {"name": "veth1", "mac": "aa:bb:cc:dd:ee:ff"},
            {"name": "eth0", "mac": "0a:58:0a:2a:00:02", "sandbox": "/run/netns/x"},
            {"name": "net1", "sandbox": "/run/netns/x"},
        ]);
        let v4_first = [Family::V4, Family::V6];
        let v6_first = [Family::V6, Family::V4];
        for (ips, order, want) in [
            (
                json!([{"address": "10.42.0.2/24", "gateway": "10.42.0.1", "interface": 2}]),
                v4_first,
                Ok("10.42.0.2"),
            ),
            (
                json!([{"address": "10.42.0.2/24", "interface": 2}, {"address": "fd42::2/64", "interface": 2}]),
                v4_first,
                Ok("10.42.0.2,fd42::2"),
            ),
            (
                json!([{"address": "10.42.0.2/24", "interface": 2}, {"address": "fd42::2/64", "interface": 2}]),
                v6_first,
                Ok("fd42::2,10.42.0.2"),
            ),
            // One of each family counts, those of other interfaces do not.
            (
                json!([{"address": "192.168.9.2/24", "interface": 3}, {"address": "10.42.0.2/24", "interface": 2},
                    {"address": "10.42.0.3/24", "interface": 2}, {"address": "10.42.0.1/24", "interface": 0}]),
                v4_first,
                Ok("10.42.0.2"),
            ),
            (
                json!([{"version": "4", "address": "10.42.0.2/24"}]),
                v4_first,
                Ok("10.42.0.2"),
            ),
            (
                json!([{"version": "6", "address": "10.42.0.2/24"}]),
                v4_first,
                Err("IP version \"6\""),
            ),
            (json!([]), v4_first, Err("no address on eth0")),
            (
                json!([{"address": "10.42.0.1/24", "interface": 0}]),
                v4_first,
                Err("no address on eth0"),
            ),
            (
                json!([{"address": "10.42.0.2/24", "interface": 4}]),
                v4_first,
                Err("interface 4, and there are 4"),
            ),
            (
                json!([{"address": "10.42.0.2/24", "interface": -1}]),
                v4_first,
                Err("interface -1"),
            ),
            (
                json!([{"address": "10.42.0.2"}]),
                v4_first,
                Err("no result's shape"),
            ),
            (
                json!([{"address": "127.0.0.1/8"}]),
                v4_first,
                Err("127.0.0.1 is none"),
            ),
            (
                json!([{"address": "::ffff:127.0.0.1/96"}]),
                v4_first,
                Err("is none that a pod"),
            ),
            (
                json!([{"address": "224.0.0.1/8"}]),
                v4_first,
                Err("224.0.0.1 is none"),
            ),
            (json!({}), v4_first, Err("no result's shape")),
            (
                json!(vec![json!({"address": "10.42.0.2/24"}); MOST + 1]),
                v4_first,
                Err("257 addresses"),
            ),
        ] {
            let result = json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips});
            match (addresses(&result, "eth0", order.into_iter()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.to_string(), want),
                (Err(error), Err(want)) => {
                    assert!(error.to_string().contains(want), "{ips}: {error}");
                }
                (got, want) => panic!("{ips}: {got:?} {want:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_result() {
        for (answer, want) in [
            ("", "it answered nothing"),
            (" \n", "it answered nothing"),
            ("hello", "is no JSON"),
            ("[]", "no object"),
            (
                r#"{"ips": []}"#,
                "in CNI version \"\", and was asked in 1.0.0",
            ),
            (r#"{"cniVersion": "0.4.0"}"#, "in CNI version \"0.4.0\""),
            (
                r#"{"cniVersion": "1.0.0", "interfaces": [{}]}"#,
                "no result's shape",
            ),
            (r#"{"cniVersion": "1.0.0"} trailing"#, "is no JSON"),
        ] {
            let why = result(answer.as_bytes(), Version::V1_0_0).unwrap_err();
            assert!(why.to_string().contains(want), "{answer}: {why}");
        }
        let whole = r#"{"cniVersion": "1.0.0", "ips": [], "dns": {}, "more": [1]}"#;
        let kept = result(whole.as_bytes(), Version::V1_0_0).unwrap();
        assert_eq!(kept["more"], json!([1]));
    }

    #[test]
    fn what_plugins_say_went_wrong() {
        let said = br#"{"cniVersion": "1.0.0", "code": 11, "msg": "try later", "details": "busy"}"#;
        assert_eq!(
            failure(said).unwrap().to_string(),
            "try later; busy (code 11)"
        );
        let said = br#"{"code": 7, "msg": "no"}"#;
        assert_eq!(failure(said).unwrap().to_string(), "no (code 7)");
        assert_eq!(failure(b"Segmentation fault"), None);
        assert_eq!(failure(br#"{"code": "x", "msg": "no"}"#), None);
        let spoken = br#"{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}"#;
        assert_eq!(versions(spoken).unwrap(), ["0.4.0", "1.0.0"]);
        assert!(versions(b"{}").is_err() && versions(b"").is_err());
    }
}
