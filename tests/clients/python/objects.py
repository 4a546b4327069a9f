"""Reads, writes, applies and watches built-in and custom objects through every interface of the
Python client. Runs with client 29 and later; ends with an error at the first thing that is not so.
All of it is done once, and again until VETCH_TEST_CHURN_S seconds are over."""

import json
import os
import threading
import time

import kubernetes
from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

PATIENCE_S = 30
NAMESPACE = "python"
IS_OLD = kubernetes.__version__.startswith("29.")

config.load_kube_config()
core = client.CoreV1Api()
apps = client.AppsV1Api()
definitions = client.ApiextensionsV1Api()
custom = client.CustomObjectsApi()


def equal(got, want):
    assert got == want, f"{got!r} is not {want!r}"


def refused(call, *arguments, **named):
    """The status and the message with which a call is refused."""
    try:
        result = call(*arguments, **named)
    except ApiException as error:
        return error.status, json.loads(error.body)["message"]
    except dynamic.exceptions.DynamicApiError as error:
        return error.status, json.loads(error.body)["message"]
    raise AssertionError(f"not refused: {result}")


class Watcher(threading.Thread):
    """Collects the events of a list until `ends` of one is true."""

    def __init__(self, ends, list_call, *arguments, **named):
        super().__init__(daemon=True)
        self.events = []
        self.ends = ends
        self.call = (list_call, arguments, named)
        self.start()

    def run(self):
        list_call, arguments, named = self.call
        stream = watch.Watch().stream(list_call, *arguments, timeout_seconds=PATIENCE_S, **named)
        for event in stream:
            self.events.append(event)
            if self.ends(event):
                return

    def types(self):
        self.join(PATIENCE_S)
        assert self.events and self.ends(self.events[-1]), self.events
        return [event["type"] for event in self.events]


def is_deleted(event):
    return event["type"] == "DELETED"


def from_now(ends, list_call, *arguments):
    """Misses nothing, however late its thread begins to watch."""
    version = list_call(*arguments).metadata.resource_version
    return Watcher(ends, list_call, *arguments, resource_version=version)


def wait_for(ends, list_call, *arguments, **named):
    Watcher(ends, list_call, *arguments, **named).types()


def built_in_objects():
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    body = client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name="a", labels={"l": "1"}), data={"k": "v"}
    )
    made = core.create_namespaced_config_map(NAMESPACE, body)
    equal([owner.manager for owner in made.metadata.managed_fields], ["OpenAPI-Generator"])
    equal(refused(core.create_namespaced_config_map, NAMESPACE, body)[0], 409)

    # A watch by the plain parameter, without the class for it.
    lines = core.list_namespaced_config_map(
        NAMESPACE, watch=True, label_selector="l=1", timeout_seconds=1, _preload_content=False
    )
    events = [json.loads(line) for line in lines.data.decode().splitlines()]
    equal([(e["type"], e["object"]["metadata"]["name"]) for e in events], [("ADDED", "a")])

    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    watcher = Watcher(
        is_deleted,
        core.list_namespaced_config_map,
        NAMESPACE,
        label_selector="l=1",
        resource_version=version,
    )
    patched = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"k2": "v2"}})
    equal(patched.data, {"k": "v", "k2": "v2"})
    operations = [{"op": "remove", "path": "/data/k2"}]
    patched = core.patch_namespaced_config_map("a", NAMESPACE, operations)
    equal(patched.data, {"k": "v"})
    patched.data = {"new": "x"}
    equal(core.replace_namespaced_config_map("a", NAMESPACE, patched).data, {"new": "x"})
    patched.data = {"stale": "x"}
    equal(refused(core.replace_namespaced_config_map, "a", NAMESPACE, patched)[0], 409)
    core.delete_namespaced_config_map("a", NAMESPACE)
    equal(refused(core.read_namespaced_config_map, "a", NAMESPACE)[0], 404)
    equal(watcher.types(), ["MODIFIED"] * 3 + ["DELETED"])
    assert all(isinstance(e["object"], client.V1ConfigMap) for e in watcher.events)


DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "nothing.invalid/x"}]},
        },
    },
}


def subresources():
    apps.create_namespaced_deployment(NAMESPACE, DEPLOYMENT)
    scale = apps.read_namespaced_deployment_scale("d", NAMESPACE)
    scale.metadata.resource_version = None
    apps.replace_namespaced_deployment_scale("d", NAMESPACE, scale)
    apps.patch_namespaced_deployment_scale("d", NAMESPACE, {"spec": {"replicas": 0}})
    named = {"name": "c", "env": [{"name": "X", "value": "1"}]}
    template = {"spec": {"template": {"spec": {"containers": [named]}}}}
    merged = apps.patch_namespaced_deployment("d", NAMESPACE, template)
    equal(merged.spec.template.spec.containers[0].image, "nothing.invalid/x")
    mine = {"status": {"conditions": [{"type": "Mine", "status": "True"}]}}
    merged = apps.patch_namespaced_deployment_status("d", NAMESPACE, mine)
    assert "Mine" in [condition.type for condition in merged.status.conditions]
    watcher = from_now(is_deleted, apps.list_namespaced_deployment, NAMESPACE)
    apps.delete_namespaced_deployment("d", NAMESPACE, propagation_policy="Foreground")
    watcher.types()


DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                    },
                },
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "title": {"type": "string"},
                                    "replicas": {"type": "integer"},
                                    "size": {"type": "integer"},
                                    "tags": {
                                        "type": "array",
                                        "items": {"type": "string"},
                                        "x-kubernetes-list-type": "set",
                                    },
                                },
                                "x-kubernetes-validations": [
                                    {"rule": "!has(self.size) || self.size < 10", "message": "small!"}
                                ],
                            },
                            "status": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            },
                        },
                    }
                },
            }
        ],
    },
}
WIDGETS = ("example.com", "v1", NAMESPACE, "widgets")


def widget(name, **spec):
    return {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": spec,
    }


def is_established(event):
    conditions = event["object"].status and event["object"].status.conditions or []
    return any(c.type == "Established" and c.status == "True" for c in conditions)


def custom_objects():
    definitions.create_custom_resource_definition(DEFINITION)
    only_ours = {"field_selector": "metadata.name=widgets.example.com"}
    wait_for(is_established, definitions.list_custom_resource_definition, **only_ours)

    version = custom.list_namespaced_custom_object(*WIDGETS)["metadata"]["resourceVersion"]
    watcher = Watcher(
        is_deleted, custom.list_namespaced_custom_object, *WIDGETS, resource_version=version
    )
    equal(custom.create_namespaced_custom_object(*WIDGETS, widget("w", size=1))["metadata"]["generation"], 1)
    code, message = refused(custom.create_namespaced_custom_object, *WIDGETS, widget("x", size=10))
    equal(code, 422)
    assert "small!" in message, message
    patched = custom.patch_namespaced_custom_object(*WIDGETS, "w", {"spec": {"size": 2}})
    equal(patched["spec"], {"size": 2})
    if IS_OLD:  # which knows no other patch of these
        patched = custom.patch_namespaced_custom_object(*WIDGETS, "w", {"spec": {"size": 3}})
    else:
        patched = custom.patch_namespaced_custom_object(
            *WIDGETS,
            "w",
            [{"op": "replace", "path": "/spec/size", "value": 3}],
            _content_type="application/json-patch+json",
        )
    equal(patched["spec"], {"size": 3})
    patched["spec"]["size"] = 4
    replaced = custom.replace_namespaced_custom_object(*WIDGETS, "w", patched)
    replaced["status"] = {"phase": "ok"}
    replaced["spec"]["size"] = 9  # not by this path
    replaced = custom.replace_namespaced_custom_object_status(*WIDGETS, "w", replaced)
    equal((replaced["spec"]["size"], replaced["status"]), (4, {"phase": "ok"}))
    status = {"status": {"phase": "fine"}}
    custom.patch_namespaced_custom_object_status(*WIDGETS, "w", status)
    custom.patch_namespaced_custom_object_scale(*WIDGETS, "w", {"spec": {"replicas": 2}})
    equal(custom.get_namespaced_custom_object(*WIDGETS, "w")["spec"], {"size": 4, "replicas": 2})
    equal(len(custom.list_cluster_custom_object("example.com", "v1", "widgets")["items"]), 1)
    equal(custom.delete_namespaced_custom_object(*WIDGETS, "w")["status"], "Success")
    equal(watcher.types(), ["ADDED"] + ["MODIFIED"] * 6 + ["DELETED"])

    custom.create_namespaced_custom_object(*WIDGETS, widget("w"))
    custom.delete_collection_namespaced_custom_object(*WIDGETS)
    equal(custom.list_namespaced_custom_object(*WIDGETS)["items"], [])


def server_side_apply():
    clients = dynamic.DynamicClient(client.ApiClient())
    widgets = clients.resources.get(api_version="example.com/v1", kind="Widget")
    here = {"namespace": NAMESPACE, "name": "w"}
    widgets.create(body=widget("w", size=1, tags=["a"]), namespace=NAMESPACE)
    apply = {**here, "field_manager": "tests"}
    applied = widgets.server_side_apply(body=widget("w", title="x", tags=["b"]), **apply)
    equal(applied.spec.to_dict(), {"title": "x", "size": 1, "tags": ["a", "b"]})
    equal(
        refused(widgets.server_side_apply, body=widget("w", size=3), **apply),
        (
            409,
            'Apply failed with 1 conflict: conflict with "OpenAPI-Generator" using '
            "example.com/v1: .spec.size",
        ),
    )
    forced = widgets.server_side_apply(body=widget("w", size=3), force_conflicts=True, **apply)
    # What is not applied any more goes, unless another owns it too.
    equal(forced.spec.to_dict(), {"size": 3, "tags": ["a"]})
    code, message = refused(widgets.patch, body=widget("w", size=6), **here)
    equal(code, 415)
    assert "application/merge-patch+json" in message, message
    events = [(e["type"], e["object"].spec.size) for e in widgets.watch(namespace=NAMESPACE, timeout=1)]
    equal(events, [("ADDED", 3)])

    deployments = clients.resources.get(api_version="apps/v1", kind="Deployment")
    apply["name"] = here["name"] = "d"
    applied = deployments.server_side_apply(body=DEPLOYMENT, **apply)
    owners = [(owner.manager, owner.operation) for owner in applied.metadata.managedFields]
    equal(owners, [("tests", "Apply")])
    generation = deployments.server_side_apply(body=DEPLOYMENT, **apply).metadata.generation
    equal(generation, applied.metadata.generation)


def is_unserved(*kind):
    try:
        custom.list_namespaced_custom_object(*kind)
        return False
    except ApiException as error:
        equal(error.status, 404)
        return True


def the_end():
    watcher = from_now(is_deleted, definitions.list_custom_resource_definition)
    definitions.delete_custom_resource_definition("widgets.example.com")
    watcher.types()
    # The server tells of the deletion and stops serving the kind at about the same time.
    end = time.monotonic() + PATIENCE_S
    while not is_unserved(*WIDGETS):
        assert time.monotonic() < end, "still served"
    watcher = from_now(is_deleted, core.list_namespace)
    core.delete_namespace(NAMESPACE)
    watcher.types()


end = time.monotonic() + float(os.environ.get("VETCH_TEST_CHURN_S", 0))
while True:
    for step in [built_in_objects, subresources, custom_objects, server_side_apply, the_end]:
        step()
        print(step.__name__, "ok", flush=True)
    if time.monotonic() >= end:
        break
