//! One aggregated API: a group and version that another server serves.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::{Value, json};

use crate::{
    apiserver::{
        callout,
        registry::kinds::value::{flag, number, text},
        streaming,
    },
    pki::Live,
};

/// Made of an APIService; replaced when that changes.
pub struct Remote {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: i64,
    /// The less, the later in discovery: of the group, of the version.
    pub priority: (i64, i64),
    pub tls: Result<(Arc<ClientConfig>, ServerName<'static>), String>,
    /// What was made into this.
    pub spec: Value,
    /// What it serves, as its own discovery tells; `None` until it has been asked successfully.
    pub resources: Option<Value>,
    /// Its OpenAPI 3 document, if it has one.
    pub openapi: Option<Bytes>,
}

impl Remote {
    /// `None`: an APIService without a service names what this server itself serves.
    pub fn new(service: &Value, identity: &Arc<Live>) -> Option<Self> {
        let spec = &service["spec"];
        if !spec["service"].is_object() {
            return None;
        }
        let (name, namespace) = (text(spec, "service.name"), text(spec, "service.namespace"));
        Some(Self {
            group: text(spec, "group").to_owned(),
            version: text(spec, "version").to_owned(),
            namespace: namespace.to_owned(),
            service: name.to_owned(),
            port: number(spec, "service.port").unwrap_or(443),
            priority: (
                number(spec, "groupPriorityMinimum").unwrap_or(0),
                number(spec, "versionPriority").unwrap_or(0),
            ),
            tls: tls(spec, identity, &format!("{name}.{namespace}.svc")),
            spec: spec.clone(),
            resources: None,
            openapi: None,
        })
    }

    /// The same with what it serves now.
    pub fn serving(&self, resources: Option<Value>, openapi: Option<Bytes>) -> Self {
        Self {
            group: self.group.clone(),
            version: self.version.clone(),
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            port: self.port,
            priority: self.priority,
            tls: self.tls.clone(),
            spec: self.spec.clone(),
            resources,
            openapi,
        }
    }

    pub fn is_available(&self) -> bool {
        self.resources.is_some()
    }

    pub fn group_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// Its part of the aggregated discovery document.
    pub fn discovered(&self) -> Value {
        let all = self.resources.as_ref().map(|list| &list["resources"]);
        let all = all.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let kind = |one: &Value| {
            let or = |field: &str, own: &str| match text(one, field) {
                "" => own.to_owned(),
                told => told.to_owned(),
            };
            json!({"group": or("group", &self.group), "version": or("version", &self.version), "kind": one["kind"]})
        };
        let main = all.iter().filter(|one| !text(one, "name").contains('/'));
        let resources: Vec<Value> = main
            .map(|one| {
                let name = text(one, "name");
                let parts: Vec<Value> = all
                    .iter()
                    .filter_map(|part| {
                        let (of, part_name) = text(part, "name").split_once('/')?;
                        (of == name).then(|| {
                            json!({"subresource": part_name, "responseKind": kind(part), "verbs": part["verbs"]})
                        })
                    })
                    .collect();
                let mut made = json!({
                    "resource": name,
                    "responseKind": kind(one),
                    "scope": if flag(one, "namespaced") { "Namespaced" } else { "Cluster" },
                    "singularResource": one["singularName"],
                    "verbs": one["verbs"],
                });
                for list in ["shortNames", "categories"] {
                    if one[list].is_array() {
                        made[list] = one[list].clone();
                    }
                }
                if !parts.is_empty() {
                    made["subresources"] = parts.into();
                }
                made
            })
            .collect();
        let freshness = match self.is_available() {
            true => "Current",
            false => "Stale",
        };
        json!({"version": self.version, "resources": resources, "freshness": freshness})
    }
}

type Tls = (Arc<ClientConfig>, ServerName<'static>);

fn tls(spec: &Value, identity: &Arc<Live>, name: &str) -> Result<Tls, String> {
    let server =
        ServerName::try_from(name.to_owned()).map_err(|error| format!("{name}: {error}"))?;
    let pem = match text(spec, "caBundle") {
        "" => None,
        bundle => {
            let pem = BASE64_STANDARD.decode(bundle);
            let pem = pem.map_err(|error| format!("caBundle is not base64: {error}"))?;
            Some(String::from_utf8_lossy(&pem).into_owned())
        }
    };
    let mut config = callout::client_config(pem.as_deref(), Some(identity))?;
    if flag(spec, "insecureSkipTLSVerify") {
        streaming::trust_anyone(&mut config);
    }
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), server))
}
