//! Which plugins are run for what, and what each of them is told. Pure.
//!
//! Source: CNI specification 1.1.0, sections 2 and 4; arguments and capabilities as containerd gives them
//! (CNI, CONVENTIONS.md).

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    config::{Capability, Gc, Network, Plugin},
    version::Version,
};
use crate::kubelet::network::{Bandwidth, Forward, HostAddress};

/// The pod's link.
pub const LINK: &str = "eth0";
/// How much may be sent at once where a rate is limited, in bits: as the original says.
const BURST: u32 = u32::MAX;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// One run of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The program's name.
    pub plugin: String,
    pub verb: Verb,
    /// All of it.
    pub environment: Vec<(&'static str, OsString)>,
    pub input: Vec<u8>,
}

/// A pod that is, was or shall be on a network. Recorded; DEL is told the same as ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Another one for every sandbox of the pod.
    pub container_id: String,
    /// Where its network namespace is mounted.
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub bandwidth: Rates,
    /// The node's ranges of pods.
    pub ranges: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    host_port: u16,
    container_port: u16,
    protocol: String,
    /// Empty for every address of the node.
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// Bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    ingress: Option<u64>,
    egress: Option<u64>,
}

/// Where the pod's network namespace is, for DEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netns {
    There,
    /// Since the machine was started anew, say.
    Gone,
}

impl PortMapping {
    pub fn of(forward: &Forward) -> Self {
        Self {
            host_port: forward.port,
            container_port: forward.to,
            protocol: match forward.protocol {
                17 => "udp",
                132 => "sctp",
                _ => "tcp",
            }
            .to_owned(),
            host_ip: match forward.address {
                HostAddress::Every => String::new(),
                HostAddress::EveryIpv6 => "::".to_owned(),
                HostAddress::One(address) => address.to_string(),
            },
        }
    }
}

impl From<Bandwidth> for Rates {
    fn from(bandwidth: Bandwidth) -> Self {
        let Bandwidth { ingress, egress } = bandwidth;
        Self { ingress, egress }
    }
}

impl Attachment {
    /// Whether its names can be told: they stand between signs that they may not have themselves.
    pub fn is_sayable(&self) -> bool {
        let is_plain = |text: &String| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            !text.is_empty() && text.bytes().all(is_part)
        };
        [&self.uid, &self.namespace, &self.name, &self.container_id]
            .into_iter()
            .all(is_plain)
    }

    fn arguments(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.container_id, self.uid
        )
    }

    /// What a plugin is told of the pod, of that which it wants to know.
    fn runtime_config(&self, plugin: &Plugin) -> Map<String, Value> {
        let mut config = Map::new();
        for capability in &plugin.capabilities {
            let told = match capability {
                Capability::PortMappings if !self.ports.is_empty() => json!(self.ports),
                Capability::Bandwidth if self.bandwidth != Rates::default() => {
                    self.bandwidth.told()
                }
                Capability::IpRanges if !self.ranges.is_empty() => {
                    let of_range = |range: &IpNet| json!([{"subnet": range.to_string()}]);
                    self.ranges.iter().map(of_range).collect()
                }
                _ => continue,
            };
            config.insert(capability.name().to_owned(), told);
        }
        config
    }
}

impl Rates {
    fn told(self) -> Value {
        let mut told = Map::new();
        for (rate, names) in [
            (self.ingress, ["ingressRate", "ingressBurst"]),
            (self.egress, ["egressRate", "egressBurst"]),
        ] {
            if let Some(rate) = rate {
                told.insert(names[0].to_owned(), rate.into());
                told.insert(names[1].to_owned(), BURST.into());
            }
        }
        told.into()
    }
}

/// The run that adds the pod by the plugin at `index` of the network; `previous` is what the one before it has
/// answered. `None` after the last.
pub fn add(
    network: &Network,
    programs: &[PathBuf],
    pod: &Attachment,
    index: usize,
    previous: Option<&Value>,
) -> Option<Invocation> {
    let plugin = network.plugins.get(index)?;
    let previous = previous.filter(|_| index > 0);
    Some(Invocation {
        plugin: plugin.kind.clone(),
        verb: Verb::Add,
        environment: of_pod(Verb::Add, programs, pod, &pod.netns),
        input: input(network, plugin, Some(pod), previous, &[]),
    })
}

/// The runs that take the pod off the network again, in their order. `result` is what ADD has answered at last.
pub fn del(
    network: &Network,
    programs: &[PathBuf],
    pod: &Attachment,
    netns: Netns,
    result: Option<&Value>,
) -> Vec<Invocation> {
    let result = result.filter(|_| network.version.del_has_result());
    let netns = match netns {
        Netns::There => pod.netns.as_path(),
        Netns::Gone => Path::new(""),
    };
    let plugins = network.plugins.iter().rev();
    plugins
        .map(|plugin| Invocation {
            plugin: plugin.kind.clone(),
            verb: Verb::Del,
            environment: of_pod(Verb::Del, programs, pod, netns),
            input: input(network, plugin, Some(pod), result, &[]),
        })
        .collect()
}

/// The runs that tell the plugins which pods of the network there are; none where they are not to be told.
pub fn gc(network: &Network, programs: &[PathBuf], container_ids: &[String]) -> Vec<Invocation> {
    if !network.version.has_gc() || network.gc == Gc::Disabled {
        return Vec::new();
    }
    let valid = { container_ids.iter() }
        .map(|id| json!({"containerID": id, "ifname": LINK}))
        .collect();
    let more = [("cni.dev/valid-attachments", valid)];
    let plugins = network.plugins.iter();
    plugins
        .map(|plugin| Invocation {
            plugin: plugin.kind.clone(),
            verb: Verb::Gc,
            environment: common(Verb::Gc, programs),
            input: input(network, plugin, None, None, &more),
        })
        .collect()
}

/// The runs that ask the plugins whether they can take pods; none where they are not to be asked.
pub fn status(network: &Network, programs: &[PathBuf]) -> Vec<Invocation> {
    if !network.version.has_status() {
        return Vec::new();
    }
    let plugins = network.plugins.iter();
    plugins
        .map(|plugin| Invocation {
            plugin: plugin.kind.clone(),
            verb: Verb::Status,
            environment: common(Verb::Status, programs),
            input: input(network, plugin, None, None, &[]),
        })
        .collect()
}

/// The run that asks a plugin for the versions that it speaks.
pub fn version(plugin: &Plugin, programs: &[PathBuf]) -> Invocation {
    // As the original asks. Plugins of before read all of these, though they need none.
    let mut environment = common(Verb::Version, programs);
    for (name, value) in [
        ("CNI_CONTAINERID", "dummy"),
        ("CNI_NETNS", "dummy"),
        ("CNI_IFNAME", "dummy"),
    ] {
        environment.push((name, value.into()));
    }
    let newest = Version::ALL.last();
    let newest = newest.map_or("", |version| version.name());
    Invocation {
        plugin: plugin.kind.clone(),
        verb: Verb::Version,
        environment,
        input: json!({"cniVersion": newest}).to_string().into_bytes(),
    }
}

fn common(verb: Verb, programs: &[PathBuf]) -> Vec<(&'static str, OsString)> {
    let mut path = OsString::new();
    for (number, folder) in programs.iter().enumerate() {
        if number > 0 {
            path.push(":");
        }
        path.push(folder);
    }
    vec![
        ("PATH", PATH.into()),
        ("CNI_COMMAND", verb.name().into()),
        ("CNI_PATH", path),
    ]
}

fn of_pod(
    verb: Verb,
    programs: &[PathBuf],
    pod: &Attachment,
    netns: &Path,
) -> Vec<(&'static str, OsString)> {
    let mut environment = common(verb, programs);
    environment.extend([
        ("CNI_CONTAINERID", OsString::from(&pod.container_id)),
        ("CNI_NETNS", netns.into()),
        ("CNI_IFNAME", LINK.into()),
        ("CNI_ARGS", pod.arguments().into()),
    ]);
    environment
}

/// A plugin's configuration as it is told.
fn input(
    network: &Network,
    plugin: &Plugin,
    pod: Option<&Attachment>,
    previous: Option<&Value>,
    more: &[(&str, Value)],
) -> Vec<u8> {
    let mut told = plugin.fields.clone();
    told.remove("cniVersions");
    told.insert("cniVersion".into(), network.version.name().into());
    told.insert("name".into(), network.name.clone().into());
    let runtime_config = pod.map(|pod| pod.runtime_config(plugin));
    if let Some(config) = runtime_config.filter(|config| !config.is_empty()) {
        told.insert("runtimeConfig".into(), config.into());
    }
    if let Some(previous) = previous {
        told.insert("prevResult".into(), previous.clone());
    }
    for (name, value) in more {
        told.insert((*name).to_owned(), value.clone());
    }
    Value::from(told).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{super::config, *};

    fn network(version: &str) -> Network {
        let file = json!({"cniVersion": version, "name": "net", "plugins": [
            {"type": "bridge", "bridge": "cni0", "capabilities": {"ipRanges": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]});
        let described = config::parse(&serde_json::to_vec(&file).unwrap()).unwrap();
        described.agreed(&[]).unwrap()
    }

    fn pod() -> Attachment {
        Attachment {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            container_id: "abc".into(),
            netns: "/run/vetch/netns/abc".into(),
            ports: vec![PortMapping::of(&Forward {
                address: HostAddress::Every,
                protocol: 17,
                port: 5353,
                to: 53,
            })],
            bandwidth: Rates {
                ingress: Some(1_000_000),
                egress: None,
            },
            ranges: vec![
                "10.42.0.0/24".parse().unwrap(),
                "fd42::/64".parse().unwrap(),
            ],
        }
    }

    fn told(invocation: &Invocation) -> Value {
        serde_json::from_slice(&invocation.input).unwrap()
    }

    fn variable(invocation: &Invocation, name: &str) -> Option<String> {
        let mut all = invocation.environment.iter();
        let (_, value) = all.find(|(one, _)| *one == name)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_plugin_is_told_what_the_one_before_has_answered() {
        let (network, programs) = (network("1.0.0"), ["/opt/cni/bin".into(), "/b".into()]);
        let answers = [json!({"ips": [1]}), json!({"ips": [2]})];
        let first = add(&network, &programs, &pod(), 0, Some(&answers[0])).unwrap();
        assert_eq!(
            told(&first),
            json!({
                "type": "bridge", "bridge": "cni0", "cniVersion": "1.0.0", "name": "net",
                "runtimeConfig": {"ipRanges": [[{"subnet": "10.42.0.0/24"}], [{"subnet": "fd42::/64"}]]},
            })
        );
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;\
                         K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u";
        for (name, want) in [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/run/vetch/netns/abc"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin:/b"),
            ("CNI_ARGS", arguments),
            ("PATH", PATH),
        ] {
            assert_eq!(variable(&first, name).as_deref(), Some(want), "{name}");
        }
        assert_eq!(first.environment.len(), 7);
        let second = add(&network, &programs, &pod(), 1, Some(&answers[0])).unwrap();
        assert_eq!(
            told(&second),
            json!({
                "type": "portmap", "cniVersion": "1.0.0", "name": "net", "prevResult": {"ips": [1]},
                "runtimeConfig": {"portMappings": [
                    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""}
                ]},
            })
        );
        let third = add(&network, &programs, &pod(), 2, Some(&answers[1])).unwrap();
        assert_eq!(told(&third)["prevResult"], answers[1]);
        assert_eq!(
            told(&third)["runtimeConfig"]["bandwidth"],
            json!({"ingressRate": 1_000_000, "ingressBurst": u32::MAX})
        );
        assert_eq!(add(&network, &programs, &pod(), 3, None), None);
        // What a pod does not ask for is not told.
        let plain = Attachment {
            ports: Vec::new(),
            ..pod()
        };
        let second = add(&network, &programs, &plain, 1, Some(&answers[0])).unwrap();
        assert_eq!(told(&second).get("runtimeConfig"), None);
    }

    #[test]
    fn del_goes_backwards_and_knows_the_result() {
        let result = json!({"ips": []});
        for (version, netns, has_result, path) in [
            ("1.0.0", Netns::There, true, "/run/vetch/netns/abc"),
            ("0.4.0", Netns::Gone, true, ""),
            ("0.3.1", Netns::There, false, "/run/vetch/netns/abc"),
        ] {
            let network = network(version);
            let runs = del(&network, &["/b".into()], &pod(), netns, Some(&result));
            let kinds: Vec<&str> = runs.iter().map(|run| run.plugin.as_str()).collect();
            assert_eq!(kinds, ["bandwidth", "portmap", "bridge"]);
            for run in &runs {
                assert_eq!(
                    told(run).get("prevResult").is_some(),
                    has_result,
                    "{version}"
                );
                assert_eq!(variable(run, "CNI_NETNS").as_deref(), Some(path));
                assert_eq!(variable(run, "CNI_COMMAND").as_deref(), Some("DEL"));
            }
            // DEL must know what ADD has opened.
            assert!(told(&runs[1])["runtimeConfig"]["portMappings"].is_array());
        }
        let cut_off = del(&network("1.0.0"), &[], &pod(), Netns::There, None);
        assert_eq!(told(&cut_off[0]).get("prevResult"), None);
    }

    #[test]
    fn who_may_be_told_to_clean_up() {
        let ids = ["abc".to_owned()];
        assert!(gc(&network("1.0.0"), &[], &ids).is_empty());
        let mut later = network("1.1.0");
        let runs = gc(&later, &["/b".into()], &ids);
        assert_eq!(runs.len(), 3);
        assert_eq!(
            told(&runs[0])["cni.dev/valid-attachments"],
            json!([{"containerID": "abc", "ifname": "eth0"}])
        );
        assert_eq!(told(&runs[0]).get("runtimeConfig"), None);
        assert_eq!(variable(&runs[0], "CNI_CONTAINERID"), None);
        later.gc = config::Gc::Disabled;
        assert!(gc(&later, &[], &ids).is_empty());
        assert_eq!(later.version, Version::V1_1_0);
    }

    #[test]
    fn who_is_asked_for_its_status() {
        assert!(status(&network("1.0.0"), &[]).is_empty());
        let runs = status(&network("1.1.0"), &["/b".into()]);
        let kinds: Vec<&str> = runs.iter().map(|run| run.plugin.as_str()).collect();
        assert_eq!(kinds, ["bridge", "portmap", "bandwidth"]);
        assert_eq!(
            told(&runs[1]),
            json!({"type": "portmap", "cniVersion": "1.1.0", "name": "net"})
        );
        assert_eq!(variable(&runs[0], "CNI_COMMAND").as_deref(), Some("STATUS"));
        assert_eq!(variable(&runs[0], "CNI_CONTAINERID"), None);
    }

    #[test]
    fn names_that_would_say_something_else() {
        assert!(pod().is_sayable());
        for name in ["", "a;IgnoreUnknown=0", "a=b", "a b"] {
            let pod = Attachment {
                name: name.to_owned(),
                ..pod()
            };
            assert!(!pod.is_sayable(), "{name}");
        }
    }
}
