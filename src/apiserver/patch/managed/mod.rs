//! Server-side apply: who owns which field, and what an applied configuration makes of an object.
//!
//! Ownership is kept from the first apply on: until then an object has no `managedFields`, and
//! what it holds then belongs to `before-first-apply`. Pure but for the clock, which comes in.
//! Source: structured-merge-diff, as upstream's API server uses it.

mod node;
mod set;

use serde_json::{Value, json};

use self::{
    node::{Node, compare, fields, merge, remove},
    set::Set,
};
use crate::apiserver::{
    metadata,
    registry::{
        Resource, Subresource,
        custom::{Content, Custom},
    },
    status::{Cause, CauseType, Details, Reason, Status},
};

const BEFORE: &str = "before-first-apply";
/// Conflicts named at most; how many there are is said.
const MAX_NAMED: usize = 100;

/// One who applies or updates.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// Empty for the main endpoint.
    pub subresource: &'a str,
    pub now: &'a str,
}

#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    api_version: String,
    time: String,
    set: Set,
}

impl Entry {
    fn parse(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: text("time"),
            set: Set::parse(&value["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({"manager": self.manager, "operation": self.operation,
            "apiVersion": self.api_version, "time": self.time, "fieldsType": "FieldsV1",
            "fieldsV1": self.set.to_json()});
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }

    fn is(&self, manager: Manager<'_>, operation: &str) -> bool {
        self.manager == manager.name
            && self.subresource == manager.subresource
            && self.operation == operation
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter().flatten().map(Entry::parse).collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.set.is_empty());
    let list: Vec<Value> = entries.iter().map(Entry::to_json).collect();
    metadata::of(object).insert("managedFields".to_owned(), list.into());
}

/// `content`: of a custom resource.
fn root<'a>(row: &Resource, content: Option<&'a Content>) -> Node<'a> {
    match content {
        Some(content) => Node::Root(&content.schema),
        None => proto::schema()
            .get(row.type_name)
            .map_or(Node::Unknown, Node::Type),
    }
}

/// Nobody owns what names an object and what the server alone writes.
fn strip(row: &Resource, subresource: &str, set: &mut Set) {
    for field in ["f:apiVersion", "f:kind"] {
        set.cut(&[field]);
    }
    for field in [
        "f:name",
        "f:namespace",
        "f:creationTimestamp",
        "f:selfLink",
        "f:uid",
        "f:generation",
        "f:managedFields",
        "f:resourceVersion",
        "f:deletionTimestamp",
        "f:deletionGracePeriodSeconds",
    ] {
        set.cut(&["f:metadata", field]);
    }
    if row.subresources.contains(&Subresource::Status) {
        match subresource {
            "status" => {
                set.inner
                    .retain(|step, _| step == "f:status" || step == "f:metadata");
            }
            _ => set.cut(&["f:status"]),
        }
    }
}

/// The object that `config` makes of `live` (`None`: there is none yet), with its new owners.
/// 409 where others own what it changes, unless `force`.
pub fn apply(
    row: &Resource,
    live: Option<&Value>,
    config: &Value,
    manager: Manager<'_>,
    force: bool,
) -> Result<Value, Status> {
    let content = row.custom.and_then(Custom::content);
    let node = root(row, content.as_deref());
    let mut owned = fields(node, config);
    owned.here = false;
    strip(row, manager.subresource, &mut owned);
    let api_version = crate::apiserver::write::api_version(row);
    let mut all = live.map(entries).unwrap_or_default();
    if let Some(live) = live
        && all.is_empty()
    {
        let mut set = fields(node, live);
        set.here = false;
        strip(row, "", &mut set);
        all.push(Entry {
            manager: BEFORE.to_owned(),
            operation: "Update".to_owned(),
            subresource: String::new(),
            api_version: api_version.clone(),
            time: manager.now.to_owned(),
            set,
        });
    }
    let at = all.iter().position(|entry| entry.is(manager, "Apply"));
    let before = at.map(|at| all.remove(at));
    let mut merged = match live {
        Some(live) => merge(node, live, config),
        None => config.clone(),
    };
    if let Some(live) = live {
        let (changed, _) = compare(node, live, &merged);
        let contested = owned.common(&changed);
        let conflicts: Vec<(String, Set)> = all
            .iter()
            .map(|entry| (entry.manager.clone(), entry.set.common(&contested)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !conflicts.is_empty() && !force {
            return Err(conflict(&conflicts, row, live));
        }
        for entry in &mut all {
            entry.set = entry.set.minus(&contested);
        }
        if let Some(before) = &before {
            let mut others = Set::default();
            for entry in &all {
                others.add(&entry.set);
            }
            let gone = before.set.minus(&owned).minus(&others);
            remove(node, &mut merged, &gone, &owned.union(&others));
        }
    }
    let time = match &before {
        Some(before) if before.set == owned => before.time.clone(),
        _ => manager.now.to_owned(),
    };
    all.push(Entry {
        manager: manager.name.to_owned(),
        operation: "Apply".to_owned(),
        subresource: manager.subresource.to_owned(),
        api_version,
        time,
        set: owned,
    });
    // Applying entries first, as upstream sorts them.
    all.sort_by_key(|entry| entry.operation != "Apply");
    write(&mut merged, all);
    Ok(merged)
}

fn conflict(conflicts: &[(String, Set)], row: &Resource, live: &Value) -> Status {
    let mut causes = Vec::new();
    let mut words = Vec::new();
    let count: usize = conflicts.iter().map(|(_, set)| set.count()).sum();
    for (manager, set) in conflicts {
        let message = format!("conflict with {manager:?}");
        for path in set.paths(MAX_NAMED - causes.len()) {
            words.push(format!("{message}: {path}"));
            causes.push(Cause {
                reason: CauseType::FieldManagerConflict,
                message: message.clone(),
                field: path,
            });
        }
    }
    if count > causes.len() {
        words.push(format!("and {} more", count - causes.len()));
    }
    let many = if count == 1 { "conflict" } else { "conflicts" };
    let message = format!("Apply failed with {count} {many}: {}", words.join("\n"));
    let mut status = Status::new(Reason::Conflict, message);
    status.details = Some(Details {
        group: row.group.to_owned(),
        kind: row.plural.to_owned(),
        name: live["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        causes,
        ..Details::default()
    });
    status
}

/// After another write of an object that somebody has applied: what it changed is its writer's.
pub fn updated(row: &Resource, old: &Value, new: &mut Value, manager: Manager<'_>) {
    let mut all = entries(old);
    if all.is_empty() {
        return;
    }
    let content = row.custom.and_then(Custom::content);
    let (mut changed, mut removed) = compare(root(row, content.as_deref()), old, new);
    for set in [&mut changed, &mut removed] {
        set.here = false;
        strip(row, manager.subresource, set);
    }
    if changed.is_empty() && removed.is_empty() {
        return;
    }
    for entry in &mut all {
        entry.set = entry.set.minus(&changed).minus(&removed);
    }
    match all.iter_mut().find(|entry| entry.is(manager, "Update")) {
        Some(own) => {
            own.set = own.set.union(&changed);
            own.time = manager.now.to_owned();
        }
        None => all.push(Entry {
            manager: manager.name.to_owned(),
            operation: "Update".to_owned(),
            subresource: manager.subresource.to_owned(),
            api_version: crate::apiserver::write::api_version(row),
            time: manager.now.to_owned(),
            set: changed,
        }),
    }
    write(new, all);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::registry::table;

    fn by(name: &str) -> Manager<'_> {
        Manager {
            name,
            subresource: "",
            now: "2026-01-01T00:00:00Z",
        }
    }

    fn apply_to(
        live: Option<&Value>,
        config: &Value,
        name: &str,
        force: bool,
    ) -> Result<Value, Status> {
        let row = table::find("apps", "v1", "deployments").expect("served");
        apply(row, live, config, by(name), force)
    }

    fn deployment(replicas: Option<i64>, containers: Value) -> Value {
        let mut value = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"template": {"spec": {"containers": containers}}}});
        if let Some(replicas) = replicas {
            value["spec"]["replicas"] = replicas.into();
        }
        value
    }

    #[test]
    fn applying_again_takes_away_what_is_left_out() {
        let two = json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "1"}]);
        let made = apply_to(None, &deployment(Some(2), two), "me", false).expect("new");
        // Somebody else adds a container and scales.
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut other = made.clone();
        other["spec"]["replicas"] = 5.into();
        let list = other["spec"]["template"]["spec"]["containers"]
            .as_array_mut()
            .expect("a list");
        list.push(json!({"name": "side", "image": "s"}));
        updated(row, &made, &mut other, by("injector"));
        let one = json!([{"name": "a", "image": "2"}]);
        let refused = apply_to(Some(&other), &deployment(Some(2), one.clone()), "me", false)
            .expect_err("a conflict");
        assert_eq!(
            refused.message,
            "Apply failed with 1 conflict: conflict with \"injector\": .spec.replicas"
        );
        let again = apply_to(Some(&other), &deployment(None, one.clone()), "me", false)
            .expect("no conflict");
        assert_eq!(again["spec"]["replicas"], 5);
        assert_eq!(
            again["spec"]["template"]["spec"]["containers"],
            json!([{"name": "a", "image": "2"}, {"name": "side", "image": "s"}])
        );
        let forced = apply_to(Some(&other), &deployment(Some(2), one), "me", true).expect("forced");
        assert_eq!(forced["spec"]["replicas"], 2);
        // The same once more changes nothing, owners included.
        let config = deployment(Some(2), json!([{"name": "a", "image": "2"}]));
        assert_eq!(
            apply_to(Some(&forced), &config, "me", false).expect("the same"),
            forced
        );
    }

    /// Quadratic, this would take minutes.
    #[test]
    fn many_fields_are_compared_in_one_pass() {
        let begun = crate::testing::cpu_time();
        let row = table::find("", "v1", "configmaps").expect("served");
        let map = |value: &str| {
            let data: serde_json::Map<String, Value> = (0..50_000)
                .map(|at| (format!("k{at}"), value.into()))
                .collect();
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
        };
        let made = apply(row, None, &map("a"), by("me"), false).expect("new");
        let refused = apply(row, Some(&made), &map("b"), by("you"), false).expect_err("conflicts");
        assert!(
            refused
                .message
                .starts_with("Apply failed with 50000 conflicts: ")
        );
        assert!(refused.message.ends_with("and 49900 more"));
        assert_eq!(refused.details.expect("details").causes.len(), MAX_NAMED);
        let again = apply(row, Some(&made), &map("b"), by("me"), false).expect("its own");
        assert_eq!(again["data"]["k7"], "b");
        let took = crate::testing::cpu_time() - begun;
        assert!(took.as_secs() < 30, "{took:?}");
    }

    #[test]
    fn two_may_own_what_they_agree_on() {
        let config = deployment(Some(2), json!([{"name": "a", "image": "1"}]));
        let made = apply_to(None, &config, "me", false).expect("new");
        let both = apply_to(Some(&made), &config, "you", false).expect("no conflict");
        let mine = apply_to(
            Some(&both),
            &deployment(None, json!([{"name": "a", "image": "1"}])),
            "me",
            false,
        );
        assert_eq!(
            mine.expect("no conflict")["spec"]["replicas"],
            2,
            "still yours"
        );
    }

    #[test]
    fn an_object_made_otherwise_belongs_to_before() {
        let live = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        let config = deployment(Some(3), json!([{"name": "a", "image": "1"}]));
        let refused = apply_to(Some(&live), &config, "me", false).expect_err("a conflict");
        assert!(refused.message.contains("before-first-apply"), "{refused}");
        let forced = apply_to(Some(&live), &config, "me", true).expect("forced");
        assert_eq!(forced["spec"]["replicas"], 3);
    }
}
