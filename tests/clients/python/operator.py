"""An operator that uses all of kopf's kinds of handlers; each leaves a mark in the object's status."""

import json

import kopf
import kubernetes

GADGETS = ("example.com", "v1", "gadgets")


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_):
    settings.posting.loggers = True


@kopf.on.create(*GADGETS)
def created(body, spec, **_):
    kopf.info(body, reason="Created", message="a gadget has come")
    return {"size": spec["size"]}


@kopf.on.update(*GADGETS)
def updated(diff, patch, **_):
    patch.status["changed"] = json.dumps(list(diff)[0], separators=(",", ":"))


@kopf.timer(*GADGETS, interval=0.2)
def tick(status, patch, **_):
    patch.status["ticks"] = status.get("ticks", 0) + 1


@kopf.daemon(*GADGETS)
async def alongside(stopped, patch, **_):
    patch.status["daemon"] = "running"
    return None


@kopf.on.delete(*GADGETS)
def deleted(spec, namespace, **_):
    kubernetes.config.load_kube_config()
    farewell = {"metadata": {"name": "farewell"}, "data": {"size": str(spec["size"])}}
    try:
        kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, farewell)
    except kubernetes.client.ApiException as error:
        if error.status != 409:  # this handler has run before: its success was not written down
            raise
