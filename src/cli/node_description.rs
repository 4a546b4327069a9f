//! What the user says of this machine's Node: labels, taints and address, by flag or in a file. The file may say
//! too who makes the network of its pods.
//!
//! Labels are put on the Node at every start, taints when it is made: later they are the administrator's, who may
//! have taken one away. What a node may not say of itself is refused here already, in words that help.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::{Error, cni, paths::Paths};
use crate::{
    addresses::family::PerFamily,
    apiserver::{
        admission::is_label_of_cluster,
        registry::{Causes, kinds::names},
    },
    kubelet::node::Description,
};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// Labels that follow from the machine.
const FIXED: [&str; 3] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];

#[derive(clap::Args)]
#[command(next_help_heading = "The node's object")]
pub struct DescriptionArgs {
    /// A label of the node; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    node_label: Vec<String>,
    /// A taint that the node has from its beginning, KEY=VALUE:EFFECT or KEY:EFFECT; may be repeated
    #[arg(long, value_name = "TAINT", value_delimiter = ',')]
    node_taint: Vec<String>,
    /// The address by which others reach this machine, or one of each family [default: those by which it reaches
    /// them]
    #[arg(long, value_name = "ADDRESS[,ADDRESS]")]
    node_ip: Option<PerFamily<IpAddr>>,
    /// A file with labels, taints, address and `cni` [default: node.yaml in the folder of configuration, if it is there]
    #[arg(long, value_name = "FILE")]
    node_config: Option<PathBuf>,
}

/// The same, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    pub description: Description,
    pub addresses: Option<PerFamily<IpAddr>>,
    /// What the file says of the pods' network.
    pub cni: Option<cni::Written>,
}

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    taints: Vec<Taint>,
    address: Option<PerFamily<IpAddr>>,
    cni: Option<cni::Written>,
}

impl DescriptionArgs {
    /// Checks what was typed and what the file says; what was typed counts more.
    pub fn described(&self, paths: &Paths) -> Result<Described, Error> {
        let written = match &self.node_config {
            Some(path) => read(path)
                .map_err(|error| format!("--node-config {}: {error}", path.display()))?
                .ok_or_else(|| {
                    format!("--node-config {}: there is no such file", path.display())
                })?,
            None => {
                let path = paths.etc.join("node.yaml");
                let read = read(&path);
                read.map_err(|error| format!("{}: {error}", path.display()))?
                    .unwrap_or_default()
            }
        };
        let described = self.over(written)?;
        for address in described.addresses.iter().flat_map(PerFamily::iter) {
            is_own(*address)?;
        }
        Ok(described)
    }

    fn over(&self, written: Written) -> Result<Described, String> {
        let mut labels = written.labels;
        for text in &self.node_label {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| format!("--node-label {text:?}: must be KEY=VALUE"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        for (key, value) in &labels {
            check_label(key, value)?;
        }
        let mut taints = written.taints;
        for text in &self.node_taint {
            let taint = taint(text)?;
            taints.retain(|one| (&one.key, &one.effect) != (&taint.key, &taint.effect));
            taints.push(taint);
        }
        for taint in &taints {
            check_taint(taint)?;
        }
        Ok(Described {
            description: Description { labels, taints },
            addresses: self.node_ip.or(written.address),
            cni: written.cni,
        })
    }
}

fn read(path: &Path) -> Result<Option<Written>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if text.trim().is_empty() {
        return Ok(Some(Written::default()));
    }
    Ok(Some(serde_saphyr::from_str(&text)?))
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    let mut causes = Causes::default();
    names::label_key(key, "", &mut causes);
    names::label_value(value, "", &mut causes);
    if let Some(cause) = causes.0.into_iter().next() {
        return Err(format!("the label {key}={value}: {}", cause.message));
    }
    if FIXED.contains(&key) {
        return Err(format!(
            "the label {key}={value}: it follows from the machine; --node-name names the node"
        ));
    }
    if is_label_of_cluster(key) {
        return Err(format!(
            "the label {key}={value}: a node may not say this of itself; on the server, `kubectl label node NODE \
             {key}={value}` does"
        ));
    }
    Ok(())
}

/// `KEY=VALUE:EFFECT`, `KEY:EFFECT`.
fn taint(text: &str) -> Result<Taint, String> {
    let (rest, effect) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("--node-taint {text:?}: must be KEY=VALUE:EFFECT or KEY:EFFECT"))?;
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (rest, None),
    };
    Ok(Taint {
        key: key.to_owned(),
        value: value.filter(|value| !value.is_empty()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

fn check_taint(taint: &Taint) -> Result<(), String> {
    let Taint { key, effect, .. } = taint;
    let mut causes = Causes::default();
    names::label_key(key, "", &mut causes);
    names::label_value(taint.value.as_deref().unwrap_or_default(), "", &mut causes);
    if let Some(cause) = causes.0.into_iter().next() {
        return Err(format!("the taint {key}: {}", cause.message));
    }
    match EFFECTS.contains(&effect.as_str()) {
        true => Ok(()),
        false => Err(format!(
            "the taint {key}: the effect {effect:?} is none of {}",
            EFFECTS.join(", ")
        )),
    }
}

/// Whether this machine has the address, and others can reach it there.
fn is_own(address: IpAddr) -> Result<(), String> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!(
            "--node-ip {address}: nobody reaches a machine there"
        ));
    }
    UdpSocket::bind((address, 0)).map(drop).map_err(|_| {
        format!("--node-ip {address}: this machine does not have it; `ip address` shows those that it has")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(labels: &[&str], taints: &[&str]) -> DescriptionArgs {
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        DescriptionArgs {
            node_label: all(labels),
            node_taint: all(taints),
            node_ip: None,
            node_config: None,
        }
    }

    fn paths(etc: &Path) -> Paths {
        Paths {
            etc: etc.to_owned(),
            state: etc.to_owned(),
            run: etc.to_owned(),
            log: etc.to_owned(),
            root: None,
        }
    }

    #[test]
    fn what_is_typed() {
        let none = || Written::default();
        for (labels, taints, want) in [
            (&["disk=ssd", "example.com/a="][..], &[][..], Ok(())),
            (&["topology.kubernetes.io/zone=a"], &[], Ok(())),
            (&["node.kubernetes.io/instance-type=x"], &[], Ok(())),
            (&["disk"], &[], Err("--node-label \"disk\"")),
            (&["=x"], &[], Err("the label =x")),
            (&["a b=x"], &[], Err("the label a b=x")),
            (&["a=x y"], &[], Err("the label a=x y")),
            (
                &["node-role.kubernetes.io/db="],
                &[],
                Err("kubectl label node NODE node-role.kubernetes.io/db="),
            ),
            (&["kubernetes.io/hostname=x"], &[], Err("--node-name")),
            (&[], &["gpu=yes:NoSchedule"], Ok(())),
            (&[], &["gpu:NoExecute", "gpu:NoSchedule"], Ok(())),
            (&[], &["gpu"], Err("KEY=VALUE:EFFECT")),
            (&[], &["gpu:Never"], Err("is none of NoSchedule")),
            (&[], &[":NoSchedule"], Err("the taint ")),
        ] {
            let got = args(labels, taints).over(none());
            match want {
                Ok(()) => assert!(got.is_ok(), "{labels:?} {taints:?}: {got:?}"),
                Err(want) => {
                    let why = got.expect_err("refused");
                    assert!(why.contains(want), "{labels:?} {taints:?}: {why}");
                }
            }
        }
    }

    #[test]
    fn a_file_says_the_same_and_counts_less() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let typed = args(&["disk=ssd"], &["gpu=no:NoSchedule"]);
        assert_eq!(
            args(&[], &[]).described(&paths).unwrap(),
            Described::default()
        );
        let path = dir.path().join("node.yaml");
        let text = "labels: {disk: hdd, rack: r1}\n\
                    taints: [{key: gpu, value: 'yes', effect: NoSchedule}]\n";
        fs::write(&path, text).unwrap();
        let got = typed.described(&paths).unwrap().description;
        let labels: Vec<_> = got
            .labels
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect();
        assert_eq!(labels, [("disk", "ssd"), ("rack", "r1")]);
        let values: Vec<_> = got.taints.iter().map(|one| one.value.as_deref()).collect();
        assert_eq!(values, [Some("no")]);
        for (text, want) in [
            ("label: {}\n", "node.yaml"),
            ("labels: [a]\n", "node.yaml"),
            ("address: x\n", "node.yaml"),
            ("cni: {binDirs: [/b]}\n", "node.yaml"),
            (
                "labels: {node-role.kubernetes.io/x: ''}\n",
                "kubectl label node",
            ),
            ("address: 203.0.113.9\n", "does not have it"),
            ("address: 127.0.0.1\n", "nobody reaches"),
        ] {
            fs::write(&path, text).unwrap();
            let why = typed.described(&paths).unwrap_err().to_string();
            assert!(why.contains(want), "{text}: {why}");
        }
        fs::write(&path, "cni: {confDir: /c, binDirs: [/b]}\n").unwrap();
        assert!(typed.described(&paths).unwrap().cni.is_some());
        fs::write(&path, "").unwrap();
        assert!(typed.described(&paths).is_ok());
        let mut other = args(&[], &[]);
        other.node_config = Some(dir.path().join("missing"));
        let why = other.described(&paths).unwrap_err().to_string();
        assert!(why.contains("--node-config"), "{why}");
    }
}
