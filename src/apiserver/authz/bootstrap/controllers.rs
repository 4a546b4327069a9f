//! Cluster roles of the controllers, each bound to a service account of its own in `kube-system`.

use super::{EVENTS, READ, Row, named, on};

/// What ours need more than the original's: they change one field with a patch where those write the
/// whole object, ask for a Lease before they call its node silent,
/// for a Node before another machine gets its name, whether that was removed, whose addresses a kubelet's certificate
/// is for, and approve that and the one of a node's proxy.
pub const OURS: &[(&str, &[Row])] = &[
    (
        "system:controller:certificate-controller",
        &[
            on("get list", "core", "nodes"),
            named("get", "core", "configmaps", "removed-nodes"),
            named(
                "approve",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kubelet-serving kubernetes.io/kube-apiserver-client",
            ),
        ],
    ),
    (
        "system:controller:deployment-controller",
        &[on("patch", "apps", "deployments")],
    ),
    (
        "system:controller:node-controller",
        &[on("get", "coordination.k8s.io", "leases")],
    ),
];

pub const ROLES: &[(&str, &[Row])] = &[
    (
        "system:controller:attachdetach-controller",
        &[
            on(
                "list watch",
                "core",
                "persistentvolumeclaims persistentvolumes",
            ),
            on(READ, "core", "nodes"),
            on("patch update", "core", "nodes/status"),
            on("list watch", "core", "pods"),
            EVENTS,
            on(
                "create delete get list watch",
                "storage.k8s.io",
                "volumeattachments",
            ),
            on(READ, "storage.k8s.io", "csidrivers csinodes"),
        ],
    ),
    (
        "system:controller:certificate-controller",
        &[
            on(
                "delete get list watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
            ),
            on(
                "update",
                "certificates.k8s.io",
                "certificatesigningrequests/approval certificatesigningrequests/status",
            ),
            named(
                "approve",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-client-kubelet",
            ),
            named(
                "sign",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/legacy-unknown kubernetes.io/kube-apiserver-client \
                 kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving",
            ),
            on("create", "authorization.k8s.io", "subjectaccessreviews"),
            EVENTS,
        ],
    ),
    (
        "system:controller:clusterrole-aggregation-controller",
        &[on(
            "escalate get list patch update watch",
            "rbac.authorization.k8s.io",
            "clusterroles",
        )],
    ),
    (
        "system:controller:cronjob-controller",
        &[
            on("get list update watch", "batch", "cronjobs"),
            on("create delete get list patch update watch", "batch", "jobs"),
            on("update", "batch", "cronjobs/finalizers cronjobs/status"),
            on("delete list watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:daemon-set-controller",
        &[
            on(READ, "apps extensions", "daemonsets"),
            on(
                "update",
                "apps extensions",
                "daemonsets/finalizers daemonsets/status",
            ),
            on("list watch", "core", "nodes"),
            on("create delete list patch watch", "core", "pods"),
            on("create", "core", "pods/binding"),
            on(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
            EVENTS,
        ],
    ),
    (
        "system:controller:deployment-controller",
        &[
            on("get list update watch", "apps extensions", "deployments"),
            on(
                "update",
                "apps extensions",
                "deployments/finalizers deployments/status",
            ),
            on(
                "create delete get list patch update watch",
                "apps extensions",
                "replicasets",
            ),
            on("get list update watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:device-taint-eviction-controller",
        &[
            on("delete get list watch", "core", "pods"),
            on("patch update", "core", "pods/status"),
            on(
                READ,
                "resource.k8s.io",
                "deviceclasses devicetaintrules resourceclaims resourceslices",
            ),
            on("patch update", "resource.k8s.io", "devicetaintrules/status"),
            EVENTS,
        ],
    ),
    (
        "system:controller:disruption-controller",
        &[
            on(READ, "apps extensions", "deployments replicasets"),
            on(READ, "core", "pods replicationcontrollers"),
            on(READ, "policy", "poddisruptionbudgets"),
            on(READ, "apps", "statefulsets"),
            on("update", "policy", "poddisruptionbudgets/status"),
            on("patch update", "core", "pods/status"),
            on("get", "*", "*/scale"),
            EVENTS,
        ],
    ),
    (
        "system:controller:endpoint-controller",
        &[
            on(READ, "core", "pods services"),
            on("create delete get list update watch", "core", "endpoints"),
            on("create", "core", "endpoints/restricted"),
            EVENTS,
        ],
    ),
    (
        "system:controller:endpointslice-controller",
        &[
            on(READ, "core", "nodes pods services"),
            on("update", "core", "services/finalizers"),
            on(
                "create delete get list update watch",
                "discovery.k8s.io",
                "endpointslices",
            ),
            EVENTS,
        ],
    ),
    (
        "system:controller:endpointslicemirroring-controller",
        &[
            on(READ, "core", "endpoints services"),
            on("update", "core", "endpoints/finalizers services/finalizers"),
            on(
                "create delete get list update watch",
                "discovery.k8s.io",
                "endpointslices",
            ),
            EVENTS,
        ],
    ),
    (
        "system:controller:ephemeral-volume-controller",
        &[
            on(READ, "core", "pods"),
            on("update", "core", "pods/finalizers"),
            on("create get list watch", "core", "persistentvolumeclaims"),
            EVENTS,
        ],
    ),
    (
        "system:controller:expand-controller",
        &[
            on("get list patch update watch", "core", "persistentvolumes"),
            on("patch update", "core", "persistentvolumeclaims/status"),
            on(READ, "core", "persistentvolumeclaims"),
            on("get", "core", "services"),
            EVENTS,
        ],
    ),
    (
        "system:controller:generic-garbage-collector",
        &[on("delete get list patch update watch", "*", "*"), EVENTS],
    ),
    (
        "system:controller:horizontal-pod-autoscaler",
        &[
            on(READ, "autoscaling", "horizontalpodautoscalers"),
            on("update", "autoscaling", "horizontalpodautoscalers/status"),
            on("get update", "*", "*/scale"),
            on("list watch", "core", "pods"),
            on("list watch", "metrics.k8s.io", "pods"),
            on(READ, "custom.metrics.k8s.io external.metrics.k8s.io", "*"),
            EVENTS,
        ],
    ),
    (
        "system:controller:job-controller",
        &[
            on("get list patch update watch", "batch", "jobs"),
            on("update", "batch", "jobs/finalizers jobs/status"),
            on("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:kube-apiserver-serving-clustertrustbundle-publisher",
        &[
            named(
                "attest",
                "certificates.k8s.io",
                "signers",
                "kubernetes.io/kube-apiserver-serving",
            ),
            on(
                "create delete list update watch",
                "certificates.k8s.io",
                "clustertrustbundles",
            ),
            EVENTS,
        ],
    ),
    (
        "system:controller:legacy-service-account-token-cleaner",
        &[
            named(
                "get",
                "core",
                "configmaps",
                "kube-apiserver-legacy-service-account-token-tracking",
            ),
            on("delete patch", "core", "secrets"),
        ],
    ),
    (
        // Ours: nodes remove the folders behind volumes that go.
        "system:controller:local-volumes",
        &[
            on("get list update watch", "core", "persistentvolumes"),
            on("list watch", "core", "nodes"),
            EVENTS,
        ],
    ),
    (
        "system:controller:namespace-controller",
        &[
            on("delete get list watch", "core", "namespaces"),
            on("update", "core", "namespaces/finalize namespaces/status"),
            on("delete deletecollection get list watch", "*", "*"),
        ],
    ),
    (
        "system:controller:node-controller",
        &[
            on("delete get list patch update watch", "core", "nodes"),
            on("patch update", "core", "nodes/status pods/status"),
            on("delete get list watch", "core", "pods"),
            on("list watch", "networking.k8s.io", "clustercidrs"),
            EVENTS,
        ],
    ),
    (
        "system:controller:persistent-volume-binder",
        &[
            on(
                "create delete get list update watch",
                "core",
                "persistentvolumes",
            ),
            on(
                "update",
                "core",
                "persistentvolumeclaims/status persistentvolumes/status",
            ),
            on("get list update watch", "core", "persistentvolumeclaims"),
            on("create delete get list watch", "core", "pods"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on("list watch", "core", "nodes"),
            on("watch", "core", "events"),
            on("get", "core", "services"),
            EVENTS,
        ],
    ),
    (
        "system:controller:pod-garbage-collector",
        &[
            on("delete list watch", "core", "pods"),
            on(READ, "core", "nodes"),
            on("patch", "core", "pods/status"),
        ],
    ),
    (
        "system:controller:podcertificaterequestcleaner",
        &[on(
            "delete get list watch",
            "certificates.k8s.io",
            "podcertificaterequests",
        )],
    ),
    (
        "system:controller:pv-protection-controller",
        &[
            on("get list update watch", "core", "persistentvolumes"),
            EVENTS,
        ],
    ),
    (
        "system:controller:pvc-protection-controller",
        &[
            on("get list update watch", "core", "persistentvolumeclaims"),
            on("update", "core", "persistentvolumeclaims/status"),
            on(READ, "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:replicaset-controller",
        &[
            on("get list update watch", "apps extensions", "replicasets"),
            on(
                "update",
                "apps extensions",
                "replicasets/finalizers replicasets/status",
            ),
            on("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:replication-controller",
        &[
            on("get list update watch", "core", "replicationcontrollers"),
            on(
                "update",
                "core",
                "replicationcontrollers/finalizers replicationcontrollers/status",
            ),
            on("create delete list patch watch", "core", "pods"),
            EVENTS,
        ],
    ),
    (
        "system:controller:resource-claim-controller",
        &[
            on(READ, "core", "pods"),
            on("update", "core", "pods/finalizers"),
            on(
                "create delete get list watch",
                "resource.k8s.io",
                "resourceclaims",
            ),
            on(
                READ,
                "resource.k8s.io",
                "deviceclasses resourceclaimtemplates",
            ),
            on(
                "patch update",
                "resource.k8s.io",
                "resourceclaims resourceclaims/status",
            ),
            on("patch update", "core", "pods/status"),
            EVENTS,
        ],
    ),
    (
        "system:controller:resourcequota-controller",
        &[
            on("list watch", "*", "*"),
            on("update", "core", "resourcequotas/status"),
            EVENTS,
        ],
    ),
    (
        "system:controller:root-ca-cert-publisher",
        &[on("create update", "core", "configmaps"), EVENTS],
    ),
    (
        "system:controller:route-controller",
        &[
            on("list watch", "core", "nodes"),
            on("patch", "core", "nodes/status"),
            EVENTS,
        ],
    ),
    (
        "system:controller:selinux-warning-controller",
        &[
            on(
                READ,
                "core",
                "persistentvolumeclaims persistentvolumes pods",
            ),
            on(READ, "storage.k8s.io", "csidrivers"),
            EVENTS,
        ],
    ),
    (
        "system:controller:service-account-controller",
        &[on("create", "core", "serviceaccounts"), EVENTS],
    ),
    (
        "system:controller:service-cidrs-controller",
        &[
            on(
                "get list patch update watch",
                "networking.k8s.io",
                "servicecidrs",
            ),
            on(
                "patch update",
                "networking.k8s.io",
                "servicecidrs/finalizers servicecidrs/status",
            ),
            on(READ, "networking.k8s.io", "ipaddresses"),
            EVENTS,
        ],
    ),
    (
        "system:controller:service-controller",
        &[
            on(READ, "core", "services"),
            on("patch update", "core", "services/status"),
            on("list watch", "core", "nodes"),
            EVENTS,
        ],
    ),
    // Ours: addresses of nodes for Services of the type LoadBalancer.
    (
        "system:controller:service-lb-controller",
        &[
            on(READ, "core", "nodes services"),
            on(READ, "discovery.k8s.io", "endpointslices"),
            on("patch", "core", "services services/status"),
            EVENTS,
        ],
    ),
    (
        "system:controller:statefulset-controller",
        &[
            on(READ, "apps", "statefulsets"),
            on(
                "update",
                "apps",
                "statefulsets/finalizers statefulsets/status",
            ),
            on("create delete get list patch update watch", "core", "pods"),
            on(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
            on(
                "create delete get list update watch",
                "core",
                "persistentvolumeclaims",
            ),
            on("update", "core", "pods/finalizers"),
            EVENTS,
        ],
    ),
    (
        "system:controller:storage-version-migrator-controller",
        &[
            on("create list patch watch", "*", "*"),
            on(
                "update",
                "storagemigration.k8s.io",
                "storageversionmigrations/status",
            ),
        ],
    ),
    (
        "system:controller:ttl-after-finished-controller",
        &[on("delete get list watch", "batch", "jobs"), EVENTS],
    ),
    (
        "system:controller:ttl-controller",
        &[on("list patch update watch", "core", "nodes"), EVENTS],
    ),
    (
        "system:controller:validatingadmissionpolicy-status-controller",
        &[
            on(
                READ,
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies",
            ),
            on(
                "get patch update",
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies/status",
            ),
            EVENTS,
        ],
    ),
    (
        "system:controller:volumeattributesclass-protection-controller",
        &[
            on(READ, "core", "persistentvolumeclaims persistentvolumes"),
            on(
                "get list update watch",
                "storage.k8s.io",
                "volumeattributesclasses",
            ),
            EVENTS,
        ],
    ),
];
