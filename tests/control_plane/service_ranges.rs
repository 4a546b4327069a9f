//! ServiceCIDRs and IPAddresses: what v1.37's conformance does with them, and how ranges end.

use std::pin::pin;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    core::v1::Event,
    networking::v1::{IPAddress, ServiceCIDR},
};
use kube::api::{WatchEvent, WatchParams};

use super::*;

const DEFAULT: &str = "kubernetes";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Ranges go some ten seconds after their deletion.
const PATIENCE: Duration = Duration::from_secs(40);

fn annotated<K: ResourceExt>(object: &K, name: &str) -> bool {
    object
        .annotations()
        .get(name)
        .is_some_and(|value| value == "true")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_support_servicecidr_api_operations() -> TestResult {
    let lab = Lab::new().await?;
    let cidrs: Api<ServiceCIDR> = Api::all(lab.client.clone());
    let default = cidrs.get(DEFAULT).await?;
    assert_eq!(
        default.spec.and_then(|spec| spec.cidrs),
        Some(vec!["10.96.0.0/16".to_owned()])
    );
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    let patched = cidrs
        .patch(DEFAULT, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    assert!(annotated(&patched, "patched"));
    let updated = loop {
        let mut wanted = cidrs.get(DEFAULT).await?;
        wanted
            .annotations_mut()
            .insert("updated".into(), "true".into());
        match cidrs
            .replace(DEFAULT, &PostParams::default(), &wanted)
            .await
        {
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            updated => break updated?,
        }
    };
    assert!(annotated(&updated, "updated"));
    assert!(!cidrs.list(&ListParams::default()).await?.items.is_empty());
    let mut seen = pin!(cidrs.watch(&WatchParams::default(), "0").await?);
    assert!(matches!(seen.try_next().await?, Some(WatchEvent::Added(_))));
    until("the default range is ready and kept", || async {
        let default = cidrs.get(DEFAULT).await?;
        Ok(condition(&default) == "True " && default.finalizers() == [FINALIZER])
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn should_support_ipaddress_api_operations() -> TestResult {
    let lab = Lab::new().await?;
    let addresses: Api<IPAddress> = Api::all(lab.client.clone());
    let (v4, v6) = ("255.255.255.255", "fe80::42:1dff:fe84:f9e2");
    for (name, kind) in [(v4, "broadcast"), (v6, "link-local")] {
        let address = object(json!({"metadata": {"name": name, "labels": {"type": kind}},
            "spec": {"parentRef": {"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"}}}))?;
        addresses.create(&PostParams::default(), &address).await?;
    }
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    let patched = addresses
        .patch(v4, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    assert!(annotated(&patched, "patched"));
    let mut wanted = addresses.get(v4).await?;
    wanted
        .annotations_mut()
        .insert("updated".into(), "true".into());
    let updated = addresses
        .replace(v4, &PostParams::default(), &wanted)
        .await?;
    assert!(annotated(&updated, "updated"));
    addresses.get(v4).await?;
    let broadcast = ListParams::default().labels("type=broadcast");
    assert_eq!(addresses.list(&broadcast).await?.items.len(), 1);
    let watched = WatchParams::default().labels("type=broadcast");
    let mut seen = pin!(addresses.watch(&watched, "0").await?);
    assert!(matches!(seen.next().await, Some(Ok(WatchEvent::Added(_)))));
    addresses.delete(v4, &DeleteParams::default()).await?;
    let local = ListParams::default().labels("type=link-local");
    let _ = addresses
        .delete_collection(&DeleteParams::default(), &local)
        .await?;
    assert!(addresses.list(&local).await?.items.is_empty());
    Ok(())
}

/// Status and reason of the Ready condition.
fn condition(cidr: &ServiceCIDR) -> String {
    let conditions = cidr
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|one| one.type_ == "Ready");
    ready
        .next()
        .map_or_else(String::new, |one| format!("{} {}", one.status, one.reason))
}

struct Ranges {
    cidrs: Api<ServiceCIDR>,
    services: Api<Service>,
}

impl Ranges {
    async fn add(&self, name: &str, cidr: &str) -> TestResult {
        let range = object(json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}}))?;
        self.cidrs.create(&PostParams::default(), &range).await?;
        until("it is ready and kept", || async {
            let range = self.cidrs.get(name).await?;
            Ok(condition(&range) == "True " && range.finalizers() == [FINALIZER])
        })
        .await
    }

    async fn remove(&self, name: &str) -> TestResult {
        let _ = self.cidrs.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    async fn serve(&self, name: &str, address: Option<&str>) -> Result<String, kube::Error> {
        let mut spec = json!({"ports": [{"port": 80}]});
        if let Some(address) = address {
            spec["clusterIP"] = address.into();
        }
        let service = json!({"metadata": {"name": name}, "spec": spec});
        let service = object(service).map_err(kube::Error::SerdeError)?;
        let made: Service = self
            .services
            .create(&PostParams::default(), &service)
            .await?;
        Ok(made
            .spec
            .and_then(|spec| spec.cluster_ip)
            .unwrap_or_default())
    }

    async fn is(&self, name: &str, want: &str) -> Result<bool, kube::Error> {
        Ok(condition(&self.cidrs.get(name).await?) == want)
    }

    async fn is_gone(&self, name: &str) -> Result<bool, kube::Error> {
        Ok(self.cidrs.get_opt(name).await?.is_none())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_stays_while_an_address_depends_on_it() -> TestResult {
    let lab = Lab::new().await?;
    let ranges = Ranges {
        cidrs: Api::all(lab.client.clone()),
        services: lab.api("default"),
    };
    // The lab has 10.96.0.0/16.
    ranges.add("apart", "10.98.0.0/28").await?;
    ranges.add("inside", "10.96.1.0/24").await?;
    ranges.serve("in-apart", Some("10.98.0.5")).await?;
    ranges.serve("in-both", Some("10.96.1.5")).await?;
    let refused = ranges.serve("nowhere", Some("10.99.0.5")).await;
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let words =
        "failed to allocate IP 10.99.0.5: the provided network does not match the current range";
    assert!(refused.contains(words), "{refused}");

    let default: ServiceCIDR = ranges.cidrs.get(DEFAULT).await?;
    for name in ["apart", "inside", DEFAULT] {
        ranges.remove(name).await?;
    }
    within(PATIENCE, "its Service keeps it", || {
        ranges.is("apart", "False Terminating")
    })
    .await?;
    within(PATIENCE, "all Services keep it", || {
        ranges.is(DEFAULT, "False Terminating")
    })
    .await?;
    let refused = ranges.serve("late", Some("10.98.0.6")).await;
    assert!(refused.is_err(), "it gave an address while it went");
    let full = ranges.serve("late", None).await;
    let full = full
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(
        full.contains("failed to allocate a serviceIP: range is full"),
        "{full}"
    );

    // One that has all the addresses lets the default one go, which then is made again.
    ranges.add("wide", "10.96.0.0/15").await?;
    assert!(ranges.serve("late", None).await?.starts_with("10.9"));
    within(PATIENCE, "the other range has its addresses", || {
        ranges.is_gone("inside")
    })
    .await?;
    within(PATIENCE, "the default range is another one", || async {
        let now = ranges.cidrs.get_opt(DEFAULT).await?;
        Ok(now.is_some_and(|now| now.uid() != default.uid() && condition(&now) == "True "))
    })
    .await?;
    assert!(ranges.is("apart", "False Terminating").await?);
    ranges
        .services
        .delete("in-apart", &DeleteParams::default())
        .await?;
    within(PATIENCE, "nothing depends on it", || {
        ranges.is_gone("apart")
    })
    .await?;
    let events: Api<Event> = lab.api("default");
    let failures = ListParams::default().fields("reason=KubernetesServiceCIDRError");
    assert!(events.list(&failures).await?.items.is_empty());
    Ok(())
}
