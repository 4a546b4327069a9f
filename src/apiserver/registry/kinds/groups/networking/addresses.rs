//! What an IPAddress and a ServiceCIDR must be. Words are the original's.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        ips, names,
        value::{at, text, texts},
    },
};

const CIDRS: &str = "spec.cidrs";
const IMMUTABLE: &str = "field is immutable";

pub fn address(address: &Value, causes: &mut Causes) {
    let name_rule = |name: &str| ips::strict_address(name).err().into_iter().collect();
    // The name is the address: none is made up.
    match text(address, "metadata.name") {
        "" => causes.required("metadata.name", "name or generateName is required"),
        name => names::report(name_rule(name), name, "metadata.name", causes),
    }
    parent(address, causes);
}

fn parent(address: &Value, causes: &mut Causes) {
    let Some(parent) = at(address, "spec.parentRef") else {
        return causes.required("spec.parentRef", "");
    };
    let group = text(parent, "group");
    if !group.is_empty() {
        let errors = names::dns_subdomain(group);
        names::report(errors, group, "spec.parentRef.group", causes);
    }
    for (part, is_required) in [("resource", true), ("name", true), ("namespace", false)] {
        let path = format!("spec.parentRef.{part}");
        match text(parent, part) {
            "" if is_required => causes.required(path, ""),
            "" => {}
            value => names::report(names::path_segment(value), value, &path, causes),
        }
    }
}

pub fn range(range: &Value, causes: &mut Causes) {
    names::object_name(range, names::dns_subdomain, causes);
    ranges(range, causes);
}

/// One of each family at most.
fn ranges(range: &Value, causes: &mut Causes) {
    let cidrs = texts(range, CIDRS);
    if cidrs.is_empty() {
        return causes.required(CIDRS, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        return causes.invalid(CIDRS, at(range, "spec"), "may only hold up to 2 values");
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        if let Err(why) = ips::strict_range(cidr) {
            causes.invalid(format!("{CIDRS}[{index}]"), cidr, &why);
        }
    }
    let is_v6: Vec<bool> = cidrs
        .iter()
        .filter_map(|cidr| cidr.parse::<ipnet::IpNet>().ok())
        .map(|cidr| cidr.network().is_ipv6())
        .collect();
    if let [first, second] = is_v6[..]
        && first == second
    {
        causes.invalid(
            CIDRS,
            cidrs,
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}

/// A range stays; one of the other family may come.
pub fn range_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (new, old) = (texts(new, CIDRS), texts(old, CIDRS));
    let changed = |index: usize| new.get(index) != old.get(index);
    match (new.len(), old.len()) {
        (now, before) if now == before || (now, before) == (2, 1) => {
            for index in (0..before).filter(|index| changed(*index)) {
                causes.invalid(format!("{CIDRS}[{index}]"), new[index], IMMUTABLE);
            }
        }
        _ => causes.invalid(CIDRS, new, IMMUTABLE),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(check: impl FnOnce(&mut Causes)) -> Vec<String> {
        let mut causes = Causes::default();
        check(&mut causes);
        let line =
            |cause: &crate::apiserver::status::Cause| format!("{}: {}", cause.field, cause.message);
        causes.0.iter().map(line).collect()
    }

    #[test]
    fn addresses_and_their_parents() {
        let parent = json!({"resource": "services", "namespace": "a", "name": "s"});
        for (name, parent, want) in [
            ("10.0.0.1", parent.clone(), &[][..]),
            (
                "255.255.255.255",
                json!({"group": "mygroup", "resource": "r", "name": "n"}),
                &[],
            ),
            ("fe80::42:1dff:fe84:f9e2", parent.clone(), &[]),
            (
                "10.0.0.01",
                parent.clone(),
                &["metadata.name: Invalid value: \"10.0.0.01\": must not have leading 0s"],
            ),
            (
                "FD00::1",
                parent.clone(),
                &[
                    "metadata.name: Invalid value: \"FD00::1\": must be in canonical form (\"fd00::1\")",
                ],
            ),
            (
                "::ffff:10.0.0.1",
                parent.clone(),
                &[
                    "metadata.name: Invalid value: \"::ffff:10.0.0.1\": must not be an IPv4-mapped IPv6 address",
                ],
            ),
            (
                "web",
                parent,
                &[
                    "metadata.name: Invalid value: \"web\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            ("10.0.0.1", Value::Null, &["spec.parentRef: Required value"]),
            (
                "10.0.0.1",
                json!({"namespace": "a/b"}),
                &[
                    "spec.parentRef.resource: Required value",
                    "spec.parentRef.name: Required value",
                    "spec.parentRef.namespace: Invalid value: \"a/b\": may not contain '/'",
                ],
            ),
        ] {
            let mut object = json!({"metadata": {"name": name}, "spec": {}});
            if !parent.is_null() {
                object["spec"]["parentRef"] = parent;
            }
            assert_eq!(said(|causes| address(&object, causes)), want, "{object}");
        }
    }

    #[test]
    fn ranges_are_canonical_and_one_of_a_family() {
        for (cidrs, want) in [
            (json!(["10.0.0.0/24"]), &[][..]),
            (json!(["fd00::/64", "10.0.0.0/24"]), &[]),
            (
                json!([]),
                &["spec.cidrs: Required value: at least one CIDR required"],
            ),
            (
                json!(["10.0.0.0/24", "fd00::/64", "10.1.0.0/24"]),
                &[
                    "spec.cidrs: Invalid value: {\"cidrs\":[\"10.0.0.0/24\",\"fd00::/64\",\"10.1.0.0/24\"]}: may only hold up to 2 values",
                ],
            ),
            (
                json!(["10.0.0.0/24", "10.1.0.0/24"]),
                &[
                    "spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"10.1.0.0/24\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                ],
            ),
            (
                json!(["10.0.0.1"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"10.0.0.1\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                json!(["10.0.0.1/24"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
                ],
            ),
            (
                json!(["10.0.0.0/024"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"10.0.0.0/024\": must not have leading 0s in IP or prefix length",
                ],
            ),
            (
                json!(["010.0.0.0/24"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"010.0.0.0/24\": must not have leading 0s in IP or prefix length",
                ],
            ),
            (
                json!(["::ffff:10.0.0.0/120"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"::ffff:10.0.0.0/120\": must not have an IPv4-mapped IPv6 address",
                ],
            ),
            (
                json!(["FD00::/64"]),
                &[
                    "spec.cidrs[0]: Invalid value: \"FD00::/64\": must be in canonical form (\"fd00::/64\")",
                ],
            ),
        ] {
            let object = json!({"metadata": {"name": "x"}, "spec": {"cidrs": cidrs}});
            assert_eq!(said(|causes| range(&object, causes)), want, "{object}");
        }
    }

    #[test]
    fn ranges_stay_but_a_second_family_may_come() {
        for (new, old, want) in [
            (&["10.0.0.0/24"][..], &["10.0.0.0/24"][..], &[][..]),
            (&["10.0.0.0/24", "fd00::/64"], &["10.0.0.0/24"], &[]),
            (
                &["10.0.0.0/16"],
                &["10.0.0.0/24"],
                &["spec.cidrs[0]: Invalid value: \"10.0.0.0/16\": field is immutable"],
            ),
            (
                &["fd00::/64", "10.0.0.0/24"],
                &["10.0.0.0/24"],
                &["spec.cidrs[0]: Invalid value: \"fd00::/64\": field is immutable"],
            ),
            (
                &["10.0.0.0/24"],
                &["10.0.0.0/24", "fd00::/64"],
                &["spec.cidrs: Invalid value: [\"10.0.0.0/24\"]: field is immutable"],
            ),
        ] {
            let object = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
            let got = said(|causes| range_update(&object(new), &object(old), causes));
            assert_eq!(got, want, "{new:?} {old:?}");
        }
    }
}
