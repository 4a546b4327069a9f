//! Roles inside `kube-system` and `kube-public`.

use super::{EVENTS, READ, Row, Subjects, named, on};

const SYSTEM: &str = "kube-system";
const PUBLIC: &str = "kube-public";

/// Namespace, name, rules.
pub const ROLES: &[(&str, &str, &[Row])] = &[
    (
        SYSTEM,
        "extension-apiserver-authentication-reader",
        &[named(
            READ,
            "core",
            "configmaps",
            "extension-apiserver-authentication",
        )],
    ),
    (
        SYSTEM,
        "system:controller:bootstrap-signer",
        &[on(READ, "core", "secrets")],
    ),
    (
        SYSTEM,
        "system:controller:cloud-provider",
        &[on("create get list watch", "core", "configmaps")],
    ),
    (
        SYSTEM,
        "system:controller:token-cleaner",
        &[on("delete get list watch", "core", "secrets"), EVENTS],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        &[
            on("watch", "core", "configmaps"),
            named(
                "get update",
                "core",
                "configmaps",
                "kube-controller-manager",
            ),
        ],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        &[
            on("watch", "core", "configmaps"),
            named("get update", "core", "configmaps", "kube-scheduler"),
        ],
    ),
    // Ours: what every node must know of the pods' network.
    (
        SYSTEM,
        "vetch:pod-network-reader",
        &[named(READ, "core", "configmaps", "pod-network")],
    ),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        &[
            on(READ, "core", "configmaps"),
            named("update", "core", "configmaps", "cluster-info"),
            EVENTS,
        ],
    ),
    // Ours: `cluster-info` is made by its signer, and read by machines that want to join.
    (
        PUBLIC,
        "vetch:cluster-info-publisher",
        &[on("create", "core", "configmaps")],
    ),
    (
        PUBLIC,
        "vetch:cluster-info-reader",
        &[named("get", "core", "configmaps", "cluster-info")],
    ),
];

/// Namespace, name, role, subjects.
pub const BINDINGS: &[(&str, &str, &str, Subjects)] = &[
    (
        SYSTEM,
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &[
            "user:system:kube-controller-manager",
            "user:system:kube-scheduler",
        ],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &[
            "user:system:kube-controller-manager",
            "account:kube-system/kube-controller-manager",
        ],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &[
            "user:system:kube-scheduler",
            "account:kube-system/kube-scheduler",
        ],
    ),
    (
        SYSTEM,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["account:kube-system/bootstrap-signer"],
    ),
    (
        SYSTEM,
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &["account:kube-system/cloud-provider"],
    ),
    (
        SYSTEM,
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &["account:kube-system/token-cleaner"],
    ),
    (
        SYSTEM,
        "vetch:pod-network-reader",
        "vetch:pod-network-reader",
        &["user:system:kube-proxy"],
    ),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["account:kube-system/bootstrap-signer"],
    ),
    (
        PUBLIC,
        "vetch:cluster-info-publisher",
        "vetch:cluster-info-publisher",
        &["account:kube-system/bootstrap-signer"],
    ),
    (
        PUBLIC,
        "vetch:cluster-info-reader",
        "vetch:cluster-info-reader",
        &["group:system:unauthenticated", "group:system:authenticated"],
    ),
];
