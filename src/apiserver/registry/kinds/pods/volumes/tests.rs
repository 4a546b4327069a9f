use serde_json::json;

use super::*;

fn said(volumes: Value) -> Vec<String> {
    let mut causes = Causes::default();
    validate(&json!({ "volumes": volumes }), "s", &mut causes);
    let causes = causes.0.iter();
    causes
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

/// Of one source alone: what is said below its volume.
fn of(source: Value) -> String {
    let mut volume = json!({"name": "v"});
    json_patch::merge(&mut volume, &source);
    let said = said(json!([volume]));
    let below = said
        .iter()
        .map(|one| one.strip_prefix("s.volumes[0]").unwrap_or(one));
    below.collect::<Vec<_>>().join("; ")
}

#[test]
fn names_and_kinds() {
    assert_eq!(
        said(json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}])),
        ["s.volumes[1].name: Duplicate value: \"a\""]
    );
    assert_eq!(
        said(json!([{"emptyDir": {}}])),
        ["s.volumes[0].name: Required value"]
    );
    assert_eq!(
        of(json!({})),
        ": Required value: must specify a volume type"
    );
    assert_eq!(
        of(
            json!({"image": {"reference": "a", "pullPolicy": "Always"}, "emptyDir": {}, "secret": {}})
        ),
        ".secret: Forbidden: may not specify more than 1 volume type; .image: Forbidden: may not specify more than 1 volume type"
    );
}

#[test]
fn sources_that_are_fine() {
    let token = json!({"path": "token", "expirationSeconds": 600});
    for source in [
        json!({"emptyDir": {"sizeLimit": "1Gi", "medium": "Memory"}}),
        json!({"hostPath": {"path": "/a..b/c", "type": ""}}),
        json!({"gitRepo": {"repository": "r", "directory": "a/b"}}),
        json!({"gcePersistentDisk": {"pdName": "d", "partition": 255}}),
        json!({"nfs": {"server": "s", "path": "/p"}}),
        json!({"iscsi": {"targetPortal": "127.0.0.1", "iqn": "iqn.2015-02.example.com:test", "lun": 1}}),
        json!({"iscsi": {"targetPortal": "p", "iqn": "eui.0123456789ABCDEF"}}),
        json!({"iscsi": {"targetPortal": "p", "iqn": "naa.62004567BA64678D0123456789ABCDEF"}}),
        json!({"flocker": {"datasetUUID": "u"}}),
        json!({"rbd": {"monitors": ["m"], "image": "i"}}),
        json!({"quobyte": {"registry": "a:1,[::1]:2", "volume": "v"}}),
        json!({"fc": {"targetWWNs": ["w"], "lun": 0}}),
        json!({"fc": {"wwids": ["w"]}}),
        json!({"flexVolume": {"driver": "d", "options": {"a.b/c": "x", "notk8s.io/x": "y"}}}),
        json!({"azureDisk": {"diskName": "d", "diskURI": "https://b/vhds/b.vhd", "kind": "Shared", "cachingMode": "None"}}),
        json!({"storageos": {"volumeName": "v", "volumeNamespace": "n"}}),
        json!({"csi": {"driver": "Example.com", "nodePublishSecretRef": {"name": "s"}}}),
        json!({"secret": {"secretName": "s", "defaultMode": 511, "items": [{"key": "k", "path": "a..b", "mode": 0}]}}),
        json!({"configMap": {"name": "c", "optional": true}}),
        json!({"downwardAPI": {"items": [
            {"path": "a", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}},
            {"path": "b", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['Example.com/Key']"}},
            {"path": "c", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}}]}}),
        json!({"projected": {"sources": [{"serviceAccountToken": token}, {"configMap": {"name": "c"}},
            {"clusterTrustBundle": {"signerName": "example.com/s", "path": "ca"}},
            {"podCertificate": {"signerName": "example.com/s", "keyType": "ED25519", "keyPath": "k"}}]}}),
        json!({"projected": {"sources": []}}),
        json!({"ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}),
        json!({"image": {"reference": "i", "pullPolicy": "IfNotPresent"}}),
    ] {
        assert_eq!(of(source.clone()), "", "{source}");
    }
}

#[test]
fn what_sources_miss() {
    for (kind, missed) in [
        ("gitRepo", "repository"),
        ("gcePersistentDisk", "pdName"),
        ("awsElasticBlockStore", "volumeID"),
        ("secret", "secretName"),
        ("iscsi", "targetPortal iqn"),
        ("glusterfs", "endpoints path"),
        ("persistentVolumeClaim", "claimName"),
        ("rbd", "monitors image"),
        ("cinder", "volumeID"),
        ("cephfs", "monitors"),
        ("flexVolume", "driver"),
        ("configMap", "name"),
        ("azureFile", "secretName shareName"),
        ("vsphereVolume", "volumePath"),
        ("photonPersistentDisk", "pdID"),
        ("portworxVolume", "volumeID"),
        ("azureDisk", "diskName diskURI"),
        ("storageos", "volumeName"),
        ("scaleIO", "gateway system volumeName"),
        ("csi", "driver"),
        ("hostPath", "path"),
    ] {
        let own = match kind {
            "gcePersistentDisk" => "persistentDisk",
            kind => kind,
        };
        let want: Vec<String> = missed
            .split(' ')
            .map(|field| format!(".{own}.{field}: Required value"))
            .collect();
        assert_eq!(of(json!({kind: {}})), want.join("; "), "{kind}");
    }
}

#[test]
fn sources_that_make_no_sense() {
    let iscsi = |more: Value| {
        let mut body = json!({"targetPortal": "p", "iqn": "iqn.2015-02.example.com:test"});
        json_patch::merge(&mut body, &more);
        json!({ "iscsi": body })
    };
    let downward = |item: Value| json!({"downwardAPI": {"items": [item]}});
    let projected = |sources: Value| json!({"projected": {"sources": sources}});
    let certificate = |more: Value| {
        let mut body = json!({"signerName": "example.com/s", "keyType": "ED25519", "keyPath": "k"});
        json_patch::merge(&mut body, &more);
        json!({"projected": {"sources": [{"podCertificate": body}]}})
    };
    for (source, want) in [
        (
            json!({"emptyDir": {"sizeLimit": "-1"}}),
            ".emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (
            json!({"hostPath": {"path": "/a/../b"}}),
            ".hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            json!({"gitRepo": {"repository": "r", "directory": "/a"}}),
            ".gitRepo.directory: Invalid value: \"/a\": must be a relative path",
        ),
        (
            json!({"awsElasticBlockStore": {"volumeID": "v", "partition": 256}}),
            ".awsElasticBlockStore.partition: Invalid value: 256: must be between 1 and 255, inclusive",
        ),
        (
            json!({"nfs": {"server": "s", "path": "p"}}),
            ".nfs.path: Invalid value: \"p\": must be an absolute path",
        ),
        (
            iscsi(json!({"iqn": "x"})),
            ".iscsi.iqn: Invalid value: \"x\": must be valid format starting with iqn, eui, or naa",
        ),
        (
            iscsi(json!({"iqn": "iqn.2015-02.example.com"})),
            ".iscsi.iqn: Invalid value: \"iqn.2015-02.example.com\": must be valid format",
        ),
        (
            iscsi(json!({"iqn": "naa.1"})),
            ".iscsi.iqn: Invalid value: \"naa.1\": must be valid format",
        ),
        (
            iscsi(json!({"lun": 256})),
            ".iscsi.lun: Invalid value: 256: must be between 0 and 255, inclusive",
        ),
        (
            iscsi(json!({"chapAuthSession": true})),
            ".iscsi.secretRef: Required value",
        ),
        (
            iscsi(json!({"initiatorName": "eui.1"})),
            ".iscsi.initiatorname: Invalid value: \"eui.1\": must be valid format",
        ),
        (
            json!({"flocker": {}}),
            ".flocker: Required value: one of datasetName and datasetUUID is required",
        ),
        (
            json!({"flocker": {"datasetName": "a/b"}}),
            ".flocker.datasetName: Invalid value: \"a/b\": must not contain '/'",
        ),
        (
            json!({"quobyte": {"registry": "a", "volume": "v"}}),
            ".quobyte.registry: Invalid value: \"a\": must be a host:port pair or multiple pairs separated by commas",
        ),
        (
            json!({"fc": {}}),
            ".fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both",
        ),
        (
            json!({"fc": {"targetWWNs": ["w"]}}),
            ".fc.lun: Required value: lun is required if targetWWNs is specified",
        ),
        (
            json!({"flexVolume": {"driver": "d", "options": {"a.K8s.io/x": "y"}}}),
            ".flexVolume.options[a.K8s.io/x]: Invalid value: \"a.K8s.io/x\": kubernetes.io and k8s.io namespaces are reserved",
        ),
        (
            json!({"azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Managed"}}),
            ".azureDisk.diskURI: Unsupported value: \"u\": supported values: \"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}\"",
        ),
        (
            json!({"cinder": {"volumeID": "v", "secretRef": {}}}),
            ".cinder.secretRef.name: Required value",
        ),
        (
            json!({"csi": {"driver": "d", "nodePublishSecretRef": {}}}),
            ".csi.nodePublishSecretRef.name: Required value",
        ),
        (
            json!({"secret": {"secretName": "s", "defaultMode": 512}}),
            ".secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
        (
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "..a"}]}}),
            ".secret.items[0].path: Invalid value: \"..a\": must not start with '..'",
        ),
        (
            downward(json!({"path": "a"})),
            ".downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ),
        (
            downward(
                json!({"path": "a", "fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}),
            ),
            ".downwardAPI.fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\"",
        ),
        (
            downward(json!({"path": "a", "resourceFieldRef": {"resource": "limits.cpu"}})),
            ".downwardAPI.resourceFieldRef.containerName: Required value",
        ),
        (
            downward(
                json!({"path": "a", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "2"}}),
            ),
            ".downwardAPI.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
        ),
        (
            projected(json!([{"secret": {"name": "a"}, "configMap": {"name": "b"}}])),
            ".projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
        ),
        (
            projected(
                json!([{"secret": {"name": "a", "items": [{"key": "k", "path": "p"}]}}, {"configMap": {"name": "b", "items": [{"key": "k", "path": "p"}]}}]),
            ),
            ".projected: Invalid value: \"b\": conflicting duplicate paths",
        ),
        (
            projected(json!([{"serviceAccountToken": {"expirationSeconds": 599, "path": "p"}}])),
            ".projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (
            projected(json!([{"serviceAccountToken": {"expirationSeconds": 600, "path": "../p"}}])),
            ".projected.path: Invalid value: \"../p\": must not contain '..'",
        ),
        (
            projected(json!([{"clusterTrustBundle": {"path": "p"}}])),
            ".projected.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
        ),
        (
            certificate(json!({"keyType": "RSA1"})),
            ".projected.sources[0].podCertificate.keyType: Unsupported value: \"RSA1\": supported values: \"RSA3072\", \"RSA4096\", \"ECDSAP256\", \"ECDSAP384\", \"ECDSAP521\", \"ED25519\"",
        ),
        (
            certificate(json!({"maxExpirationSeconds": 7_862_401})),
            ".projected.sources[0].podCertificate.maxExpirationSeconds: Invalid value: 7862401: if provided, maxExpirationSeconds must be <= 7862400",
        ),
        (
            certificate(json!({"keyPath": null})),
            ".projected.sources[0].podCertificate: Required value: specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        ),
        (
            json!({"ephemeral": {}}),
            ".ephemeral.volumeClaimTemplate: Required value",
        ),
        (
            json!({"ephemeral": {"volumeClaimTemplate": {"metadata": {"name": "n"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}),
            ".ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
        ),
        (
            json!({"image": {"pullPolicy": "Always"}}),
            ".image.reference: Required value",
        ),
    ] {
        assert_eq!(of(source.clone()), want, "{source}");
    }
}

#[test]
fn claims_that_are_made() {
    let pod = |volumes: Value| json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes}});
    let made = json!({"name": "a", "ephemeral": {}});
    for (volumes, want) in [
        (json!([made]), ""),
        (
            json!([made, {"name": "b", "persistentVolumeClaim": {"claimName": "p-a"}}]),
            "spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: \"p-a\": must not reference a PVC that gets created for an ephemeral volume",
        ),
    ] {
        let mut causes = Causes::default();
        made_claims(&pod(volumes), &mut causes);
        let causes = causes.0.iter();
        let said: Vec<String> = causes
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        assert_eq!(said.join("; "), want);
    }
}
