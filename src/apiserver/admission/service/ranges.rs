//! The ranges that are addresses of Services now: what the ServiceCIDRs say.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::families;
use crate::{
    addresses::ranges::offers,
    apiserver::{
        objects::Lookup,
        registry::kinds::value::{has, items, text, texts},
    },
};

pub const PLURAL: &str = "servicecidrs.networking.k8s.io";
/// That of the daemon's own configuration.
pub const DEFAULT: &str = "kubernetes";

/// One range of one ServiceCIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub cidr: IpNet,
    /// Whether new addresses may come from it.
    pub is_ready: bool,
    /// The ServiceCIDR's name and uid.
    pub name: String,
    pub uid: String,
}

/// All of them, in the order in which addresses are looked for: that of the configuration, then the
/// oldest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

/// As of the last finished write.
pub async fn now(lookup: &dyn Lookup) -> Ranges {
    Ranges::of(&lookup.list(PLURAL, "").await)
}

impl Ranges {
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    fn of(objects: &[Arc<Value>]) -> Self {
        let order = |object: &Value| {
            let name = text(object, "metadata.name").to_owned();
            let created = text(object, "metadata.creationTimestamp").to_owned();
            (name != DEFAULT, created, name)
        };
        let sorted: BTreeMap<_, &Arc<Value>> =
            objects.iter().map(|one| (order(one), one)).collect();
        Self(sorted.into_values().flat_map(|one| ranges(one)).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of the family that give addresses, each once.
    pub fn ready(&self, family: &str) -> Vec<&Range> {
        let mut ready: Vec<&Range> = Vec::new();
        for range in self.0.iter().filter(|range| range.is_ready) {
            let is_new = ready.iter().all(|other| other.cidr != range.cidr);
            if families::of_range(&range.cidr) == family && is_new {
                ready.push(range);
            }
        }
        ready
    }

    /// Whether a Service may get this address now.
    pub fn give(&self, address: IpAddr) -> bool {
        let mut ready = self.0.iter().filter(|range| range.is_ready);
        ready.any(|range| offers(&range.cidr, address))
    }

    /// Whether a Service can have this address.
    pub fn have(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| offers(&range.cidr, address))
    }

    /// Whether the address lies in one of them.
    pub fn cover(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.cidr.contains(&address))
    }
}

fn ranges(object: &Value) -> Vec<Range> {
    let cidrs = texts(object, "spec.cidrs").into_iter();
    cidrs
        .filter_map(|cidr| cidr.parse::<IpNet>().ok())
        .map(|cidr| Range {
            cidr: cidr.trunc(),
            is_ready: is_ready(object),
            name: text(object, "metadata.name").to_owned(),
            uid: text(object, "metadata.uid").to_owned(),
        })
        .collect()
}

/// One of which nobody has said anything yet is ready: its controller may be on its way.
fn is_ready(object: &Value) -> bool {
    let mut conditions = items(object, "status.conditions").iter();
    let ready = conditions.find(|condition| text(condition, "type") == "Ready");
    !has(object, "metadata.deletionTimestamp")
        && ready.is_none_or(|ready| text(ready, "status") == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(name: &str, created: &str, cidrs: Value) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": {"cidrs": cidrs}})
    }

    #[test]
    fn which_ranges_give_addresses() {
        let mut objects = [
            range("young", "2026-01-03T00:00:00Z", json!(["10.3.0.0/24"])),
            range(
                "old",
                "2026-01-02T00:00:00Z",
                json!(["10.2.0.0/24", "fd00::/64"]),
            ),
            range("kubernetes", "2026-01-04T00:00:00Z", json!(["10.1.0.0/24"])),
            range("same", "2026-01-05T00:00:00Z", json!(["10.1.0.0/24"])),
            range("going", "2026-01-01T00:00:00Z", json!(["10.4.0.0/24"])),
            range("unready", "2026-01-01T00:00:00Z", json!(["10.5.0.0/24"])),
        ];
        objects[4]["metadata"]["deletionTimestamp"] = "2026-01-06T00:00:00Z".into();
        objects[5]["status"] = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        objects[0]["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let ranges = Ranges::of(&objects.map(Arc::new));
        let cidrs = |family| -> Vec<String> {
            let ready = ranges.ready(family).into_iter();
            ready.map(|range| range.cidr.to_string()).collect()
        };
        assert_eq!(cidrs("IPv4"), ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]);
        assert_eq!(cidrs("IPv6"), ["fd00::/64"]);
        for (address, gives, has, covers) in [
            ("10.1.0.1", true, true, true),
            ("10.1.0.0", false, false, true),
            ("10.4.0.1", false, true, true),
            ("10.5.0.1", false, true, true),
            ("10.6.0.1", false, false, false),
        ] {
            let ip = address.parse().unwrap();
            let got = (ranges.give(ip), ranges.have(ip), ranges.cover(ip));
            assert_eq!(got, (gives, has, covers), "{address}");
        }
    }
}
