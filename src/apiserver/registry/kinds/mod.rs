//! The rows: a file per API group or large kind.
//!
//! Read by the verbs, discovery and OpenAPI through [`table`]. `value`, `names`, `selector`,
//! `cells` and `row` are what the rows are written with.
//! Always true:
//! - Defaulting is idempotent, and complete enough for kubectl's own code to work on the answer.
//! - A kind whose controller does not exist yet is in [`NOT_SERVED`] and thereby an honest 404.

pub mod apps;
pub mod batch;
pub mod cells;
pub mod core;
pub mod groups;
pub mod ips;
pub mod names;
pub mod pods;
pub mod row;
pub mod selector;
pub mod twins;
pub mod value;

use std::sync::LazyLock;

use super::Resource;

/// Kinds (`plural` or `plural.group`) that have rows but nobody acts on yet. Taking one off this
/// list serves it.
pub const NOT_SERVED: &[&str] = &[
    "horizontalpodautoscalers.autoscaling",
    "volumeattributesclasses.storage.k8s.io",
];

/// Every served row, in discovery order: the core group, then groups in order of preference.
pub fn table() -> &'static [Resource] {
    static SERVED: LazyLock<Vec<Resource>> = LazyLock::new(|| {
        let served = |row: &&Resource| {
            let name = crate::apiserver::status::qualified(row.group, row.plural);
            !NOT_SERVED.contains(&&*name)
        };
        ALL.iter().filter(served).cloned().collect()
    });
    &SERVED
}

/// Every row there is, served or not.
pub const ALL: &[Resource] = &[
    core::small::BINDING,
    core::small::COMPONENTSTATUS,
    core::config::CONFIGMAP,
    core::small::ENDPOINTS,
    core::event::CORE,
    core::small::LIMITRANGE,
    core::namespace::ROW,
    core::node::ROW,
    core::storage::CLAIM,
    core::storage::VOLUME,
    core::pod::ROW,
    core::small::PODTEMPLATE,
    core::controller::ROW,
    core::small::RESOURCEQUOTA,
    core::config::SECRET,
    core::small::SERVICEACCOUNT,
    core::service::ROW,
    groups::apiregistration::ROW,
    groups::auth::SELF_SUBJECT,
    groups::auth::TOKEN,
    groups::auth::LOCAL_ACCESS,
    groups::auth::SELF_ACCESS,
    groups::auth::SELF_RULES,
    groups::auth::SUBJECT_ACCESS,
    apps::revision::ROW,
    apps::daemonset::ROW,
    apps::deployment::ROW,
    apps::replicaset::ROW,
    apps::statefulset::ROW,
    core::event::EVENTS,
    groups::autoscaling::V2,
    groups::autoscaling::V1,
    batch::cronjob::ROW,
    batch::job::ROW,
    groups::certificates::ROW,
    groups::networking::INGRESSCLASS,
    groups::networking::INGRESS,
    groups::networking::IPADDRESS,
    groups::networking::NETWORKPOLICY,
    groups::networking::SERVICECIDR,
    groups::policy::PDB,
    groups::rbac::CLUSTERROLEBINDING,
    groups::rbac::CLUSTERROLE,
    groups::rbac::ROLEBINDING,
    groups::rbac::ROLE,
    groups::storage::CSIDRIVER,
    groups::storage::CSINODE,
    groups::storage::CAPACITY,
    groups::storage::STORAGECLASS,
    groups::storage::ATTACHMENT,
    groups::storage::VOLUMEATTRIBUTESCLASS,
    groups::admissionregistration::MUTATING_POLICY,
    groups::admissionregistration::MUTATING_BINDING,
    groups::admissionregistration::MUTATING,
    groups::admissionregistration::VALIDATING_POLICY,
    groups::admissionregistration::VALIDATING_BINDING,
    groups::admissionregistration::VALIDATING,
    groups::apiextensions::DEFINITION,
    groups::scheduling::PRIORITYCLASS,
    groups::coordination::LEASE,
    groups::scheduling::RUNTIMECLASS,
    groups::discovery::ENDPOINTSLICE,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_sound() {
        let mut paths = BTreeSet::new();
        for row in ALL {
            assert!(
                paths.insert((row.group, row.version, row.plural)),
                "{} twice",
                row.plural
            );
            assert!(
                proto::schema().get(row.type_name).is_some(),
                "no schema type {}",
                row.type_name
            );
            // Neither empty objects nor nonsense make a row's functions fail.
            for object in [
                json!({}),
                json!({"metadata": {"name": "x"}, "spec": {}, "status": {}}),
                json!({"spec": [], "status": 3}),
            ] {
                let mut value = object.clone();
                (row.behaviour.default)(&mut value);
                let once = value.clone();
                (row.behaviour.default)(&mut value);
                assert_eq!(value, once, "{} defaults twice differently", row.kind);
                (row.behaviour.prepare_create)(&mut value);
                let mut causes = crate::apiserver::registry::Causes::default();
                (row.behaviour.validate)(&value, &mut causes);
                (row.behaviour.validate_update)(&value, &value, &mut causes);
                row.columns
                    .iter()
                    .for_each(|column| drop((column.cell)(&value)));
                row.fields
                    .iter()
                    .for_each(|field| drop((field.value)(&value)));
            }
        }
        for name in NOT_SERVED {
            assert!(
                ALL.iter()
                    .any(|row| crate::apiserver::status::qualified(row.group, row.plural) == *name),
                "{name}"
            );
        }
    }
}
