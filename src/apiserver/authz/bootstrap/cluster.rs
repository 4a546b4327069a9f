//! Cluster roles for people, nodes and the control plane.

use super::{EVENTS, READ, READ_WRITE, Role, Row, Subjects, WRITE, named, on, paths, role};

pub const ROLES: &[Role] = &[
    role(
        "cluster-admin",
        &[
            on("*", "*", "*"),
            Row {
                verbs: "*",
                groups: "",
                resources: "",
                names: "",
                urls: "*",
            },
        ],
    ),
    Role {
        name: "admin",
        part_of: None,
        aggregated: true,
        rules: &[],
    },
    Role {
        name: "edit",
        part_of: Some("admin"),
        aggregated: true,
        rules: &[],
    },
    Role {
        name: "view",
        part_of: Some("edit"),
        aggregated: true,
        rules: &[],
    },
    Role {
        name: "system:aggregate-to-admin",
        part_of: Some("admin"),
        aggregated: false,
        rules: &[
            on(
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews",
            ),
            on(
                READ_WRITE,
                "rbac.authorization.k8s.io",
                "roles rolebindings",
            ),
        ],
    },
    Role {
        name: "system:aggregate-to-edit",
        part_of: Some("edit"),
        aggregated: false,
        rules: EDIT,
    },
    Role {
        name: "system:aggregate-to-view",
        part_of: Some("view"),
        aggregated: false,
        rules: VIEW,
    },
    role(
        "system:discovery",
        &[paths(
            "/livez /readyz /healthz /version /version/ /openapi /openapi/* /api /api/* /apis /apis/*",
        )],
    ),
    role(
        "system:public-info-viewer",
        &[paths("/livez /readyz /healthz /version /version/")],
    ),
    role(
        "system:monitoring",
        &[paths(
            "/metrics /metrics/slis /livez /livez/* /readyz /readyz/* /healthz /healthz/* /statusz /flagz",
        )],
    ),
    role(
        "system:basic-user",
        &[
            on(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews selfsubjectrulesreviews",
            ),
            on("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    role("system:node", NODE),
    role(
        "system:node-problem-detector",
        &[
            on("get", "core", "nodes"),
            on("patch", "core", "nodes/status"),
            EVENTS,
        ],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            on(READ, "core", "nodes"),
            on("proxy", "core", "nodes"),
            on(
                "*",
                "core",
                "nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/spec nodes/stats",
            ),
        ],
    ),
    role(
        "system:node-bootstrapper",
        &[on(
            "create get list watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        )],
    ),
    role(
        "system:node-proxier",
        &[
            on("list watch", "core", "services"),
            on(READ, "core", "nodes"),
            EVENTS,
            on("list watch", "discovery.k8s.io", "endpointslices"),
            on("list watch", "networking.k8s.io", "servicecidrs"),
        ],
    ),
    // Ours: who enforces policies on a node must know whom they select.
    role(
        "system:network-policy-enforcer",
        &[
            on("list watch", "core", "namespaces pods"),
            on("list watch", "networking.k8s.io", "networkpolicies"),
        ],
    ),
    role(
        "system:auth-delegator",
        &[
            on("create", "authentication.k8s.io", "tokenreviews"),
            on("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    role(
        "system:kube-aggregator",
        &[on(READ, "core", "services endpoints")],
    ),
    role("system:kube-controller-manager", CONTROLLER_MANAGER),
    role("system:kube-scheduler", SCHEDULER),
    role(
        "system:volume-scheduler",
        &[
            on("get list patch update watch", "core", "persistentvolumes"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on(
                "get list patch update watch",
                "core",
                "persistentvolumeclaims",
            ),
        ],
    ),
    role(
        "system:kube-dns",
        &[
            on("list watch", "core", "endpoints services"),
            on("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            on("create delete get list watch", "core", "persistentvolumes"),
            on("get list update watch", "core", "persistentvolumeclaims"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on("watch", "core", "events"),
            EVENTS,
        ],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[paths(
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    role(
        "system:cluster-trust-bundle-discovery",
        &[on(READ, "certificates.k8s.io", "clustertrustbundles")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[on(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/nodeclient",
        )],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[on(
            "create",
            "certificates.k8s.io",
            "certificatesigningrequests/selfnodeclient",
        )],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[approve("kubernetes.io/kube-apiserver-client")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[approve("kubernetes.io/kube-apiserver-client-kubelet")],
    ),
    role(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[approve("kubernetes.io/kubelet-serving")],
    ),
    role(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[approve("kubernetes.io/legacy-unknown")],
    ),
];

const fn approve(signer: &'static str) -> Row {
    named("approve", "certificates.k8s.io", "signers", signer)
}

/// Role and binding have one name.
pub const BINDINGS: &[(&str, Subjects)] = &[
    ("cluster-admin", &["group:system:masters"]),
    ("system:discovery", &["group:system:authenticated"]),
    ("system:basic-user", &["group:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["group:system:authenticated", "group:system:unauthenticated"],
    ),
    ("system:monitoring", &["group:system:monitoring"]),
    // Nodes are the node authorizer's; the binding is there for those who add to it.
    ("system:node", &[]),
    ("system:node-proxier", &["user:system:kube-proxy"]),
    (
        "system:network-policy-enforcer",
        &["user:system:kube-proxy"],
    ),
    (
        "system:kube-controller-manager",
        &["user:system:kube-controller-manager"],
    ),
    ("system:kube-dns", &["account:kube-system/kube-dns"]),
    ("system:kube-scheduler", &["user:system:kube-scheduler"]),
    ("system:volume-scheduler", &["user:system:kube-scheduler"]),
    (
        "system:service-account-issuer-discovery",
        &["group:system:serviceaccounts"],
    ),
    (
        "system:cluster-trust-bundle-discovery",
        &["group:system:serviceaccounts"],
    ),
    // Ours: a machine with a token may ask for a node's certificate and gets it; a node renews its own.
    ("system:node-bootstrapper", &["group:system:bootstrappers"]),
    (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &["group:system:bootstrappers"],
    ),
    (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &["group:system:nodes"],
    ),
];

const EDIT: &[Row] = &[
    on(
        READ,
        "core",
        "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
    ),
    on("impersonate", "core", "serviceaccounts"),
    on(
        WRITE,
        "core",
        "pods pods/attach pods/exec pods/portforward pods/proxy",
    ),
    on("create", "core", "pods/eviction"),
    on(
        WRITE,
        "core",
        "configmaps events persistentvolumeclaims replicationcontrollers \
         replicationcontrollers/scale secrets serviceaccounts services services/proxy",
    ),
    on("create", "core", "serviceaccounts/token"),
    on(
        WRITE,
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets \
         replicasets/scale statefulsets statefulsets/scale",
    ),
    on(WRITE, "autoscaling", "horizontalpodautoscalers"),
    on(WRITE, "batch", "cronjobs jobs"),
    on(
        WRITE,
        "extensions",
        "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies \
         replicasets replicasets/scale replicationcontrollers/scale",
    ),
    on(WRITE, "policy", "poddisruptionbudgets"),
    on(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    on(READ_WRITE, "coordination.k8s.io", "leases"),
    on(
        WRITE,
        "resource.k8s.io",
        "resourceclaims resourceclaimtemplates",
    ),
];

const VIEW: &[Row] = &[
    on(
        READ,
        "core",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods \
         replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
    ),
    on(
        READ,
        "core",
        "bindings events limitranges namespaces/status pods/log pods/status \
         replicationcontrollers/status resourcequotas resourcequotas/status",
    ),
    on(READ, "core", "namespaces"),
    on(READ, "discovery.k8s.io", "endpointslices"),
    on(
        READ,
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale \
         deployments/status replicasets replicasets/scale replicasets/status statefulsets \
         statefulsets/scale statefulsets/status",
    ),
    on(
        READ,
        "autoscaling",
        "horizontalpodautoscalers horizontalpodautoscalers/status",
    ),
    on(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    on(
        READ,
        "extensions",
        "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses \
         ingresses/status networkpolicies replicasets replicasets/scale replicasets/status \
         replicationcontrollers/scale",
    ),
    on(
        READ,
        "policy",
        "poddisruptionbudgets poddisruptionbudgets/status",
    ),
    on(
        READ,
        "networking.k8s.io",
        "ingresses ingresses/status networkpolicies",
    ),
    on(
        READ,
        "resource.k8s.io",
        "resourceclaims resourceclaims/status resourceclaimtemplates",
    ),
];

pub const NODE: &[Row] = &[
    on("create", "authentication.k8s.io", "tokenreviews"),
    on(
        "create",
        "authorization.k8s.io",
        "localsubjectaccessreviews subjectaccessreviews",
    ),
    on(READ, "core", "services"),
    on("create get list watch", "core", "nodes"),
    on("patch update", "core", "nodes nodes/status"),
    EVENTS,
    on(READ, "core", "pods"),
    on("create delete", "core", "pods"),
    on("patch update", "core", "pods/status"),
    on("create", "core", "pods/eviction"),
    on(READ, "core", "configmaps secrets"),
    on("get", "core", "persistentvolumeclaims persistentvolumes"),
    on("get patch update", "core", "persistentvolumeclaims/status"),
    on("get", "core", "endpoints"),
    on("get", "core", "serviceaccounts"),
    on("create", "core", "serviceaccounts/token"),
    on(
        "create get list watch",
        "certificates.k8s.io",
        "certificatesigningrequests",
    ),
    on(READ, "certificates.k8s.io", "clustertrustbundles"),
    on(
        "create get list watch",
        "certificates.k8s.io",
        "podcertificaterequests",
    ),
    on(
        "create delete get patch update",
        "coordination.k8s.io",
        "leases",
    ),
    on("get", "storage.k8s.io", "volumeattachments"),
    on(READ, "storage.k8s.io", "csidrivers"),
    on(
        "create delete get patch update",
        "storage.k8s.io",
        "csinodes",
    ),
    on(READ, "node.k8s.io", "runtimeclasses"),
    on("get", "resource.k8s.io", "resourceclaims"),
    on(READ, "resource.k8s.io", "deviceclasses"),
    on(
        "create delete deletecollection get list patch update watch",
        "resource.k8s.io",
        "resourceslices",
    ),
];

const CONTROLLER_MANAGER: &[Row] = &[
    EVENTS,
    on("create", "coordination.k8s.io", "leases"),
    named(
        "get update",
        "coordination.k8s.io",
        "leases",
        "kube-controller-manager",
    ),
    on("create", "core", "secrets serviceaccounts"),
    on("delete", "core", "secrets"),
    on(
        "get",
        "core",
        "configmaps namespaces secrets serviceaccounts",
    ),
    on("update", "core", "secrets serviceaccounts"),
    on("create", "authentication.k8s.io", "tokenreviews"),
    on("create", "authorization.k8s.io", "subjectaccessreviews"),
    on("list watch", "*", "*"),
    on("create", "core", "serviceaccounts/token"),
];

const SCHEDULER: &[Row] = &[
    EVENTS,
    on("create", "coordination.k8s.io", "leases"),
    named(
        "get list update watch",
        "coordination.k8s.io",
        "leases",
        "kube-scheduler",
    ),
    on(READ, "core", "nodes"),
    on("delete get list watch", "core", "pods"),
    on("create", "core", "bindings pods/binding"),
    on("patch update", "core", "pods/status"),
    on(
        READ,
        "core",
        "namespaces persistentvolumeclaims persistentvolumes replicationcontrollers services",
    ),
    on(READ, "apps extensions", "replicasets"),
    on(READ, "apps", "statefulsets"),
    on(READ, "policy", "poddisruptionbudgets"),
    on("create", "authentication.k8s.io", "tokenreviews"),
    on("create", "authorization.k8s.io", "subjectaccessreviews"),
    on(
        READ,
        "storage.k8s.io",
        "csidrivers csinodes csistoragecapacities volumeattachments",
    ),
    on(
        READ,
        "resource.k8s.io",
        "deviceclasses devicetaintrules resourceclaims resourceslices",
    ),
    on(
        "patch update",
        "resource.k8s.io",
        "resourceclaims resourceclaims/status",
    ),
    on("patch update", "core", "pods/finalizers"),
];
