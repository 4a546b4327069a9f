//! Carries out what was judged of one object, after asking the server for its absent owners.

use std::collections::HashSet;

use k8s_openapi::{
    api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, PropagationPolicy},
};
use serde_json::{Value, json};

use super::{
    FOREGROUND, Kind, ORPHAN, Shared,
    graph::{Node, Owner, Place, Uid, Verdict, judge},
    node,
};
use crate::{
    controllers::error::{Doing, Error, OrGone},
    deletion::Judged,
    events::Level,
};

type Metadata = PartialObjectMeta<DynamicObject>;

/// Judges one object and carries the verdict out.
pub async fn process(shared: &Shared, uid: &Uid) -> Result<(), Error> {
    let Some(held) = shared.graph().get(uid).cloned() else {
        return Ok(());
    };
    let absent = absent_owners(shared, uid, &held).await?;
    let verdict = judge(&shared.graph(), uid, &absent);
    if verdict == Verdict::Keep {
        return Ok(());
    }
    let Some(kind) = shared.kind(&held.place.group, &held.place.kind) else {
        return Ok(());
    };
    let api = api(shared, &kind, &held.place);
    let Some(live) = live(&api, uid, &held).await? else {
        shared.remove(uid);
        return Ok(());
    };
    let name = (held.place.group.clone(), held.place.kind.clone());
    if node(&name, &live) != held {
        // The graph is behind: judge again by what is true.
        shared.apply(&name, &live);
        shared.queue.add(uid.clone());
        return Ok(());
    }
    match verdict {
        Verdict::Keep => Ok(()),
        Verdict::Unreference(owners) => {
            let left = live.owner_references().iter();
            let left: Vec<&OwnerReference> =
                left.filter(|one| !owners.contains(&one.uid)).collect();
            let changed = patch(&api, &live, json!({"ownerReferences": left})).await;
            changed.map(drop)
        }
        Verdict::DeleteInBackground => {
            let policy = if held.orphan {
                PropagationPolicy::Orphan
            } else if held.foreground {
                PropagationPolicy::Foreground
            } else {
                PropagationPolicy::Background
            };
            delete(&api, &live, policy).await
        }
        Verdict::DeleteInForeground { unblock } => {
            let mut live = live;
            if unblock {
                let mut owners = live.owner_references().to_vec();
                for owner in &mut owners {
                    owner.block_owner_deletion = Some(false);
                }
                let changed = patch(&api, &live, json!({"ownerReferences": owners})).await?;
                let Some(changed) = changed else {
                    return Ok(());
                };
                live = changed;
            }
            delete(&api, &live, PropagationPolicy::Foreground).await
        }
        Verdict::FinishForeground => drop_finalizer(&api, &live, FOREGROUND).await,
        Verdict::Orphan => {
            orphan(shared, uid).await?;
            drop_finalizer(&api, &live, ORPHAN).await
        }
    }
}

/// Owners that the graph does not hold, and that the server does not have either.
async fn absent_owners(shared: &Shared, uid: &Uid, held: &Node) -> Result<HashSet<Uid>, Error> {
    let mut absent = HashSet::new();
    for owner in &held.owners {
        let known = shared.graph().get(&owner.uid).is_some_and(|found| {
            found.place.key.namespace.is_empty()
                || found.place.key.namespace == held.place.key.namespace
        });
        if shared.is_gone(&owner.uid) || !known && is_absent(shared, uid, held, owner).await? {
            absent.insert(owner.uid.clone());
        }
    }
    Ok(absent)
}

async fn is_absent(shared: &Shared, uid: &Uid, held: &Node, owner: &Owner) -> Result<bool, Error> {
    let Some(kind) = shared.kind(&owner.place.group, &owner.place.kind) else {
        // A kind that is not served (now) proves nothing about its objects.
        shared.park(uid, &owner.place);
        return Ok(false);
    };
    let elsewhere = shared.graph().get(&owner.uid).is_some();
    if (kind.namespaced && held.place.key.namespace.is_empty()) || elsewhere {
        warn_of_namespace(shared, uid, held, owner);
        if held.place.key.namespace.is_empty() {
            return Ok(false);
        }
    }
    let found = api(shared, &kind, &owner.place)
        .get_metadata_opt(&owner.place.key.name)
        .await
        .doing(|| format!("ask for owner {} {}", owner.place.kind, owner.place.key))?;
    Ok(found.is_none_or(|found| found.uid().as_ref() != Some(&owner.uid)))
}

fn warn_of_namespace(shared: &Shared, uid: &Uid, held: &Node, owner: &Owner) {
    let about = ObjectReference {
        kind: Some(held.place.kind.clone()),
        namespace: Some(held.place.key.namespace.clone()).filter(|text| !text.is_empty()),
        name: Some(held.place.key.name.clone()),
        uid: Some(uid.clone()),
        ..ObjectReference::default()
    };
    let text = format!(
        "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
        owner.api_version,
        owner.place.kind,
        owner.place.key.namespace,
        owner.place.key.name,
        owner.uid,
        held.place.key.namespace,
    );
    shared
        .events
        .record_ref(about, Level::Warning, "OwnerRefInvalidNamespace", text);
}

fn api(shared: &Shared, kind: &Kind, place: &Place) -> Api<DynamicObject> {
    let client = shared.client.clone();
    if kind.namespaced {
        Api::namespaced_with(client, &place.key.namespace, &kind.resource)
    } else {
        Api::all_with(client, &kind.resource)
    }
}

/// The object as the server has it now; `None` if it is gone or is another one of that name.
async fn live(api: &Api<DynamicObject>, uid: &Uid, held: &Node) -> Result<Option<Metadata>, Error> {
    let found = api
        .get_metadata_opt(&held.place.key.name)
        .await
        .doing(|| format!("read {} {}", held.place.kind, held.place.key))?;
    Ok(found.filter(|found| found.uid().as_ref() == Some(uid)))
}

/// The object as it is then; `None` if it is gone.
async fn patch(
    api: &Api<DynamicObject>,
    live: &Metadata,
    mut changes: Value,
) -> Result<Option<Metadata>, Error> {
    changes["uid"] = json!(live.metadata.uid);
    changes["resourceVersion"] = json!(live.metadata.resource_version);
    let name = live.name_any();
    let body = json!({"metadata": changes});
    api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .or_gone()
        .doing(|| format!("change the metadata of {name}"))
}

async fn delete(
    api: &Api<DynamicObject>,
    live: &Metadata,
    policy: PropagationPolicy,
) -> Result<(), Error> {
    let name = live.name_any();
    let params = DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default()
    };
    let params = Judged::State.params(&live.metadata, params);
    api.delete(&name, &params)
        .await
        .or_gone()
        .doing(|| format!("delete {name}, whose owners are gone"))?;
    Ok(())
}

async fn drop_finalizer(
    api: &Api<DynamicObject>,
    live: &Metadata,
    finalizer: &str,
) -> Result<(), Error> {
    let left = live.finalizers().iter();
    let left: Vec<&String> = left.filter(|one| *one != finalizer).collect();
    let changed = patch(api, live, json!({"finalizers": left})).await;
    changed.map(drop)
}

/// Takes the object's name from all its dependents.
async fn orphan(shared: &Shared, uid: &Uid) -> Result<(), Error> {
    let dependents: Vec<(Uid, Node)> = shared
        .graph()
        .dependents(uid)
        .map(|(uid, node)| (uid.clone(), node.clone()))
        .collect();
    for (dependent, held) in dependents {
        let Some(kind) = shared.kind(&held.place.group, &held.place.kind) else {
            continue;
        };
        let api = api(shared, &kind, &held.place);
        let Some(live) = live(&api, &dependent, &held).await? else {
            continue;
        };
        let left = live.owner_references().iter();
        let left: Vec<&OwnerReference> = left.filter(|one| one.uid != *uid).collect();
        if left.len() != live.owner_references().len() {
            patch(&api, &live, json!({"ownerReferences": left})).await?;
        }
    }
    Ok(())
}
