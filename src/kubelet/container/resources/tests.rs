use serde_json::{Value, json};

use super::*;

const NODE: u64 = 8 << 30;

fn pod(containers: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}}))
        .unwrap()
}

fn one(resources: Value) -> Pod {
    pod(json!([{"name": "c", "resources": resources}]))
}

fn facts(swap: SwapBehavior) -> Facts {
    Facts {
        cpu_milli: 4000,
        memory_bytes: NODE,
        swap_bytes: NODE / 2,
        swap,
        ..Facts::default()
    }
}

fn of(pod: &Pod, facts: &Facts) -> Result<LinuxResources, Refused> {
    container_resources(pod, &pod.spec.as_ref().unwrap().containers[0], facts)
}

#[test]
fn classes() {
    use QosClass::*;
    let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    for (containers, want) in [
        (json!([{"name": "a"}]), BestEffort),
        (json!([{"name": "a", "resources": full}]), Guaranteed),
        (
            json!([{"name": "a", "resources": full}, {"name": "b"}]),
            Burstable,
        ),
        (
            json!([{"name": "a", "resources": {"limits": {"cpu": "1"}}}]),
            Burstable,
        ),
        (
            json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]),
            Burstable,
        ),
        (
            json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
            BestEffort,
        ),
        (
            json!([{"name": "a", "resources": {"requests": {"example.com/x": "1"}}}]),
            BestEffort,
        ),
    ] {
        assert_eq!(qos_class(&pod(containers.clone())), want, "{containers}");
    }
}

#[test]
fn cpu_numbers() {
    for (request, limit, shares, quota) in [
        ("0", "0", 2, None),
        ("1m", "0", 2, None),
        ("100m", "0", 102, None),
        ("250m", "500m", 256, Some(50_000)),
        ("1", "1", 1024, Some(100_000)),
        ("0", "1m", 2, Some(1000)), // the request is the limit, and 1 ms the least quota
        ("1000", "0", 262_144, None),
    ] {
        let pod = one(json!({"requests": {"cpu": request}, "limits": {"cpu": limit}}));
        let cpu = of(&pod, &facts(SwapBehavior::NoSwap))
            .unwrap()
            .cpu()
            .clone()
            .unwrap();
        assert_eq!(cpu.shares(), Some(shares), "{request}");
        assert_eq!(cpu.quota(), quota, "{limit}");
        assert_eq!(cpu.period(), quota.map(|_| 100_000), "{limit}");
    }
}

#[test]
fn swap_numbers() {
    const MI: i64 = 1 << 20;
    let burstable = json!({"requests": {"memory": "64Mi"}, "limits": {"memory": "128Mi"}});
    let guaranteed = json!({"limits": {"memory": "128Mi", "cpu": "1"}});
    let equal = json!({"limits": {"memory": "128Mi"}});
    let open = json!({"requests": {"memory": "64Mi"}});
    use SwapBehavior::*;
    for (resources, behavior, annotation, memory_and_swap, alone) in [
        (&burstable, NoSwap, None, Some(128 * MI), None),
        (&burstable, LimitedSwap, None, Some((128 + 32) * MI), None), // half as much swap as memory
        (&guaranteed, LimitedSwap, None, Some(128 * MI), None),
        (&equal, LimitedSwap, None, Some(128 * MI), None),
        (&open, NoSwap, None, None, Some("0")),
        (&open, LimitedSwap, None, None, Some("33554432")),
        (&guaranteed, NoSwap, Some("10Mi"), Some(138 * MI), None),
        (&burstable, LimitedSwap, Some("0"), Some(128 * MI), None),
    ] {
        let mut pod = one(resources.clone());
        pod.metadata.annotations =
            annotation.map(|text: &str| [("vetch.dev/swap-limit.c".into(), text.into())].into());
        let got = of(&pod, &facts(behavior)).unwrap();
        let case = format!("{resources} {behavior:?} {annotation:?}");
        assert_eq!((*got.memory()).unwrap().swap(), memory_and_swap, "{case}");
        let unified = got
            .unified()
            .as_ref()
            .map(|all| all["memory.swap.max"].as_str());
        assert_eq!(unified, alone, "{case}");
    }
    for (resources, text) in [(&open, "64Mi"), (&equal, "much"), (&equal, "-1")] {
        let mut pod = one(resources.clone());
        pod.metadata.annotations = Some([("vetch.dev/swap-limit.c".into(), text.into())].into());
        assert!(of(&pod, &facts(NoSwap)).is_err(), "{resources} {text}");
    }
}

#[test]
fn the_pod_around_its_containers() {
    let limited = json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "32Mi"}});
    let all =
        pod(json!([{"name": "a", "resources": limited}, {"name": "b", "resources": limited}]));
    let node = facts(SwapBehavior::NoSwap);
    let got = pod_resources(&all, &node);
    let cpu = got.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.quota()), (Some(204), Some(40_000)));
    assert_eq!((*got.memory()).unwrap().limit(), Some(64 << 20));
    // One container without limits leaves the pod without.
    let some = pod(json!([{"name": "a", "resources": limited}, {"name": "b"}]));
    let got = pod_resources(&some, &node);
    let cpu = got.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.quota()), (Some(102), None));
    assert!(got.memory().is_none());
    // Processes are limited for all pods alike, whatever they ask for.
    for pod in [all, some, one(json!({}))] {
        for limit in [None, std::num::NonZeroU32::new(100)] {
            let node = Facts {
                pod_pids_limit: limit,
                ..node.clone()
            };
            let pids = *pod_resources(&pod, &node).pids();
            assert_eq!(pids.map(|pids| pids.limit()), limit.map(|_| 100));
        }
    }
}

#[test]
fn scores() {
    let facts = facts(SwapBehavior::NoSwap);
    for (resources, want) in [
        (json!({}), 1000),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997),
        (json!({"requests": {"cpu": "1"}}), 999),
        (json!({"requests": {"memory": "2Gi"}}), 750),
        (json!({"requests": {"memory": "8Gi"}}), 3),
    ] {
        let pod = one(resources.clone());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(oom_score_adj(&pod, container, &facts), want, "{resources}");
    }
}
