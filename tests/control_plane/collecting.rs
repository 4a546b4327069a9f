//! What the garbage collector has judged may change before its deletion gets there.

use std::sync::Mutex;

use futures::future::BoxFuture;

use super::*;

/// Does something just before the collector's first deletion of a ConfigMap `m`, and notes the
/// answers to all of them.
#[derive(Clone, Default)]
struct Intruder {
    act: Arc<Mutex<Option<BoxFuture<'static, ()>>>>,
    answers: Arc<Mutex<Vec<u16>>>,
}

impl Intruder {
    fn between(&self, client: Client) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (this, client) = (this.clone(), client.clone());
            async move {
                let is_deletion = request.method() == http::Method::DELETE
                    && request.uri().path().ends_with("/configmaps/m");
                let act = match is_deletion {
                    true => this.act.lock().unwrap().take(),
                    false => None,
                };
                if let Some(act) = act {
                    act.await;
                }
                let answer = client.send(request).await?;
                if is_deletion {
                    let code = answer.status().as_u16();
                    this.answers.lock().unwrap().push(code);
                }
                Ok::<_, tower::BoxError>(answer)
            }
        });
        Client::new(service, "default")
    }

    fn answers(&self) -> Vec<u16> {
        self.answers.lock().unwrap().clone()
    }
}

struct Case {
    intruder: Intruder,
    lab: Lab,
    maps: Api<ConfigMap>,
}

impl Case {
    /// ConfigMaps `owner` and `other`, and `m`, which belongs to `owner`.
    async fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let intruder = Intruder::default();
        let lab = Lab::with_collector(|client| intruder.between(client)).await?;
        let maps: Api<ConfigMap> = lab.api("default");
        for name in ["owner", "other"] {
            let map = object(json!({"metadata": {"name": name}}))?;
            maps.create(&PostParams::default(), &map).await?;
        }
        let case = Self {
            intruder,
            lab,
            maps,
        };
        case.make(Some("owner")).await?;
        Ok(case)
    }

    async fn reference(&self, owner: &str) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let uid = self.maps.get(owner).await?.uid();
        Ok(json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid}]))
    }

    async fn make(&self, owner: Option<&str>) -> TestResult {
        let mut map = json!({"metadata": {"name": "m"}});
        if let Some(owner) = owner {
            map["metadata"]["ownerReferences"] = self.reference(owner).await?;
        }
        self.maps
            .create(&PostParams::default(), &object(map)?)
            .await?;
        Ok(())
    }

    /// Deletes `owner`, and does `act` between the judgement of `m` and its deletion.
    async fn collect(&self, act: impl Future<Output = ()> + Send + 'static) -> TestResult {
        *self.intruder.act.lock().unwrap() = Some(Box::pin(act));
        self.maps.delete("owner", &DeleteParams::default()).await?;
        until("the deletion was answered", || async {
            Ok(!self.intruder.answers().is_empty())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_another_owner_by_then_stays() -> TestResult {
    let case = Case::new().await?;
    let (maps, owners) = (case.maps.clone(), case.reference("other").await?);
    case.collect(async move {
        let patch = json!({"metadata": {"ownerReferences": owners}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        maps.patch("m", &params, &patch).await.unwrap();
    })
    .await?;
    assert_eq!(case.intruder.answers(), [409]);
    let map = case.maps.get("m").await?;
    assert_eq!(map.owner_references()[0].name, "other");
    // It is judged by its new owner from now on.
    case.maps.delete("other", &DeleteParams::default()).await?;
    until("it went with its owner", || async {
        Ok(case.maps.get_opt("m").await?.is_none())
    })
    .await?;
    // The collector hears of it a little later than we do.
    until("the second deletion was answered", || async {
        Ok(case.intruder.answers().len() > 1)
    })
    .await?;
    assert_eq!(case.intruder.answers(), [409, 200]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_one_of_its_name_stays() -> TestResult {
    let case = Case::new().await?;
    let first = case.maps.get("m").await?.uid();
    let (maps, client) = (case.maps.clone(), case.lab.client.clone());
    case.collect(async move {
        maps.delete("m", &DeleteParams::default()).await.unwrap();
        let again: Api<ConfigMap> = Api::namespaced(client, "default");
        let map = object(json!({"metadata": {"name": "m"}})).unwrap();
        again.create(&PostParams::default(), &map).await.unwrap();
    })
    .await?;
    assert_eq!(case.intruder.answers(), [409]);
    let second = case.maps.get("m").await?.uid();
    assert_ne!(first, second);
    // It has no owner, so that nobody will ask for its end: a whole other object goes meanwhile.
    case.make_and_lose_another().await?;
    assert_eq!(case.maps.get("m").await?.uid(), second);
    assert_eq!(case.intruder.answers(), [409]);
    Ok(())
}

impl Case {
    /// Waits until the collector has been through one more object.
    async fn make_and_lose_another(&self) -> TestResult {
        let owners = self.reference("other").await?;
        let map = json!({"metadata": {"name": "last", "ownerReferences": owners}});
        self.maps
            .create(&PostParams::default(), &object(map)?)
            .await?;
        self.maps.delete("other", &DeleteParams::default()).await?;
        until("the last one is gone", || async {
            Ok(self.maps.get_opt("last").await?.is_none())
        })
        .await
    }
}
