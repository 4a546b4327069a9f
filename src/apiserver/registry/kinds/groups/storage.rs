//! Storage classes, attachments and CSI drivers.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource, StatusMetadata,
    Subresource::Status,
    kinds::{
        cells::{len, text_or_none},
        names,
        row::{self, AGE, column, count},
        value::{at, default_text, default_to, flag, items, set, text, texts},
    },
};

const GROUP: &str = "storage.k8s.io";

pub const STORAGECLASS: Resource = Resource {
    short_names: &["sc"],
    columns: &[
        column("Provisioner", |class| row::cell(class, "provisioner")),
        column("ReclaimPolicy", |class| row::cell(class, "reclaimPolicy")),
        column("VolumeBindingMode", |class| {
            row::cell(class, "volumeBindingMode")
        }),
        column("AllowVolumeExpansion", |class| {
            flag(class, "allowVolumeExpansion").into()
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: |class| {
            default_text(class, "reclaimPolicy", "Delete");
            default_text(class, "volumeBindingMode", "Immediate");
        },
        validate: |class, causes| {
            names::object_name(class, names::dns_subdomain, causes);
            if text(class, "provisioner").is_empty() {
                causes.required("provisioner", "");
            }
            for (field, known) in [
                ("reclaimPolicy", ["Delete", "Retain"]),
                ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"]),
            ] {
                if !known.contains(&text(class, field)) {
                    causes.unsupported(field, text(class, field), &known);
                }
            }
        },
        validate_update: |new, old, causes| {
            for field in [
                "parameters",
                "provisioner",
                "reclaimPolicy",
                "volumeBindingMode",
            ] {
                if at(new, field) != at(old, field) {
                    causes.forbidden(field, "updates to this field are forbidden.");
                }
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "StorageClass",
        "storageclasses",
        "storageclass",
        "io.k8s.api.storage.v1.StorageClass",
    )
};

pub const ATTACHMENT: Resource = Resource {
    subresources: &[Status],
    columns: &[
        column("Attacher", |attachment| {
            row::cell(attachment, "spec.attacher")
        }),
        column("PV", |attachment| {
            row::cell(attachment, "spec.source.persistentVolumeName")
        }),
        column("Node", |attachment| row::cell(attachment, "spec.nodeName")),
        column("Attached", |attachment| {
            flag(attachment, "status.attached").into()
        }),
        AGE,
    ],
    behaviour: Behaviour {
        status_metadata: StatusMetadata::Kept,
        prepare_create: |attachment| set(attachment, "status", json!({"attached": false})),
        validate: |attachment, causes| {
            names::object_name(attachment, names::dns_subdomain, causes);
            for field in ["attacher", "nodeName"] {
                if text(&attachment["spec"], field).is_empty() {
                    causes.required(format!("spec.{field}"), "");
                }
            }
        },
        validate_update: |new, old, causes| {
            if new["spec"] != old["spec"] {
                causes.invalid("spec", &new["spec"], "field is immutable");
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "VolumeAttachment",
        "volumeattachments",
        "volumeattachment",
        "io.k8s.api.storage.v1.VolumeAttachment",
    )
};

pub const CSINODE: Resource = Resource {
    columns: &[
        count("Drivers", |node| len(node, "spec.drivers").into()),
        AGE,
    ],
    behaviour: Behaviour {
        default: |node| default_to(node, "spec.drivers", json!([])),
        validate: |node, causes| {
            names::object_name(node, names::dns_subdomain, causes);
            for (index, driver) in items(node, "spec.drivers").iter().enumerate() {
                for field in ["name", "nodeID"] {
                    if text(driver, field).is_empty() {
                        causes.required(format!("spec.drivers[{index}].{field}"), "");
                    }
                }
            }
        },
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "CSINode",
        "csinodes",
        "csinode",
        "io.k8s.api.storage.v1.CSINode",
    )
};

/// How much room a driver has where; what schedulers ask before a volume exists.
pub const CAPACITY: Resource = Resource {
    columns: &[
        column("StorageClassName", |capacity| {
            row::cell(capacity, "storageClassName")
        }),
        column("Capacity", |capacity| row::cell(capacity, "capacity")),
        AGE,
    ],
    behaviour: Behaviour {
        validate: |capacity, causes| {
            names::object_name(capacity, names::dns_subdomain, causes);
            let class = text(capacity, "storageClassName");
            names::report(
                names::dns_subdomain(class),
                class,
                "storageClassName",
                causes,
            );
            for field in ["capacity", "maximumVolumeSize"] {
                let quantity = text(capacity, field);
                let fine = proto::quantity::Quantity::parse(quantity)
                    .is_ok_and(|quantity| quantity.value() >= 0);
                if !quantity.is_empty() && !fine {
                    causes.invalid(field, quantity, "must be greater than or equal to 0");
                }
            }
        },
        validate_update: |new, old, causes| {
            for field in ["nodeTopology", "storageClassName"] {
                if at(new, field) != at(old, field) {
                    causes.invalid(field, at(new, field), "field is immutable");
                }
            }
        },
        ..PLAIN
    },
    ..row::namespaced(
        GROUP,
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        "csistoragecapacity",
        "io.k8s.api.storage.v1.CSIStorageCapacity",
    )
};

pub const CSIDRIVER: Resource = Resource {
    columns: &[
        column("AttachRequired", |driver| {
            flag(driver, "spec.attachRequired").into()
        }),
        column("PodInfoOnMount", |driver| {
            flag(driver, "spec.podInfoOnMount").into()
        }),
        column("StorageCapacity", |driver| {
            flag(driver, "spec.storageCapacity").into()
        }),
        column("TokenRequests", |driver| {
            let audiences: Vec<&str> = items(driver, "spec.tokenRequests")
                .iter()
                .map(|token| text(token, "audience"))
                .collect();
            if audiences.is_empty() {
                "<unset>".into()
            } else {
                audiences.join(",").into()
            }
        }),
        column("RequiresRepublish", |driver| {
            flag(driver, "spec.requiresRepublish").into()
        }),
        column("Modes", |driver| {
            texts(driver, "spec.volumeLifecycleModes").join(",").into()
        }),
        AGE,
    ],
    behaviour: Behaviour {
        default: driver_default,
        validate: |driver, causes| names::object_name(driver, names::dns_subdomain, causes),
        validate_update: |new, old, causes| {
            for field in ["attachRequired", "volumeLifecycleModes"] {
                if new["spec"][field] != old["spec"][field] {
                    causes.invalid(
                        format!("spec.{field}"),
                        &new["spec"][field],
                        "field is immutable",
                    );
                }
            }
        },
        generation: true,
        ..PLAIN
    },
    ..row::cluster(
        GROUP,
        "v1",
        "CSIDriver",
        "csidrivers",
        "csidriver",
        "io.k8s.api.storage.v1.CSIDriver",
    )
};

pub const VOLUMEATTRIBUTESCLASS: Resource = Resource {
    short_names: &["vac"],
    columns: &[
        column("DriverName", |class| text_or_none(class, "driverName")),
        AGE,
    ],
    ..row::cluster(
        GROUP,
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        "io.k8s.api.storage.v1.VolumeAttributesClass",
    )
};

fn driver_default(driver: &mut Value) {
    for (field, value) in [
        ("attachRequired", json!(true)),
        ("podInfoOnMount", json!(false)),
        ("storageCapacity", json!(false)),
        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        ("volumeLifecycleModes", json!(["Persistent"])),
        ("requiresRepublish", json!(false)),
        ("seLinuxMount", json!(false)),
    ] {
        default_to(driver, &format!("spec.{field}"), value);
    }
}
