use serde_json::json;

use super::*;
use crate::apiserver::registry::{Conversion, PLAIN, ScalePaths, SpecialSubresource};

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

static EVICTION: SpecialSubresource = SpecialSubresource {
    name: "eviction",
    verbs: &["create"],
    group: "policy",
    version: "v1",
    kind: "Eviction",
};
static BINDING: SpecialSubresource = SpecialSubresource {
    name: "binding",
    verbs: &["create"],
    group: "",
    version: "v1",
    kind: "Binding",
};
static SCALE: ScalePaths = ScalePaths {
    spec_replicas: "spec.replicas",
    status_replicas: "status.replicas",
    selector: "spec.selector",
};

/// A row with what all tests need.
pub(crate) fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    type_name: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural,
        singular: "",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: ALL,
        subresources: &[],
        type_name,
        storage: plural,
        columns: &[],
        fields: &[],
        behaviour: PLAIN,
        convert: None,
        custom: None,
    }
}

/// Pods and Deployments with subresources, both versions of the autoscaler, a review.
pub(crate) fn table() -> Vec<Resource> {
    let pods = Resource {
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: const {
            &[
                Subresource::Special(&EVICTION),
                Subresource::Special(&BINDING),
                Subresource::Status,
            ]
        },
        ..row("", "v1", "Pod", "pods", "io.k8s.api.core.v1.Pod")
    };
    let deployments = Resource {
        singular: "deployment",
        subresources: const { &[Subresource::Status, Subresource::Scale(&SCALE)] },
        ..row(
            "apps",
            "v1",
            "Deployment",
            "deployments",
            "io.k8s.api.apps.v1.Deployment",
        )
    };
    let plural = "horizontalpodautoscalers";
    let kind = "HorizontalPodAutoscaler";
    let v1 = Resource {
        convert: Some(Conversion {
            to_stored: |_| {},
            from_stored: |_| {},
        }),
        ..row(
            "autoscaling",
            "v1",
            kind,
            plural,
            "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        )
    };
    let v2 = row(
        "autoscaling",
        "v2",
        kind,
        plural,
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    );
    let reviews = Resource {
        scope: Scope::Cluster,
        verbs: &["create"],
        ..row(
            "authentication.k8s.io",
            "v1",
            "TokenReview",
            "tokenreviews",
            "io.k8s.api.authentication.v1.TokenReview",
        )
    };
    vec![reviews, v1, v2, deployments, pods]
}

#[test]
fn groups_are_in_order_of_preference() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let list = api_group_list(&rows);
    let names: Vec<&str> = list["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|group| group["name"].as_str())
        .collect();
    assert_eq!(names, ["apps", "authentication.k8s.io", "autoscaling"]);
    let group = api_group(&rows, "autoscaling").expect("a known group");
    assert_eq!(
        group["preferredVersion"],
        json!({"groupVersion": "autoscaling/v2", "version": "v2"})
    );
    assert!(api_group(&rows, "example.com").is_none());
    assert!(api_resource_list(&rows, "apps", "v2").is_none());
}

#[test]
fn resources_and_subresources_are_listed() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let core = api_resource_list(&rows, "", "v1").expect("known");
    assert_eq!(core["groupVersion"], "v1");
    let resources = core["resources"].as_array().expect("a list");
    let names: Vec<&str> = resources
        .iter()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["pods", "pods/binding", "pods/eviction", "pods/status"]
    );
    assert_eq!(
        resources[0],
        json!({
            "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ALL,
            // As every Kubernetes server answers for pods.
            "shortNames": ["po"], "categories": ["all"], "storageVersionHash": "xPOwRZ+Yhw8="
        })
    );
    // Drain evicts only if it sees this group and version.
    assert_eq!(
        resources[2],
        json!({
            "name": "pods/eviction", "singularName": "", "namespaced": true, "kind": "Eviction",
            "group": "policy", "version": "v1", "verbs": ["create"]
        })
    );
    assert_eq!(resources[1].get("group"), None);
    let apps = api_resource_list(&rows, "apps", "v1").expect("known");
    assert_eq!(apps["resources"][1]["group"], "autoscaling");
    assert_eq!(apps["resources"][0]["storageVersionHash"], "8aSe+NMegvE=");
    // Both versions carry the stored version's hash; reviews are not stored.
    let hash = |group, version| {
        let list = api_resource_list(&rows, group, version).expect("known");
        list["resources"][0].get("storageVersionHash").cloned()
    };
    assert_eq!(hash("autoscaling", "v1"), hash("autoscaling", "v2"));
    assert_eq!(hash("autoscaling", "v2"), Some(json!("qwQve8ut294=")));
    assert_eq!(hash("authentication.k8s.io", "v1"), None);
}

#[test]
fn aggregated_documents() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let core = aggregated(&rows, true);
    assert_eq!(core["items"].as_array().map(Vec::len), Some(1));
    let pods = &core["items"][0]["versions"][0]["resources"][0];
    assert_eq!(pods["scope"], "Namespaced");
    assert_eq!(
        pods["responseKind"],
        json!({"group": "", "version": "v1", "kind": "Pod"})
    );
    assert_eq!(pods["subresources"][1]["subresource"], "eviction");
    assert_eq!(pods["subresources"][1]["responseKind"]["group"], "policy");
    let rest = aggregated(&rows, false);
    assert_eq!(rest["items"][0]["metadata"], json!({"name": "apps"}));
    assert_eq!(rest["items"][2]["versions"][0]["version"], "v2");
    assert_eq!(
        rest["items"][1]["versions"][0]["resources"][0]["scope"],
        "Cluster"
    );
}
