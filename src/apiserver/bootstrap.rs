//! What every cluster has from its first moment: namespaces, roles, the `kubernetes` service.
//!
//! Written through the ordinary path of a write, at every start; what is there already stays as
//! its owner left it, but the server's own address is kept right.

use std::net::IpAddr;

use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{
    admission, authz,
    objects::{Lookup, Named},
    registry::{Resource, kinds, table},
    server::ApiServer,
    start::{Config, Error},
    status::{Reason, Status, qualified},
    verbs::{self, Missing},
    write::Writing,
};

use crate::addresses::may_be_proxied_to;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Certificates that extension API servers must know.
#[derive(Clone, Copy, Debug)]
pub struct Authorities<'a> {
    pub cluster: &'a str,
    pub front_proxy: &'a str,
}

pub async fn write(
    server: &ApiServer,
    config: &Config,
    authorities: Authorities<'_>,
) -> Result<(), Error> {
    let namespaces = NAMESPACES
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    ensure_all(server, namespaces.into()).await?;
    // All at once, so that the store syncs them together.
    ensure_all(server, authz::bootstrap::objects()).await?;
    let mut objects = service(config)?.to_vec();
    objects.extend(admission::system_classes());
    objects.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": EXTENSION, "namespace": "kube-system"},
        "data": extension(authorities),
    }));
    ensure_all(server, objects).await?;
    keep_extension(server, authorities).await?;
    keep_endpoints(server, config).await
}

/// Adds to the roles of an older cluster what the policy allows by now: for the start of the server.
pub async fn complete_roles(server: &ApiServer) -> Result<(), Error> {
    for wanted in authz::bootstrap::objects() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, metadata) = (text(&wanted["kind"]), &wanted["metadata"]);
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        let Some(plural) = plural(&text(&wanted["apiVersion"]), &kind) else {
            continue;
        };
        let Some(held) = server.get(&plural, &namespace, &name).await else {
            continue; // just deleted: it is made anew, whole
        };
        if !authz::bootstrap::reconcile(&mut (*held).clone(), &wanted) {
            continue;
        }
        let target = Named {
            plural: &plural,
            subresource: "",
            namespace: &namespace,
            name: &name,
        };
        let change = |held: &mut Value| {
            authz::bootstrap::reconcile(held, &wanted);
        };
        match keep(server, target, &change).await {
            // Just deleted, as above.
            Err(status) if status.reason == Reason::NotFound => {}
            written => written.map_err(|source| Error::Bootstrap {
                what: format!("{kind} {namespace}/{name}"),
                source: Box::new(source),
            })?,
        }
    }
    Ok(())
}

/// Where extension API servers read whose word they may take.
const EXTENSION: &str = "extension-apiserver-authentication";

fn extension(authorities: Authorities<'_>) -> Value {
    json!({
        "client-ca-file": authorities.cluster,
        "requestheader-client-ca-file": authorities.front_proxy,
        "requestheader-allowed-names": json!([crate::pki::FRONT_PROXY]).to_string(),
        "requestheader-username-headers": r#"["X-Remote-User"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
    })
}

/// A cluster from before may know less.
async fn keep_extension(server: &ApiServer, authorities: Authorities<'_>) -> Result<(), Error> {
    let target = Named {
        plural: "configmaps",
        subresource: "",
        namespace: "kube-system",
        name: EXTENSION,
    };
    let change = |map: &mut Value| map["data"] = extension(authorities);
    let kept = keep(server, target, &change).await;
    kept.map_err(|source| Error::Bootstrap {
        what: format!("ConfigMap kube-system/{EXTENSION}"),
        source: Box::new(source),
    })
}

/// The `kubernetes` service and where it leads: this server.
fn service(config: &Config) -> Result<[Value; 3], Error> {
    let address = config
        .services
        .hosts()
        .next()
        .ok_or(Error::Services(config.services))?;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.port}],
        },
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets(config),
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if config.advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": slice_endpoints(config.advertise),
        "ports": slice_ports(config.port),
    });
    Ok([service, endpoints, slice])
}

fn subsets(config: &Config) -> Value {
    if !may_be_proxied_to(config.advertise) {
        return json!([]);
    }
    json!([{
        "addresses": [{"ip": config.advertise}],
        "ports": [{"name": "https", "port": config.port, "protocol": "TCP"}],
    }])
}

/// On a host without a network the server is on its loopback address, where no pod reaches it.
fn slice_endpoints(address: IpAddr) -> Value {
    if !may_be_proxied_to(address) {
        return json!([]);
    }
    json!([{"addresses": [address], "conditions": {"ready": true}}])
}

fn slice_ports(port: u16) -> Value {
    json!([{"name": "https", "port": port, "protocol": "TCP"}])
}

/// The address may have changed since the last start.
async fn keep_endpoints(server: &ApiServer, config: &Config) -> Result<(), Error> {
    let named = |plural| Named {
        plural,
        subresource: "",
        namespace: "default",
        name: "kubernetes",
    };
    let set_subsets = |object: &mut Value| {
        let subsets = subsets(config);
        // What is empty is not kept.
        if subsets.as_array().is_some_and(Vec::is_empty) {
            object.as_object_mut().map(|map| map.remove("subsets"));
        } else {
            object["subsets"] = subsets;
        }
    };
    let set_slice = |object: &mut Value| {
        object["endpoints"] = slice_endpoints(config.advertise);
        object["ports"] = slice_ports(config.port);
    };
    let slices = named("endpointslices.discovery.k8s.io");
    let endpoints = keep(server, named("endpoints"), &set_subsets);
    let slice = keep(server, slices, &set_slice);
    let kept = tokio::try_join!(endpoints, slice);
    kept.map(|_| ()).map_err(|source| Error::Bootstrap {
        what: "the endpoints of the kubernetes service".to_owned(),
        source: Box::new(source),
    })
}

/// Brings an object to what it should be. One that is so already is not written.
async fn keep(
    server: &ApiServer,
    target: Named<'_>,
    change: &(dyn Fn(&mut Value) + Send + Sync),
) -> Result<(), Status> {
    let Some(row) = table::by_plural(target.plural) else {
        return Err(Status::internal(format!("no resource {}", target.plural)));
    };
    let writing = exempt(row, target.namespace, target.name);
    loop {
        let old = server.read(row, target.namespace, target.name).await?;
        let mut new = (*old.value()).clone();
        change(&mut new);
        if new == *old.value() {
            return Ok(());
        }
        match verbs::update(server, &writing, new, Vec::new(), Missing::Refuse).await {
            // Somebody else wrote it: look again.
            Err(status) if status.reason == Reason::Conflict => {}
            result => return result.map(|_| ()),
        }
    }
}

/// A write that asks nobody whether every cluster may have what it has: webhooks, quotas and the like
/// are set up by users, and none of them may keep the server from starting.
fn exempt(row: &'static Resource, namespace: &str, name: &str) -> Writing {
    Writing {
        exempt: true,
        ..Writing::own(row, namespace, name)
    }
}

async fn ensure_all(server: &ApiServer, objects: Vec<Value>) -> Result<(), Error> {
    try_join_all(objects.into_iter().map(|object| ensure(server, object))).await?;
    Ok(())
}

/// Creates what is not there.
async fn ensure(server: &ApiServer, object: Value) -> Result<(), Error> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    let (name, namespace) = (
        text(&object["metadata"]["name"]),
        text(&object["metadata"]["namespace"]),
    );
    let failed = |source: Status| Error::Bootstrap {
        what: format!("{kind} {namespace}/{name}"),
        source: Box::new(source),
    };
    let Some(plural) = plural(&text(&object["apiVersion"]), &kind) else {
        return Err(failed(Status::internal("this kind is not served")));
    };
    let Some(row) = table::by_plural(&plural) else {
        return Err(failed(Status::internal("this kind is not served")));
    };
    if server.read(row, &namespace, &name).await.is_ok() {
        return Ok(());
    }
    let writing = exempt(row, &namespace, "");
    match verbs::create(server, &writing, object, Vec::new(), Vec::new()).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
        Err(status) => Err(failed(status)),
    }
}

fn plural(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let row = kinds::table()
        .iter()
        .find(|row| row.group == group && row.version == version && row.kind == kind)?;
    Some(qualified(row.group, row.plural))
}
