use serde_json::json;

use super::*;

fn deployment(spec: Value) -> Value {
    json!({"spec": {"template": {"spec": spec}}})
}

fn merge(original: &Value, patch: &Value) -> Result<Value, Error> {
    let ty = crate::schema()
        .get("io.k8s.api.apps.v1.Deployment")
        .expect("exists");
    strategic_merge(ty, original, patch.clone())
}

#[test]
fn lists_merge_by_key_and_directives_are_carried_out() {
    let c = |name: &str, image: &str| json!({"name": name, "image": image});
    let rows = [
        (
            "merge by name",
            json!({"containers": [c("a", "1"), c("b", "1")]}),
            json!({"containers": [c("b", "2"), c("z", "1")]}),
            json!({"containers": [c("a", "1"), c("b", "2"), c("z", "1")]}),
        ),
        (
            "delete an element",
            json!({"containers": [c("a", "1"), c("b", "1")]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [c("b", "1")]}),
        ),
        (
            "replace the whole list",
            json!({"containers": [c("a", "1"), c("b", "1")]}),
            json!({"containers": [{"$patch": "replace"}, c("z", "1")]}),
            json!({"containers": [c("z", "1")]}),
        ),
        (
            "by one in which two have the same key",
            json!({"containers": [c("a", "1"), c("b", "1")]}),
            json!({"containers": [c("z", "1"), c("z", "2"), {"$patch": "replace"}]}),
            json!({"containers": [c("z", "1"), c("z", "2")]}),
        ),
        (
            "order without contents",
            json!({"containers": [c("a", "1"), c("b", "1"), c("s", "1")]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [c("b", "1"), c("a", "1"), c("s", "1")]}),
        ),
        (
            "order with contents, server-only kept",
            json!({"containers": [c("s", "1"), c("a", "1"), c("b", "1")]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
                "containers": [c("n", "1"), c("a", "2")]}),
            json!({"containers": [c("s", "1"), c("b", "1"), c("n", "1"), c("a", "2")]}),
        ),
        (
            "two mounts of one volume are two (the key is mountPath); as upstream, the new one comes first",
            json!({"containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/1"}]}]}),
            json!({"containers": [{"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/2"}]}]}),
            json!({"containers": [{"name": "a", "volumeMounts":
            [{"name": "v", "mountPath": "/2"}, {"name": "v", "mountPath": "/1"}]}]}),
        ),
        (
            "retainKeys clears the other volume source",
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        ),
        (
            "atomic lists are replaced, null deletes",
            json!({"tolerations": [{"key": "a"}], "nodeSelector": {"a": "1", "b": "1"}, "hostname": "h"}),
            json!({"tolerations": [{"key": "b"}], "nodeSelector": {"a": null}, "hostname": null}),
            json!({"tolerations": [{"key": "b"}], "nodeSelector": {"b": "1"}}),
        ),
        (
            "replace and delete a map",
            json!({"nodeSelector": {"a": "1"}, "securityContext": {"runAsUser": 1}}),
            json!({"nodeSelector": {"$patch": "replace", "b": "1"}, "securityContext": {"$patch": "delete"}}),
            json!({"nodeSelector": {"b": "1"}, "securityContext": {}}),
        ),
        (
            "a new value carries neither nulls nor directives",
            json!({}),
            json!({"securityContext": {"runAsUser": null, "runAsGroup": 1},
                "containers": [c("a", "1"), {"name": "b", "$patch": "delete"}]}),
            json!({"securityContext": {"runAsGroup": 1}, "containers": [c("a", "1")]}),
        ),
    ];
    for (what, original, patch, want) in rows {
        let merged = merge(&deployment(original), &deployment(patch)).expect(what);
        assert_eq!(merged, deployment(want), "{what}");
    }
}

#[test]
fn scalar_lists_merge_as_sets() {
    let original = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    for (patch, want) in [
        (
            json!({"metadata": {"finalizers": ["d", "a"]}}),
            json!(["d", "a", "b", "c"]),
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}}),
            json!(["a", "c"]),
        ),
        (
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "a", "d"], "finalizers": ["d"]}}),
            json!(["b", "c", "a", "d"]),
        ),
    ] {
        let merged = merge(&original, &patch).expect("merges");
        assert_eq!(merged["metadata"]["finalizers"], want, "{patch}");
    }
}

#[test]
fn refused_patches() {
    let original = deployment(
        json!({"containers": [{"name": "a"}, {"name": "b"}], "volumes": [{"name": "v"}]}),
    );
    for (patch, fault) in [
        (json!({"containers": [{"image": "x"}]}), PatchFault::Content),
        (
            json!({"containers": [{"name": "a", "$patch": "bogus"}]}),
            PatchFault::Content,
        ),
        (json!({"containers": ["x"]}), PatchFault::Content),
        (
            json!({"$setElementOrder/containers": "x"}),
            PatchFault::Format,
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "a"}, {"name": "b"}]}),
            PatchFault::Format,
        ),
        (
            json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "emptyDir": {}}]}),
            PatchFault::Format,
        ),
        (json!({"$deleteFromPrimitiveList/x": 1}), PatchFault::Format),
    ] {
        match merge(&original, &deployment(patch.clone())) {
            Err(Error::Patch { fault: found, .. }) => assert_eq!(found, fault, "{patch}"),
            other => panic!("{patch}: {other:?}"),
        }
    }
}
