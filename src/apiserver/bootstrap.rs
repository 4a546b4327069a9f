//! What every cluster has from its first moment: namespaces, roles, the `kubernetes` service.
//!
//! Written through the ordinary path of a write, at every start; what is there already stays as
//! its owner left it, but the server's own address is kept right.

mod ranges;

use std::{net::IpAddr, sync::Arc};

use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    admission, authz,
    objects::{Lookup as _, Named},
    registry::{Resource, kinds, table},
    server::ApiServer,
    start::{Config, Error},
    status::{Reason, Status, qualified},
    verbs::{self, Missing},
    write::Writing,
};

use crate::addresses::{may_be_proxied_to, ranges::nth};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Certificates that extension API servers must know.
#[derive(Clone, Copy, Debug)]
pub struct Authorities<'a> {
    pub cluster: &'a str,
    pub front_proxy: &'a str,
}

/// What happens to a role or binding that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// It stays as its owner left it.
    Stay,
    /// One of an older cluster gets what the policy allows by now: for the start of the server.
    Complete,
}

pub async fn write(
    server: &Arc<ApiServer>,
    config: &Config,
    authorities: Authorities<'_>,
    roles: Roles,
) -> Result<(), Error> {
    let is_new = is_new(server).await;
    let namespaces = NAMESPACES
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    let mut first = Vec::from(namespaces);
    // The Service below gets its address from it.
    first.push(ranges::of_configuration(config));
    ensure_all(server, first, Roles::Stay).await?;
    let mut objects = service(config)?.to_vec();
    objects.extend(admission::system_classes());
    objects.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": EXTENSION, "namespace": "kube-system"},
        "data": extension(authorities),
    }));
    if is_new {
        objects.push(local_class(!has_default_class(server).await));
    }
    // All at once, so that the store syncs them together.
    let own = ensure_all(server, objects, Roles::Stay);
    tokio::try_join!(own, ensure_all(server, authz::bootstrap::objects(), roles))?;
    if is_new {
        let marker = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": LAST.name, "namespace": LAST.namespace},
            "data": {"storageClass": "made"},
        });
        ensure_all(server, vec![marker], Roles::Stay).await?;
    }
    ranges::settle(server, config, roles).await;
    keep_extension(server, authorities).await?;
    keep_endpoints(server, config).await
}

/// Whether this cluster has not had yet what is made once: an admin who deletes the default class is rid
/// of it.
async fn is_new(server: &ApiServer) -> bool {
    match table::by_plural(LAST.plural) {
        Some(row) => match server.read(row, LAST.namespace, LAST.name).await {
            Err(status) => status.reason == Reason::NotFound,
            Ok(_) => false,
        },
        None => false,
    }
}

/// Written when a cluster has all that is made once.
const LAST: Named<'static> = Named {
    plural: "configmaps",
    subresource: "",
    namespace: "kube-system",
    name: "vetch-bootstrap",
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Whether a cluster from before has a default class already: the newest one would win.
async fn has_default_class(server: &ApiServer) -> bool {
    let classes = server.list("storageclasses.storage.k8s.io", "").await;
    classes.iter().any(|class| {
        class
            .pointer("/metadata/annotations")
            .is_some_and(|all| all[DEFAULT_CLASS] == "true")
    })
}

/// Folders of the node that the claim's pod goes to. The default: what claims get that name no class.
fn local_class(is_default: bool) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {
            "name": "local",
            "annotations": {DEFAULT_CLASS: is_default.to_string()},
        },
        "provisioner": "vetch.io/local",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
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
    let range = config.services.primary();
    let address = nth(range, 1).ok_or(Error::Services(*range))?;
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

/// Objects that one task writes: a start waits for them, and a machine has several cores.
const AT_A_TIME: usize = 32;

async fn ensure_all(
    server: &Arc<ApiServer>,
    objects: Vec<Value>,
    roles: Roles,
) -> Result<(), Error> {
    let mut objects = objects.into_iter();
    let mut tasks = JoinSet::new();
    loop {
        let some: Vec<Value> = objects.by_ref().take(AT_A_TIME).collect();
        if some.is_empty() {
            break;
        }
        let server = server.clone();
        tasks.spawn(async move {
            let ensured = some
                .into_iter()
                .map(|object| ensure_named(&server, object, roles));
            try_join_all(ensured).await.map(drop)
        });
    }
    tasks.join_all().await.into_iter().collect()
}

async fn ensure_named(server: &ApiServer, object: Value, roles: Roles) -> Result<(), Error> {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let what = format!(
        "{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    );
    let ensured = ensure(server, object, roles).await;
    ensured.map_err(|source| Error::Bootstrap {
        what,
        source: Box::new(source),
    })
}

/// Creates what is not there.
async fn ensure(server: &ApiServer, object: Value, roles: Roles) -> Result<(), Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (name, namespace) = (text(&metadata["name"]), text(&metadata["namespace"]));
    let not_served = || Status::internal("this kind is not served");
    let kind = object["kind"].as_str().unwrap_or_default();
    let plural = plural(&text(&object["apiVersion"]), kind).ok_or_else(not_served)?;
    let row = table::by_plural(&plural).ok_or_else(not_served)?;
    if let Ok(held) = server.read(row, &namespace, &name).await {
        let held = held.value();
        if roles == Roles::Stay || !authz::bootstrap::lacks(&held, &object) {
            return Ok(());
        }
        let target = Named {
            plural: &plural,
            subresource: "",
            namespace: &namespace,
            name: &name,
        };
        let change = |held: &mut Value| authz::bootstrap::complete(held, &object);
        return match keep(server, target, &change).await {
            // Just deleted: it is made anew, whole.
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            written => written,
        };
    }
    let writing = exempt(row, &namespace, "");
    match verbs::create(server, &writing, object, Vec::new(), Vec::new()).await {
        Err(status) if status.reason == Reason::AlreadyExists => Ok(()),
        written => written.map(drop),
    }
}

fn plural(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let row = kinds::table()
        .iter()
        .find(|row| row.group == group && row.version == version && row.kind == kind)?;
    Some(qualified(row.group, row.plural))
}
