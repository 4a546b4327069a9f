//! Network configurations: which file counts, what it says, and in which version its plugins are spoken to. Pure.
//!
//! A file is a list of plugins (`*.conflist`) or one plugin (`*.conf`, `*.json`); which of both it is says its
//! content. Source: CNI specification 1.1.0, section 1.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::{self, Version};

/// A file of configuration has at most so many bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// A list has at most so many plugins.
pub const MAX_PLUGINS: usize = 32;
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A network as its file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    pub name: String,
    /// In which its plugins may be spoken to, of those that this program speaks; never none.
    pub versions: BTreeSet<Version>,
    pub gc: Gc,
    /// In the order of ADD; never none.
    pub plugins: Vec<Plugin>,
}

/// A network whose plugins can be run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    pub version: Version,
    pub gc: Gc,
    pub plugins: Vec<Plugin>,
}

/// Whether plugins may be told to clean up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gc {
    Allowed,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// The name of its program.
    pub kind: String,
    pub capabilities: BTreeSet<Capability>,
    /// All that the file says of it, but for the capabilities.
    pub fields: Map<String, Value>,
}

/// What a plugin wants to be told of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capability {
    PortMappings,
    Bandwidth,
    IpRanges,
}

impl Capability {
    const ALL: [Self; 3] = [Self::PortMappings, Self::Bandwidth, Self::IpRanges];

    /// As files and runtimes write it (CNI, CONVENTIONS.md).
    pub fn name(self) -> &'static str {
        match self {
            Self::PortMappings => "portMappings",
            Self::Bandwidth => "bandwidth",
            Self::IpRanges => "ipRanges",
        }
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("it is no JSON: {0}")]
    Json(String),
    #[error("it must be an object with `plugins`, or with the `type` of one")]
    Shape,
    #[error("`{field}` must be {must}")]
    Field {
        field: &'static str,
        must: &'static str,
    },
    #[error(
        "the name {0:?} must begin with a letter or digit and have letters, digits, `_`, `.` and `-` only"
    )]
    Name(String),
    #[error("it has no plugins")]
    NoPlugins,
    #[error("it has {0} plugins, more than {MAX_PLUGINS}")]
    ManyPlugins(usize),
    #[error("{0}")]
    Version(#[from] version::Unknown),
}

/// What the plugins of a network do not agree on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plugin {plugin:?} speaks CNI {} and none of {}, which the configuration names",
    speaks.join(", "),
    Version::names(&named.iter().copied().collect::<Vec<_>>())
)]
pub struct Disagreement {
    plugin: String,
    speaks: Vec<String>,
    named: BTreeSet<Version>,
}

/// The file that counts: of those that are configurations, the first by name.
pub fn first<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let is_one = |name: &&str| {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        !stem.is_empty() && EXTENSIONS.contains(&extension)
    };
    names.into_iter().filter(is_one).min()
}

/// Reads a file of configuration.
pub fn parse(bytes: &[u8]) -> Result<Described, Invalid> {
    let file: Value =
        serde_json::from_slice(bytes).map_err(|error| Invalid::Json(error.to_string()))?;
    let Value::Object(mut file) = file else {
        return Err(Invalid::Shape);
    };
    let plugins = match file.remove("plugins") {
        Some(Value::Array(plugins)) => plugins,
        Some(_) => {
            return Err(Invalid::Field {
                field: "plugins",
                must: "a list",
            });
        }
        None if file.contains_key("type") => vec![Value::Object(file.clone())],
        None => return Err(Invalid::Shape),
    };
    match plugins.len() {
        0 => return Err(Invalid::NoPlugins),
        many if many > MAX_PLUGINS => return Err(Invalid::ManyPlugins(many)),
        _ => {}
    }
    Ok(Described {
        name: named(text(&file, "name")?)?,
        versions: versions(&file)?,
        gc: match file.get("disableGC") {
            None | Some(Value::Bool(false)) => Gc::Allowed,
            Some(Value::Bool(true)) => Gc::Disabled,
            Some(_) => {
                return Err(Invalid::Field {
                    field: "disableGC",
                    must: "true or false",
                });
            }
        },
        plugins: plugins.into_iter().map(plugin).collect::<Result<_, _>>()?,
    })
}

/// The versions that the file names and this program speaks. Who names none means the first one, which is not
/// spoken here.
fn versions(file: &Map<String, Value>) -> Result<BTreeSet<Version>, Invalid> {
    let must = Invalid::Field {
        field: "cniVersions",
        must: "a list of versions",
    };
    let mut texts = match file.get("cniVersions") {
        None => Vec::new(),
        Some(Value::Array(all)) => {
            let all = all.iter().map(|one| one.as_str().map(str::to_owned));
            all.collect::<Option<Vec<String>>>().ok_or(must)?
        }
        Some(_) => return Err(must),
    };
    if file.contains_key("cniVersion") {
        texts.insert(0, text(file, "cniVersion")?.to_owned());
    }
    let spoken: BTreeSet<Version> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    match (spoken.is_empty(), texts.into_iter().next()) {
        (false, _) => Ok(spoken),
        (true, Some(text)) => Err(version::Unknown(text).into()),
        (true, None) => Err(Invalid::Field {
            field: "cniVersion",
            must: "a version, such as 1.0.0",
        }),
    }
}

fn plugin(value: Value) -> Result<Plugin, Invalid> {
    let Value::Object(mut fields) = value else {
        return Err(Invalid::Field {
            field: "plugins",
            must: "a list of objects",
        });
    };
    let kind = named(text(&fields, "type")?)?;
    let capabilities = match fields.remove("capabilities") {
        None => BTreeSet::new(),
        Some(Value::Object(all)) => {
            let wants = |one: &Capability| all.get(one.name()) == Some(&Value::Bool(true));
            Capability::ALL.into_iter().filter(wants).collect()
        }
        Some(_) => {
            return Err(Invalid::Field {
                field: "capabilities",
                must: "an object",
            });
        }
    };
    Ok(Plugin {
        kind,
        capabilities,
        fields,
    })
}

fn text<'a>(from: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, Invalid> {
    let text = from.get(field).and_then(Value::as_str);
    text.filter(|text| !text.is_empty()).ok_or(Invalid::Field {
        field,
        must: "a text",
    })
}

/// Names become those of folders and programs.
fn named(name: &str) -> Result<String, Invalid> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_name = name.len() <= 255
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(is_part);
    match is_name {
        true => Ok(name.to_owned()),
        false => Err(Invalid::Name(name.to_owned())),
    }
}

impl Described {
    /// The network in the latest version that all of its plugins speak; `spoken` has what each of them has
    /// answered, in their order.
    pub fn agreed(self, spoken: &[Vec<String>]) -> Result<Network, Disagreement> {
        let mut common = self.versions.clone();
        for (plugin, speaks) in self.plugins.iter().zip(spoken) {
            common.retain(|version| speaks.iter().any(|one| one == version.name()));
            if common.is_empty() {
                return Err(Disagreement {
                    plugin: plugin.kind.clone(),
                    speaks: speaks.clone(),
                    named: self.versions,
                });
            }
        }
        // There is one: a network has plugins, and was described with a version.
        let version = common.last().copied().unwrap_or(Version::V1_0_0);
        Ok(Network {
            name: self.name,
            version,
            gc: self.gc,
            plugins: self.plugins,
        })
    }
}

impl Network {
    /// Whether one of its plugins wants to be told this.
    pub fn takes(&self, capability: Capability) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|plugin| plugin.capabilities.contains(&capability))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_file_counts() {
        for (names, want) in [
            (&[][..], None),
            (&["readme.txt", "x.yaml", ".conf", "conf"], None),
            (
                &["20-b.conf", "10-a.conflist", "05-c.txt"],
                Some("10-a.conflist"),
            ),
            (&["b.json", "a.conf", "a.conflist"], Some("a.conf")),
            // By bytes, as the original sorts.
            (&["a.conf", "B.conf"], Some("B.conf")),
        ] {
            assert_eq!(first(names.iter().copied()), want, "{names:?}");
        }
    }

    #[test]
    fn a_list_and_a_single_plugin() {
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local"}},
            {"type": "portmap", "capabilities": {"portMappings": true, "dns": true, "bandwidth": false}},
        ]});
        let got = parse(&serde_json::to_vec(&list).unwrap()).unwrap();
        assert_eq!(
            (got.name.as_str(), got.plugins.len(), got.gc),
            ("net", 2, Gc::Allowed)
        );
        assert_eq!(
            got.plugins[1].capabilities,
            [Capability::PortMappings].into()
        );
        assert!(!got.plugins[1].fields.contains_key("capabilities"));
        assert_eq!(got.plugins[0].fields["ipam"]["type"], "host-local");
        let one = json!({"cniVersion": "0.4.0", "name": "n", "type": "ptp", "ipam": {"type": "x"}});
        let got = parse(&serde_json::to_vec(&one).unwrap()).unwrap();
        assert_eq!(got.plugins.len(), 1);
        assert_eq!(got.plugins[0].fields["ipam"]["type"], "x");
        assert_eq!(got.versions, [Version::V0_4_0].into());
    }

    #[test]
    fn what_is_no_configuration() {
        let plugin = r#"{"type": "bridge"}"#;
        for (text, want) in [
            ("", "it is no JSON"),
            ("[]", "it must be an object with `plugins`"),
            (
                r#"{"name": "n", "cniVersion": "1.0.0"}"#,
                "must be an object with",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": []}"#,
                "no plugins",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": {}}"#,
                "`plugins` must be a list",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [1]}"#,
                "a list of objects",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{}]}"#,
                "`type` must be a text",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "../sh"}]}"#,
                "\"../sh\" must begin",
            ),
            (
                r#"{"name": "../n", "cniVersion": "1.0.0", "plugins": [PLUGIN]}"#,
                "\"../n\" must begin",
            ),
            (
                r#"{"cniVersion": "1.0.0", "plugins": [PLUGIN]}"#,
                "`name` must be a text",
            ),
            (
                r#"{"name": "n", "plugins": [PLUGIN]}"#,
                "`cniVersion` must be a version",
            ),
            (
                r#"{"name": "n", "cniVersion": "0.2.0", "plugins": [PLUGIN]}"#,
                "CNI version \"0.2.0\" is none of 0.3.0, ",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "cniVersions": "x", "plugins": [PLUGIN]}"#,
                "`cniVersions` must be",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "disableGC": 1, "plugins": [PLUGIN]}"#,
                "`disableGC` must be",
            ),
            (
                r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "b", "capabilities": []}]}"#,
                "`capabilities` must be",
            ),
        ] {
            let text = text.replace("PLUGIN", plugin);
            let why = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(want), "{text}: {why}");
        }
        let many = vec![json!({"type": "b"}); MAX_PLUGINS + 1];
        let many = json!({"name": "n", "cniVersion": "1.0.0", "plugins": many});
        let why = parse(&serde_json::to_vec(&many).unwrap()).unwrap_err();
        assert_eq!(why, Invalid::ManyPlugins(MAX_PLUGINS + 1));
        // Deeper than any reader goes: refused, and nothing worse.
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn the_latest_version_that_all_speak() {
        let described = |versions: &[&str]| {
            let file = json!({"name": "n", "cniVersion": versions[0], "cniVersions": versions,
                "plugins": [{"type": "a"}, {"type": "b"}]});
            parse(&serde_json::to_vec(&file).unwrap()).unwrap()
        };
        let speaks = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let all = speaks(&["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        for (named, a, b, want) in [
            (&["1.0.0"][..], &all, &all, Ok(Version::V1_0_0)),
            (
                &["1.0.0", "1.1.0", "2.0.0"],
                &all,
                &all,
                Ok(Version::V1_1_0),
            ),
            (
                &["1.0.0", "1.1.0"],
                &all,
                &speaks(&["1.0.0"]),
                Ok(Version::V1_0_0),
            ),
            (
                &["1.0.0"],
                &all,
                &speaks(&["0.4.0"]),
                Err("the plugin \"b\" speaks CNI 0.4.0 and none of 1.0.0"),
            ),
        ] {
            let got = described(named).agreed(&[a.clone(), b.clone()]);
            match (got, want) {
                (Ok(network), Ok(version)) => assert_eq!(network.version, version),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
    }
}
