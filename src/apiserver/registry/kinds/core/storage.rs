//! Persistent volumes and claims.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::text_or_none,
        names,
        pods::resources,
        row::{self, AGE, column, wide},
        value::{at, default_text, default_to, has, keep, set, text, texts},
    },
};

const MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

pub const CLAIM: Resource = Resource {
    short_names: &["pvc"],
    subresources: &[Status],
    columns: &[
        column("Status", |claim| {
            match has(claim, "metadata.deletionTimestamp") {
                true => "Terminating".into(),
                false => row::cell(claim, "status.phase"),
            }
        }),
        column("Volume", |claim| row::cell(claim, "spec.volumeName")),
        column("Capacity", |claim| {
            row::cell(claim, "status.capacity.storage")
        }),
        column("Access Modes", |claim| {
            short_modes(claim, "status.accessModes").into()
        }),
        column("StorageClass", |claim| {
            row::cell(claim, "spec.storageClassName")
        }),
        column("VolumeAttributesClass", |claim| {
            match text(claim, "spec.volumeAttributesClassName") {
                "" => "<unset>".into(),
                class => class.into(),
            }
        }),
        AGE,
        wide("VolumeMode", |claim| row::cell(claim, "spec.volumeMode")),
    ],
    behaviour: Behaviour {
        default: |claim| {
            default_text(claim, "spec.volumeMode", "Filesystem");
            default_to(claim, "spec.resources", json!({}));
            default_text(claim, "status.phase", "Pending");
        },
        prepare_create: |claim| set(claim, "status", json!({"phase": "Pending"})),
        validate: |claim, causes| {
            names::object_name(claim, names::dns_subdomain, causes);
            claim_spec(&claim["spec"], "spec", causes);
        },
        validate_update: claim_update,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
        "io.k8s.api.core.v1.PersistentVolumeClaim",
    )
};

pub const VOLUME: Resource = Resource {
    short_names: &["pv"],
    subresources: &[Status],
    columns: &[
        column("Capacity", |volume| {
            row::cell(volume, "spec.capacity.storage")
        }),
        column("Access Modes", |volume| {
            short_modes(volume, "spec.accessModes").into()
        }),
        column("Reclaim Policy", |volume| {
            row::cell(volume, "spec.persistentVolumeReclaimPolicy")
        }),
        column("Status", |volume| {
            match has(volume, "metadata.deletionTimestamp") {
                true => "Terminating".into(),
                false => row::cell(volume, "status.phase"),
            }
        }),
        column("Claim", |volume| match text(volume, "spec.claimRef.name") {
            "" => "".into(),
            name => format!("{}/{name}", text(volume, "spec.claimRef.namespace")).into(),
        }),
        column("StorageClass", |volume| {
            row::cell(volume, "spec.storageClassName")
        }),
        column("VolumeAttributesClass", |volume| {
            match text(volume, "spec.volumeAttributesClassName") {
                "" => "<unset>".into(),
                class => class.into(),
            }
        }),
        column("Reason", |volume| row::cell(volume, "status.reason")),
        AGE,
        wide("VolumeMode", |volume| {
            text_or_none(volume, "spec.volumeMode")
        }),
    ],
    behaviour: Behaviour {
        default: |volume| {
            default_text(volume, "spec.persistentVolumeReclaimPolicy", "Retain");
            default_text(volume, "spec.volumeMode", "Filesystem");
            if has(volume, "spec.hostPath") {
                default_to(volume, "spec.hostPath.type", "");
            }
            default_text(volume, "status.phase", "Pending");
        },
        prepare_create: |volume| set(volume, "status", json!({"phase": "Pending"})),
        validate: |volume, causes| {
            names::object_name(volume, names::dns_subdomain, causes);
            if !has(volume, "spec.capacity.storage") {
                causes.required("spec.capacity", "");
            }
            modes(&volume["spec"], "spec", causes);
        },
        validate_update: |new, old, causes| {
            let source = |volume: &Value| {
                let mut spec = volume["spec"].clone();
                for own in [
                    "capacity",
                    "accessModes",
                    "claimRef",
                    "persistentVolumeReclaimPolicy",
                    "storageClassName",
                    "mountOptions",
                    "nodeAffinity",
                    "volumeMode",
                    "volumeAttributesClassName",
                ] {
                    set(&mut spec, own, Value::Null);
                }
                spec
            };
            if source(new) != source(old) {
                causes.forbidden(
                    "spec.persistentvolumesource",
                    "spec.persistentvolumesource is immutable after creation",
                );
            }
            if at(new, "spec.volumeMode") != at(old, "spec.volumeMode") {
                causes.invalid(
                    "spec.volumeMode",
                    at(new, "spec.volumeMode"),
                    "field is immutable",
                );
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        "",
        "v1",
        "PersistentVolume",
        "persistentvolumes",
        "persistentvolume",
        "io.k8s.api.core.v1.PersistentVolume",
    )
};

/// `RWO,ROX`: the modes as kubectl shortens them, in its own order.
fn short_modes(object: &Value, path: &str) -> String {
    let modes = texts(object, path);
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(mode, _)| modes.contains(mode))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

fn modes(spec: &Value, path: &str, causes: &mut Causes) {
    let modes = texts(spec, "accessModes");
    if modes.is_empty() {
        causes.required(
            format!("{path}.accessModes"),
            "at least 1 access mode is required",
        );
    }
    for mode in modes {
        if !MODES.contains(&mode) {
            causes.unsupported(format!("{path}.accessModes"), mode, &MODES);
        }
    }
}

/// Also of the claims in a StatefulSet.
pub fn claim_spec(spec: &Value, path: &str, causes: &mut Causes) {
    modes(spec, path, causes);
    resources::quantities(
        &spec["resources"],
        "requests",
        &format!("{path}.resources"),
        causes,
    );
    if text(spec, "resources.requests.storage").is_empty() {
        causes.required(format!("{path}.resources[storage]"), "");
    }
}

fn claim_update(new: &Value, old: &Value, causes: &mut Causes) {
    let mut wanted = new.clone();
    // Growth, binding, and the class before one is set, may change.
    for free in ["spec.resources", "spec.volumeAttributesClassName"] {
        keep(&mut wanted, old, free);
    }
    if text(old, "spec.volumeName").is_empty() {
        keep(&mut wanted, old, "spec.volumeName");
    }
    // The empty class is one too: none.
    if !has(old, "spec.storageClassName") {
        keep(&mut wanted, old, "spec.storageClassName");
    }
    if wanted["spec"] != old["spec"] {
        causes.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |claim: &Value| {
        proto::quantity::Quantity::parse(text(claim, "spec.resources.requests.storage"))
            .map(|size| size.value())
    };
    if let (Ok(new), Ok(old)) = (size(new), size(old))
        && new < old
    {
        causes.forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        );
    }
}
