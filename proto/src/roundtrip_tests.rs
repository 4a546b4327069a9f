//! Objects through both codecs.

use serde_json::{Value, json};

use crate::{decode, encode, schema};

fn there_and_back(ty: &str, value: &Value) -> Value {
    let ty = schema().get(ty).unwrap();
    decode(ty, &encode(ty, value).unwrap()).unwrap()
}

#[test]
fn an_object_of_every_shape() {
    let pod = json!({
        "metadata": {"name": "a", "labels": {"x": ""}, "creationTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 0},
        "spec": {
            "containers": [{
                "name": "c", "image": "i", "resources": {"limits": {"memory": "1Gi"}},
                "ports": [{"containerPort": 80, "hostPort": 8080}],
                "livenessProbe": {"httpGet": {"port": "web"}, "initialDelaySeconds": 3},
                "securityContext": {"privileged": false, "runAsUser": 0},
                "env": [{"name": "E", "value": "v"}],
            }],
            "volumes": [{"name": "v", "configMap": {"name": "cm", "defaultMode": 420}}],
            "tolerations": [{"key": "k", "tolerationSeconds": -1}],
        },
        "status": {"phase": "Running"},
    });
    let mut back = there_and_back("io.k8s.api.core.v1.Pod", &pod);
    // Members without omitempty come back with their empty value.
    assert_eq!(
        back["spec"]["containers"][0]["resources"]["limits"]["memory"],
        "1Gi"
    );
    back["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .retain(|name, _| pod["spec"]["containers"][0].get(name).is_some());
    assert_eq!(back["spec"], pod["spec"]);
    assert_eq!(back["metadata"], pod["metadata"]);
    assert_eq!(back["status"], pod["status"]);
}

#[test]
fn bytes_numbers_times_and_named_lists() {
    let secret = json!({"metadata": {"name": "s"}, "data": {"k": "AAEC"}, "type": "Opaque"});
    assert_eq!(there_and_back("io.k8s.api.core.v1.Secret", &secret), secret);
    let lease = json!({"metadata": {}, "spec": {"renewTime": "2026-01-02T03:04:05.000006Z", "leaseDurationSeconds": 40}});
    assert_eq!(
        there_and_back("io.k8s.api.coordination.v1.Lease", &lease),
        lease
    );
    let review = json!({"metadata": {}, "spec": {"user": "u", "extra": {"scopes": ["a", "b"]}}, "status": {"allowed": false}});
    assert_eq!(
        there_and_back("io.k8s.api.authorization.v1.SubjectAccessReview", &review),
        review
    );
    let service = json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8080}]}, "status": {"loadBalancer": {}}});
    assert_eq!(
        there_and_back("io.k8s.api.core.v1.Service", &service),
        service
    );
}

#[test]
fn a_known_message() {
    // metadata (1) { name (1) "a" }, data (2) { key (1) "k", value (2) "v" }.
    let bytes = b"\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v";
    let ty = schema().get("io.k8s.api.core.v1.ConfigMap").unwrap();
    assert_eq!(
        decode(ty, bytes).unwrap(),
        json!({"metadata": {"name": "a"}, "data": {"k": "v"}})
    );
    assert!(decode(ty, b"\x0a\xff").is_err());
}
