//! Names of Services, and the index they are looked up in. Pure.
//!
//! Names are lower case, without the closing dot. Always true: a name is in the index exactly as
//! long as some Service gives it records, and so are the empty names above it.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt;

use crate::informer::Key;

/// One record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    Address(IpAddr),
    Service { port: u16, target: String },
    Alias(String),
    Pointer(String),
}

pub type Records = BTreeMap<String, Vec<Data>>;

/// Every name that one Service gives.
pub fn records(service: &Service, slices: &[&EndpointSlice], domain: &str) -> Records {
    let mut records = Records::new();
    let Some(spec) = &service.spec else {
        return records;
    };
    let namespace = service.namespace().unwrap_or_default();
    let name = format!("{}.{namespace}.svc.{domain}", service.name_any());
    if spec.type_.as_deref() == Some("ExternalName") {
        if let Some(target) = &spec.external_name {
            let target = target.trim_end_matches('.').to_lowercase();
            add(&mut records, name, Data::Alias(target));
        }
        return records;
    }
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = listed.filter_map(|text| text.parse().ok()).collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        headless(&mut records, &name, slices);
        return records;
    }
    for address in addresses {
        add(&mut records, name.clone(), Data::Address(address));
        add(&mut records, reverse(address), Data::Pointer(name.clone()));
    }
    for port in spec.ports.iter().flatten() {
        let (Some(label), Ok(number)) = (&port.name, u16::try_from(port.port)) else {
            continue;
        };
        let data = Data::Service {
            port: number,
            target: name.clone(),
        };
        let owner = service_label(label, port.protocol.as_deref(), &name);
        add(&mut records, owner, data);
    }
    records
}

fn headless(records: &mut Records, name: &str, slices: &[&EndpointSlice]) {
    for slice in slices {
        let ready = |endpoint: &&Endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|c| c.ready).unwrap_or(true)
        };
        for endpoint in slice.endpoints.iter().flatten().filter(ready) {
            for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                let host = format!("{label}.{name}").to_lowercase();
                add(records, name.to_owned(), Data::Address(address));
                add(records, host.clone(), Data::Address(address));
                add(records, reverse(address), Data::Pointer(host.clone()));
                for port in slice.ports.iter().flatten() {
                    let (Some(label), Some(number)) = (
                        port.name.as_ref().filter(|name| !name.is_empty()),
                        port.port.and_then(|port| u16::try_from(port).ok()),
                    ) else {
                        continue;
                    };
                    let data = Data::Service {
                        port: number,
                        target: host.clone(),
                    };
                    let owner = service_label(label, port.protocol.as_deref(), name);
                    add(records, owner, data);
                }
            }
        }
    }
}

fn add(records: &mut Records, name: String, data: Data) {
    let list = records.entry(name).or_default();
    // An endpoint may be in two slices while it moves.
    if !list.contains(&data) {
        list.push(data);
    }
}

fn service_label(port: &str, protocol: Option<&str>, name: &str) -> String {
    format!("_{port}._{}.{name}", protocol.unwrap_or("TCP")).to_lowercase()
}

/// `10-0-0-1` or `fd00--1`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in a pod's name, the first label of `10-0-0-1.default.pod.cluster.local`.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>();
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>();
    v4.map(IpAddr::from)
        .or_else(|_| v6().map(IpAddr::from))
        .ok()
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles: Vec<String> = address
                .octets()
                .iter()
                .rev()
                .flat_map(|byte| [byte & 15, byte >> 4])
                .map(|nibble| format!("{nibble:x}"))
                .collect();
            format!("{}.ip6.arpa", nibbles.join("."))
        }
    }
}

/// What the index knows of a name.
#[derive(Clone, Debug)]
pub enum Found<'a> {
    Records(Each<'a>),
    /// There are names below it.
    Empty,
    Nothing,
}

/// The data of one name.
pub type Each<'a> = std::iter::FlatMap<
    std::slice::Iter<'a, Given>,
    std::slice::Iter<'a, Data>,
    fn(&'a Given) -> std::slice::Iter<'a, Data>,
>;

impl Found<'_> {
    pub fn is_there(&self) -> bool {
        matches!(self, Self::Records(_))
    }
}

/// All names of all Services. There may be many, so that what is kept of each has no room to spare.
#[derive(Debug, Default)]
pub struct Index {
    /// The names that each Service gives, in order.
    owners: HashMap<Arc<Key>, Box<[Arc<str>]>>,
    /// By the Services' keys.
    names: HashMap<Arc<str>, Vec<Given>>,
    /// How many names lie below each name.
    above: HashMap<String, usize>,
}

/// What one Service says of a name.
#[derive(Clone, Debug)]
pub struct Given {
    owner: Arc<Key>,
    data: Box<[Data]>,
}

impl Given {
    fn each(&self) -> std::slice::Iter<'_, Data> {
        self.data.iter()
    }
}

impl Index {
    /// Takes over what a Service gives now; nothing, if it went.
    pub fn update(&mut self, key: &Key, records: Records) {
        if self.is_so(key, &records) {
            return;
        }
        let gone = self.owners.remove(key);
        for name in gone.into_iter().flatten() {
            self.take(key, &name);
        }
        if records.is_empty() {
            return;
        }
        let owner = Arc::new(key.clone());
        let mut names = Vec::with_capacity(records.len());
        for (name, data) in records {
            names.push(self.give(&owner, name, data.into()));
        }
        self.owners.insert(owner, names.into());
    }

    /// Whether the Service gives just these.
    fn is_so(&self, key: &Key, records: &Records) -> bool {
        let given = self.owners.get(key).map(|names| &**names);
        let names = given.unwrap_or_default();
        let mut pairs = names.iter().zip(records);
        names.len() == records.len()
            && pairs.all(|(name, (wanted, data))| {
                let of_name = self.names.get(name).map_or(&[][..], |all| all);
                let mut ours = of_name.iter().filter(|given| *given.owner == *key);
                **name == **wanted && ours.all(|given| *given.data == **data)
            })
    }

    fn take(&mut self, key: &Key, name: &str) {
        let Some(all) = self.names.get_mut(name) else {
            return;
        };
        all.retain(|given| *given.owner != *key);
        if !all.is_empty() {
            return;
        }
        self.names.remove(name);
        for parent in parents(name) {
            if let Some(count) = self.above.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.above.remove(parent);
                }
            }
        }
    }

    /// The name, as it is kept.
    fn give(&mut self, owner: &Arc<Key>, name: String, data: Box<[Data]>) -> Arc<str> {
        let owner = owner.clone();
        if let Some((kept, _)) = self.names.get_key_value(&*name) {
            let kept = kept.clone();
            if let Some(all) = self.names.get_mut(&kept) {
                let at = all.partition_point(|given| given.owner < owner);
                all.insert(at, Given { owner, data });
            }
            return kept;
        }
        for parent in parents(&name) {
            match self.above.get_mut(parent) {
                Some(count) => *count += 1,
                None => {
                    self.above.insert(parent.to_owned(), 1);
                }
            }
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone(), vec![Given { owner, data }]);
        name
    }

    pub fn find(&self, name: &str) -> Found<'_> {
        match self.names.get(name) {
            Some(all) => Found::Records(all.iter().flat_map(Given::each as fn(_) -> _)),
            None if self.above.contains_key(name) => Found::Empty,
            None => Found::Nothing,
        }
    }
}

fn parents(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = name;
    std::iter::from_fn(move || {
        rest = rest.split_once('.')?.1;
        Some(rest)
    })
}
