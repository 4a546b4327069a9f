//! kube-rs: its controller, finalizer, recorder and server-side apply, over the wire, under churn.

use std::{
    collections::BTreeSet,
    fs::File,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use k8s_openapi::{
    api::{core::v1::ConfigMap, events::v1::Event as EventObject},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        Controller,
        controller::{self, Action},
        events::{Event, EventType, Recorder},
        finalizer::{self, finalizer},
        wait::{await_condition, conditions},
        watcher,
    },
};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{
    churn,
    lab::{Cluster, patiently},
};

const MANAGER: &str = "tests.example.com";
const FINALIZER: &str = "tests.example.com/clean";

/// Runs `work` on the cluster's host, as its administrator.
fn on_host<Work: Future<Output = ()>>(cluster: &Cluster, work: impl FnOnce(Client) -> Work + Send) {
    let path = cluster.root.path().join("etc/admin.kubeconfig");
    let limit = patiently(churn() + Duration::from_secs(60));
    let run = || {
        let namespace = File::open(format!("/proc/{}/ns/net", cluster.host.pid())).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let kubeconfig = Kubeconfig::read_from(path).unwrap();
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let client = Client::try_from(config.unwrap()).unwrap();
            let done = tokio::time::timeout(limit, work(client)).await;
            done.expect("done in time");
        });
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(run).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Thing"))
}

fn things(client: &Client) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), "default", &kind())
}

fn thing(name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "example.com/v1", "kind": "Thing",
        "metadata": {"name": name}, "spec": {"text": text},
    })
}

async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "things.example.com";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"text": {"type": "string"}}},
                    "status": {"type": "object", "properties": {"text": {"type": "string"}}},
                }}},
            }],
        },
    });
    let how = PatchParams::apply(MANAGER);
    let definition = Patch::Apply(&definition);
    definitions.patch(name, &how, &definition).await.unwrap();
    let established = await_condition(definitions, name, conditions::is_crd_established());
    established.await.unwrap();
}

/// What the controller's reconciler knows, and what it has seen.
struct Context {
    client: Client,
    recorder: Recorder,
    cleaned: Mutex<BTreeSet<String>>,
}

/// A Thing is a ConfigMap of its name with its text; its status says so.
async fn reconcile(
    thing: Arc<DynamicObject>,
    context: Arc<Context>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let api = things(&context.client);
    let context = &context;
    finalizer(&api, FINALIZER, thing, |event| async move {
        match event {
            finalizer::Event::Apply(thing) => make(&thing, context).await?,
            finalizer::Event::Cleanup(thing) => {
                let mut cleaned = context
                    .cleaned
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                cleaned.insert(thing.name_any());
            }
        }
        Ok(Action::await_change())
    })
    .await
}

async fn make(thing: &DynamicObject, context: &Context) -> Result<(), kube::Error> {
    let name = thing.name_any();
    let text = &thing.data["spec"]["text"];
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), "default");
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "ownerReferences": [thing.controller_owner_ref(&kind())]},
        "data": {"text": text},
    });
    let how = PatchParams::apply(MANAGER).force();
    let made = maps.patch(&name, &how, &Patch::Apply(&map)).await?;
    // The same again is no change, which would be another event, and so on for ever.
    let again = maps.patch(&name, &how, &Patch::Apply(&map)).await?;
    if made.uid() == again.uid() {
        assert_eq!(made.resource_version(), again.resource_version());
    }
    if thing.data["status"]["text"] == *text {
        return Ok(());
    }
    let status = json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "status": {"text": text},
    });
    let api = things(&context.client);
    api.patch_status(&name, &how, &Patch::Apply(&status))
        .await?;
    let event = Event {
        type_: EventType::Normal,
        reason: "Made".into(),
        note: Some(format!("made of {text}")),
        action: "Make".into(),
        secondary: None,
    };
    let reference = thing.object_ref(&kind());
    context.recorder.publish(&event, &reference).await
}

/// Waits until the controller has seen this text.
async fn settled(client: &Client, name: &str, text: &str) {
    let has = |thing: Option<&DynamicObject>| {
        thing.is_some_and(|thing| thing.data["status"]["text"] == text)
    };
    await_condition(things(client), name, has).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = maps.get(name).await.unwrap();
    assert_eq!(map.data.unwrap()["text"], text);
}

/// One object's life; also, what it owns is made anew when somebody deletes it.
async fn live(client: &Client, name: &str) {
    let api = things(client);
    let how = PatchParams::apply("user");
    for text in ["one", "two", "three"] {
        let wanted = Patch::Apply(thing(name, text));
        let applied = api.patch(name, &how, &wanted).await.unwrap();
        assert_eq!(applied.data["spec"]["text"], text);
        settled(client, name, text).await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let old = maps.get(name).await.unwrap().uid().unwrap();
    maps.delete(name, &DeleteParams::default()).await.unwrap();
    let is_anew = |map: Option<&ConfigMap>| map.is_some_and(|map| map.uid() != Some(old.clone()));
    await_condition(maps.clone(), name, is_anew).await.unwrap();

    let uid = api.get(name).await.unwrap().uid().unwrap();
    api.delete(name, &DeleteParams::default()).await.unwrap();
    let gone = await_condition(api, name, conditions::is_deleted(&uid));
    gone.await.unwrap();
    let uid = maps.get_metadata_opt(name).await.unwrap();
    if let Some(uid) = uid.and_then(|map| map.uid()) {
        let gone = await_condition(maps, name, conditions::is_deleted(&uid));
        gone.await.unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn a_controller_of_kube_rs_makes_and_cleans_up_without_an_error() {
    let cluster = Cluster::started();
    on_host(&cluster, |client| async move {
        define(&client).await;
        let context = Arc::new(Context {
            client: client.clone(),
            recorder: Recorder::new(client.clone(), MANAGER.into()),
            cleaned: Mutex::default(),
        });
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let controller = Controller::new_with(things(&client), watcher::Config::default(), kind())
            .owns(maps, watcher::Config::default())
            .run(
                reconcile,
                |_, _, _| Action::requeue(Duration::from_millis(100)),
                context.clone(),
            )
            .for_each(|outcome| async {
                match outcome {
                    Ok(_) => {}
                    // Of what it owned there was news when it was gone, or about to be.
                    Err(controller::Error::ObjectNotFound(_)) => {}
                    Err(controller::Error::ReconcilerFailed(
                        finalizer::Error::RemoveFinalizer(kube::Error::Api(status)),
                        _,
                    )) if status.code == 404 => {}
                    Err(error) => panic!("{error:?}"),
                }
            });
        let end = Instant::now() + churn();
        let lives = async {
            let mut names = BTreeSet::new();
            for round in 0.. {
                let some: Vec<_> = (0..5).map(|at| format!("t-{round}-{at}")).collect();
                join_all(some.iter().map(|name| live(&client, name))).await;
                names.extend(some);
                if Instant::now() > end {
                    break;
                }
            }
            names
        };
        let names = tokio::select! {
            names = lives => names,
            () = controller => panic!("the controller has ended"),
        };
        assert_eq!(*context.cleaned.lock().unwrap(), names);
        let events: Api<EventObject> = Api::namespaced(client.clone(), "default");
        let of_ours = ListParams::default().fields("reason=Made").limit(1);
        let found = events.list(&of_ours).await.unwrap();
        assert_eq!(found.items.len(), 1, "{found:?}");
    });
}
