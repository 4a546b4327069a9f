use serde_json::{Value, json};

use super::*;

/// A scheduler whose API answers nothing.
fn scheduler() -> (Scheduler, mpsc::UnboundedReceiver<Failure>) {
    let refuse = |_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no server"))
    };
    let client = Client::new(tower::service_fn(refuse), "default");
    let (failures, failed) = mpsc::unbounded_channel();
    let informers = Informers::new(client);
    let mut scheduler = Scheduler::new(&informers, Config::default(), failures);
    let node = cluster::tests::node("a", json!({}), json!({}));
    scheduler.node_applied(None, node);
    (scheduler, failed)
}

fn pod(uid: &str, cpu: &str, priority: i32, node: &str, status: Value) -> Arc<Pod> {
    let name = uid.split('.').next();
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": {"priority": priority, "nodeName": node, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            "status": status,
        }))
        .expect("a pod"),
    )
}

fn uid(text: &str) -> Uid {
    text.into()
}

#[tokio::test]
async fn the_end_of_a_promise_wakes_those_that_had_no_room() {
    let (mut scheduler, _failed) = scheduler();
    // Promised, and nobody on the node: only the promise is in the way.
    let high = Arc::new(PodInfo::new(pod("high", "4", 10, "", json!({}))));
    scheduler.cluster.promises.make(&high, "a");
    scheduler.pod_applied(None, pod("low", "1", 1, "", json!({})));
    scheduler.attempt();
    assert!(!scheduler.cluster.is_assumed("low"));
    scheduler.pod_gone(&uid("high"));
    let deadline = scheduler.queue.deadline().expect("it is to be tried again");
    assert!(deadline < Instant::now() + std::time::Duration::from_secs(10));
}

#[tokio::test]
async fn what_nobody_told_is_found_by_comparing() {
    let (mut scheduler, _failed) = scheduler();
    for missed in ["gone", "grown"] {
        scheduler.pod_applied(None, pod(missed, "1", 1, "a", json!({})));
    }
    let (pods, nodes) = (Informer::by_hand(), Informer::by_hand());
    nodes.slip_in((*cluster::tests::node("a", json!({}), json!({}))).clone());
    let version = |mut pod: Arc<Pod>, version: &str| {
        Arc::make_mut(&mut pod).metadata.resource_version = Some(version.into());
        (*pod).clone()
    };
    pods.slip_in(version(pod("grown", "2", 1, "a", json!({})), "2"));
    pods.slip_in(version(pod("new", "500m", 1, "a", json!({})), "3"));
    pods.slip_in(version(pod("waits", "1", 1, "", json!({})), "4"));
    scheduler.resync(&pods, &nodes);
    let used = |scheduler: &Scheduler| scheduler.cluster.nodes[0].requested.milli_cpu;
    assert_eq!(used(&scheduler), 2500);
    assert!(scheduler.queue.has_active());
    // What is as it should be is left alone.
    let before = scheduler.cluster.nodes[0].pods[&uid("new")].clone();
    scheduler.resync(&pods, &nodes);
    assert!(Arc::ptr_eq(
        &before,
        &scheduler.cluster.nodes[0].pods[&uid("new")]
    ));
    assert_eq!(used(&scheduler), 2500);
}

#[tokio::test]
async fn promises_outlive_a_restart() {
    let (mut scheduler, _failed) = scheduler();
    let promised = json!({"nominatedNodeName": "a"});
    scheduler.pod_applied(None, pod("high", "3", 10, "", promised.clone()));
    assert_eq!(scheduler.cluster.promises.of("high"), Some("a"));
    // Taken back by somebody else.
    let old = pod("high", "3", 10, "", promised);
    scheduler.pod_applied(Some(&old), pod("high", "3", 10, "", json!({})));
    assert_eq!(scheduler.cluster.promises.of("high"), None);
}

#[tokio::test]
async fn a_pod_of_the_same_name_is_another_pod() {
    let (mut scheduler, _failed) = scheduler();
    scheduler.pod_applied(None, pod("p.1", "3", 1, "", json!({})));
    scheduler.attempt();
    assert!(scheduler.cluster.is_assumed("p.1"));
    // Deleted and made again while its binding is on the way.
    scheduler.pod_gone(&uid("p.1"));
    scheduler.pod_applied(None, pod("p.2", "3", 1, "", json!({})));
    scheduler.failed(&Failure::Binding(uid("p.1")));
    scheduler.attempt();
    assert!(scheduler.cluster.is_assumed("p.2"));
}

#[tokio::test]
async fn a_preemption_that_failed_is_tried_again() {
    let (mut scheduler, mut failed) = scheduler();
    scheduler.pod_applied(None, pod("victim", "3", 1, "a", json!({})));
    scheduler.pod_applied(None, pod("high", "4", 10, "", json!({})));
    scheduler.attempt();
    let patience = Instant::now() + std::time::Duration::from_secs(100);
    assert!(scheduler.queue.deadline().is_some_and(|at| at > patience));
    // The API answers nothing, so the victim was not asked to leave.
    let failure = failed.recv().await.expect("a failure");
    assert_eq!(failure, Failure::Preemption(uid("high")));
    scheduler.failed(&failure);
    let soon = Instant::now() + std::time::Duration::from_secs(10);
    assert!(scheduler.queue.deadline().is_some_and(|at| at < soon));
    assert_eq!(scheduler.cluster.promises.of("high"), Some("a"));
}
