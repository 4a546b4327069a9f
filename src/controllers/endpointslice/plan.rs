//! Which EndpointSlices a Service shall have, with as few writes as possible. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{
        Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
    },
};
use kube::{ResourceExt, api::ObjectMeta};

use crate::{
    addresses::family::Family,
    controllers::{
        endpoint::{self, HEADLESS, Port},
        pods,
    },
};

/// The most endpoints of one slice.
const MAX_PER_SLICE: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(String),
}

/// Steps from `slices` to what `pods` make of `service`. `zone_of` tells the zone of a node.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Vec<Action> {
    let families = endpoint::families(service);
    let mut actions = Vec::new();
    for family in &families {
        let wanted = wanted(service, pods, *family, zone_of);
        let held: Vec<&EndpointSlice> = slices
            .iter()
            .map(AsRef::as_ref)
            .filter(|slice| slice.address_type == family.name())
            .collect();
        actions.extend(reconcile(service, *family, wanted, &held));
    }
    actions.extend(
        slices
            .iter()
            .filter(|slice| {
                !families
                    .iter()
                    .any(|family| slice.address_type == family.name())
            })
            .map(|slice| Action::Delete(slice.name_any())),
    );
    actions
}

/// Endpoints by the ports they serve.
type Wanted = BTreeMap<Vec<Port>, Vec<Endpoint>>;

fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    family: Family,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Wanted {
    let mut wanted = Wanted::new();
    for pod in pods.iter().filter(|pod| endpoint::selects(service, pod)) {
        if pods::is_finished(pod) {
            continue;
        }
        let Some(address) = endpoint::address(pod, family) else {
            continue;
        };
        let terminating = pods::is_terminating(pod.as_ref());
        let serving = pods::is_ready(pod);
        let ready = endpoint::publishes_not_ready(service) || (serving && !terminating);
        let node = pods::node_name(pod);
        let zone = node.and_then(zone_of);
        let hints = match ready {
            true => hints(service, node, zone.as_deref()),
            false => None,
        };
        wanted
            .entry(endpoint::ports(service, pod))
            .or_default()
            .push(Endpoint {
                addresses: vec![address],
                conditions: Some(EndpointConditions {
                    ready: Some(ready),
                    serving: Some(serving),
                    terminating: Some(terminating),
                }),
                hostname: endpoint::hostname(service, pod),
                node_name: node.map(Into::into),
                target_ref: Some(endpoint::reference(pod)),
                zone,
                hints,
                ..Endpoint::default()
            });
    }
    wanted
}

/// For whom a ready endpoint is, where `trafficDistribution` asks that the near ones be preferred: for its own zone,
/// and for its own node.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let asked_for = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let node = match asked_for {
        "PreferSameNode" => node,
        "PreferSameZone" | "PreferClose" => None,
        _ => return None,
    };
    let hints = EndpointHints {
        for_nodes: node.map(|name| vec![ForNode { name: name.into() }]),
        for_zones: zone.map(|name| vec![ForZone { name: name.into() }]),
    };
    (hints.for_nodes.is_some() || hints.for_zones.is_some()).then_some(hints)
}

fn reconcile(
    service: &Service,
    family: Family,
    mut wanted: Wanted,
    held: &[&EndpointSlice],
) -> Vec<Action> {
    let labels = labels(service);
    let mut actions = Vec::new();
    let mut kept = 0;
    let mut spare: Vec<&EndpointSlice> = Vec::new();
    let mut by_ports: BTreeMap<Vec<Port>, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in held {
        let ports = ports_of(slice);
        if wanted.contains_key(&ports) {
            by_ports.entry(ports).or_default().push(slice);
        } else {
            spare.push(slice);
        }
    }
    if wanted.is_empty() {
        // One empty slice says that there is nothing, and that somebody looked.
        wanted.insert(Vec::new(), Vec::new());
    }
    for (ports, endpoints) in wanted {
        let mut existing = by_ports.remove(&ports).unwrap_or_default();
        if existing.is_empty() {
            existing.extend(spare.pop());
        }
        let filled = fill(&existing, endpoints);
        for (index, endpoints) in filled.into_iter().enumerate() {
            let old = existing.get(index);
            if endpoints.is_empty() && (kept > 0 || index > 0) {
                actions.extend(old.map(|old| Action::Delete(old.name_any())));
                continue;
            }
            kept += 1;
            let new = slice(service, family, &labels, &ports, endpoints, old.copied());
            match old {
                None => actions.push(Action::Create(Box::new(new))),
                Some(old) if same(old, &new) => {}
                Some(_) => actions.push(Action::Update(Box::new(new))),
            }
        }
    }
    actions.extend(
        spare
            .into_iter()
            .map(|slice| Action::Delete(slice.name_any())),
    );
    actions
}

/// Distributes endpoints: each stays where it is; new ones fill slices that change anyway, then
/// the fullest that have room, then new slices. The first results belong to `existing`, in order.
fn fill(existing: &[&EndpointSlice], endpoints: Vec<Endpoint>) -> Vec<Vec<Endpoint>> {
    let mut left: HashMap<String, Endpoint> = endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let mut filled: Vec<Vec<Endpoint>> = Vec::new();
    let mut touched = Vec::new();
    for slice in existing {
        let held = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> = held
            .iter()
            .filter_map(|endpoint| left.remove(&identity(endpoint)))
            .collect();
        touched.push(kept != held);
        filled.push(kept);
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    left.sort_by_cached_key(identity);
    let mut order: Vec<usize> = (0..filled.len()).collect();
    order.sort_by_key(|index| (!touched[*index], std::cmp::Reverse(filled[*index].len())));
    let mut left = left.into_iter().peekable();
    for index in order {
        while filled[index].len() < MAX_PER_SLICE
            && let Some(endpoint) = left.next()
        {
            filled[index].push(endpoint);
        }
    }
    while left.peek().is_some() {
        filled.push(left.by_ref().take(MAX_PER_SLICE).collect());
    }
    if filled.is_empty() {
        filled.push(Vec::new());
    }
    filled
}

fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone())
        .unwrap_or_default();
    format!("{uid}/{}", endpoint.addresses.join(","))
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = service.labels().clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if endpoint::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    slice
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            port: port.port.unwrap_or(0),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn slice(
    service: &Service,
    family: Family,
    labels: &BTreeMap<String, String>,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
    old: Option<&EndpointSlice>,
) -> EndpointSlice {
    let metadata = match old {
        Some(old) => old.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            owner_references: Some(vec![pods::controller_ref(service)]),
            ..ObjectMeta::default()
        },
    };
    EndpointSlice {
        metadata: ObjectMeta {
            labels: Some(labels.clone()),
            ..metadata
        },
        address_type: family.name().into(),
        endpoints: Some(endpoints),
        ports: Some(
            ports
                .iter()
                .map(|port| EndpointPort {
                    name: Some(port.name.clone()),
                    port: Some(port.port),
                    protocol: Some(port.protocol.clone()),
                    app_protocol: port.app_protocol.clone(),
                })
                .collect(),
        ),
    }
}

fn same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.endpoints.as_deref().unwrap_or_default()
            == new.endpoints.as_deref().unwrap_or_default()
        && ports_of(old) == ports_of(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: &Value) -> Service {
        let mut value = json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "s", "labels": {"tier": "web"}},
            "spec": {"selector": {"app": "a"}, "clusterIP": "10.0.0.1",
                     "ports": [{"name": "http", "port": 80, "targetPort": "web"}]},
        });
        for (key, one) in spec.as_object().expect("a map") {
            value["spec"][key] = one.clone();
        }
        serde_json::from_value(value).expect("a Service")
    }

    fn pod(name: &str, patch: &Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "a"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c",
                "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": format!("10.1.0.{name}"),
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        json_patch::merge(&mut value, patch);
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn step(service: &Service, pods: &[Arc<Pod>], slices: &mut Vec<Arc<EndpointSlice>>) -> usize {
        let actions = plan(service, pods, slices, &|_| Some("z".into()));
        let count = actions.len();
        for action in actions {
            match action {
                Action::Create(mut slice) => {
                    slice.metadata.name = Some(format!("s-{}", slices.len()));
                    slices.push(Arc::new(*slice));
                }
                Action::Update(slice) => {
                    let held = slices
                        .iter_mut()
                        .find(|one| one.name_any() == slice.name_any());
                    *held.expect("it exists") = Arc::new(*slice);
                }
                Action::Delete(name) => slices.retain(|one| one.name_any() != name),
            }
        }
        count
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len))
            .collect()
    }

    #[test]
    fn slices_fill_change_little_and_empty() {
        let service = service(&json!({}));
        let mut slices = Vec::new();
        step(&service, &[], &mut slices);
        assert_eq!(sizes(&slices), [0], "an empty slice stands for none");
        let mut pods: Vec<Arc<Pod>> = (0..150)
            .map(|number| pod(&number.to_string(), &json!({})))
            .collect();
        step(&service, &pods, &mut slices);
        assert_eq!(sizes(&slices), [100, 50]);
        assert_eq!(slices[0].ports.as_ref().expect("ports")[0].port, Some(8080));
        pods.push(pod("200", &json!({})));
        assert_eq!(
            step(&service, &pods, &mut slices),
            1,
            "only the slice with room"
        );
        assert_eq!(sizes(&slices), [100, 51]);
        assert_eq!(step(&service, &pods, &mut slices), 0);
        step(&service, &[], &mut slices);
        assert_eq!(sizes(&slices), [0]);
    }

    #[test]
    fn conditions_of_endpoints() {
        // Source: documentation of EndpointSlice conditions.
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let publish = json!({"publishNotReadyAddresses": true});
        for (service_patch, pod_patch, want) in [
            (json!({}), json!({}), Some((true, true, false))),
            (json!({}), unready.clone(), Some((false, false, false))),
            (json!({}), leaving.clone(), Some((false, true, true))),
            (publish.clone(), unready, Some((true, false, false))),
            (publish, leaving, Some((true, true, true))),
            (json!({}), json!({"status": {"phase": "Succeeded"}}), None),
            (json!({}), json!({"status": {"podIP": null}}), None),
        ] {
            let mut slices = Vec::new();
            step(
                &service(&service_patch),
                &[pod("1", &pod_patch)],
                &mut slices,
            );
            let got = slices[0]
                .endpoints
                .as_ref()
                .and_then(|all| all.first())
                .map(|endpoint| {
                    let conditions = endpoint.conditions.clone().expect("set");
                    (
                        conditions.ready.expect("set"),
                        conditions.serving.expect("set"),
                        conditions.terminating.expect("set"),
                    )
                });
            assert_eq!(got, want, "{service_patch} {pod_patch}");
        }
    }

    #[test]
    fn near_endpoints_are_preferred_where_it_is_asked_for() {
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let unbound = json!({"spec": {"nodeName": null}});
        let both = json!({"forNodes": [{"name": "node"}], "forZones": [{"name": "z"}]});
        let zone = json!({"forZones": [{"name": "z"}]});
        for (asked_for, patch, want) in [
            ("PreferSameNode", json!({}), both),
            ("PreferSameZone", json!({}), zone.clone()),
            ("PreferClose", json!({}), zone),
            ("", json!({}), Value::Null),
            ("PreferSameNode", unready, Value::Null),
            ("PreferSameNode", unbound, Value::Null),
        ] {
            let mut slices = Vec::new();
            let spec = json!({"trafficDistribution": asked_for});
            step(&service(&spec), &[pod("1", &patch)], &mut slices);
            let endpoint = &slices[0].endpoints.as_ref().expect("endpoints")[0];
            let hints = serde_json::to_value(&endpoint.hints).expect("hints");
            assert_eq!(hints, want, "{asked_for} {patch}");
        }
        // A change of mind changes the slices that there are.
        let mut slices = Vec::new();
        let pods = [pod("1", &json!({}))];
        step(&service(&json!({})), &pods, &mut slices);
        let near = service(&json!({"trafficDistribution": "PreferClose"}));
        assert_eq!(step(&near, &pods, &mut slices), 1);
        assert_eq!(step(&near, &pods, &mut slices), 0);
        assert_eq!(step(&service(&json!({})), &pods, &mut slices), 1);
    }

    #[test]
    fn a_headless_service_names_its_pods() {
        let service = service(&json!({"clusterIP": "None", "ipFamilies": ["IPv4"]}));
        let mut slices = Vec::new();
        let named = pod(
            "1",
            &json!({"spec": {"hostname": "db-0", "subdomain": "s"}}),
        );
        step(&service, &[named], &mut slices);
        let endpoint = &slices[0].endpoints.as_ref().expect("endpoints")[0];
        assert_eq!(endpoint.hostname.as_deref(), Some("db-0"));
        assert_eq!(endpoint.zone.as_deref(), Some("z"));
        assert!(slices[0].labels().contains_key(HEADLESS));
        assert_eq!(slices[0].labels()[SERVICE_NAME], "s");
    }
}
