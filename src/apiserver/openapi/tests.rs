use std::collections::BTreeSet;

use super::*;
use crate::apiserver::{discovery::tests::table, registry::Resource};

/// Every `$ref` in a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(name)) = map.get("$ref") {
                found.insert(name.clone());
            }
            map.values().for_each(|inner| references(inner, found));
        }
        Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

fn assert_closed(document: &Value, prefix: &str, schemas: &Value) {
    let mut found = BTreeSet::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let name = reference.strip_prefix(prefix).expect("a local reference");
        assert!(
            schemas.get(name).is_some(),
            "{name} is referred to and missing"
        );
    }
}

#[test]
fn v3_has_what_kubectl_reads() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let document = v3(&rows, "apps", "v1");
    let schemas = &document["components"]["schemas"];
    assert_closed(&document, "#/components/schemas/", schemas);
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let gvk = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["tags"], json!(["apps_v1"]));
    let parameters = patch["parameters"].as_array().expect("a list");
    assert!(
        parameters
            .iter()
            .any(|one| one["name"] == "fieldValidation" && one["in"] == "query")
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    assert!(document["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
    assert_eq!(
        scale["get"]["x-kubernetes-group-version-kind"]["group"],
        "autoscaling"
    );
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));
    let list = &schemas["io.k8s.api.apps.v1.DeploymentList"];
    assert_eq!(
        list["x-kubernetes-group-version-kind"][0]["kind"],
        "DeploymentList"
    );
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        containers,
        &json!({
            "type": "array",
            "items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-merge-key": "name",
            "x-kubernetes-patch-strategy": "merge",
        })
    );
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(strategy["allOf"].as_array().map(Vec::len), Some(1));
}

#[test]
fn hashes_follow_the_rows() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let index = v3_index(&rows);
    let url = index["paths"]["api/v1"]["serverRelativeURL"]
        .as_str()
        .expect("a URL");
    let hash = v3_hash(&rows, "", "v1");
    assert_eq!(url, format!("/openapi/v3/api/v1?hash={hash}"));
    assert!(index["paths"]["apis/autoscaling/v2"].is_object());
    let changed = Resource {
        verbs: &["get"],
        ..table[4].clone()
    };
    assert_ne!(v3_hash(&[&changed], "", "v1"), hash);
}

#[test]
fn v2_and_its_protobuf() {
    let table = table();
    let rows: Vec<&Resource> = table.iter().collect();
    let document = v2(&rows);
    assert_closed(&document, "#/definitions/", &document["definitions"]);
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["parameters"][0]["in"], "body");
    let eviction =
        &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["post"];
    assert_eq!(
        eviction["parameters"][0]["schema"]["$ref"],
        "#/definitions/io.k8s.api.policy.v1.Eviction"
    );
    let small = json!({
        "swagger": "2.0", "info": {"title": "T", "version": "1"},
        "paths": {},
        "definitions": {"D": {"type": "object", "properties": {"p": {"$ref": "#/x"}}, "x-k": [1]}},
    });
    let bytes = v2_protobuf(&small);
    let mut want = b"\x0a\x032.0\x12\x06\x0a\x01T\x12\x011\x42\x00".to_vec();
    // definitions{NamedSchema{"D", Schema{type{"object"}, properties{NamedSchema{"p"...}}, x-k}}}
    want.extend(b"\x4a\x31\x0a\x2f\x0a\x01D\x12\x2a");
    want.extend(b"\xb2\x01\x08\x0a\x06object");
    want.extend(b"\xca\x01\x0c\x0a\x0a\x0a\x01p\x12\x05\x0a\x03#/x");
    want.extend(b"\xfa\x01\x0d\x0a\x03x-k\x12\x06\x12\x04[1]\n");
    assert_eq!(bytes, want);
    assert!(v2_protobuf(&document).len() > 10_000);
}

#[test]
fn any_json_value_is_of_no_type() {
    let row = crate::apiserver::registry::table::find(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
    );
    let rows = [row.expect("served")];
    let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
    for schemas in [
        &v2(&rows)["definitions"],
        &v3(&rows, "apiextensions.k8s.io", "v1")["components"]["schemas"],
    ] {
        let members = schemas[name].as_object().expect("it is referred to");
        assert_eq!(members.keys().collect::<Vec<_>>(), ["description"]);
    }
}
