//! Who owns which field (`metadata.managedFields`), and what an applied configuration makes of an
//! object.
//!
//! Every write is followed: [`created`] and [`updated`] give what changed to its writer, [`apply`]
//! merges a configuration and refuses what others own. An object that has no owners, since somebody
//! asked for that or since it is older than this book-keeping, gets them with its first apply; what
//! it holds then belongs to `before-first-apply`. Pure but for the clock, which comes in.
//! Source: structured-merge-diff, as upstream's API server uses it.

mod configuration;
mod conflict;
mod declared;
mod entry;
mod last_applied;
mod node;
mod set;

use serde_json::{Map, Value};

pub use self::configuration::configured;
pub use self::declared::faults;
use self::{
    conflict::{Conflict, refusal},
    entry::{Entry, Operation, Owner, cap},
    node::{Difference, Node, UNOWNED, compare, fields, merge, remove},
    set::Set,
};
use crate::apiserver::{
    metadata,
    registry::{
        Resource, Subresource,
        custom::{Content, Custom},
    },
    status::Status,
    write::api_version,
};

const BEFORE: &str = "before-first-apply";

/// One who applies or updates.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// Empty for the main endpoint.
    pub subresource: &'a str,
    pub now: &'a str,
}

impl Manager<'_> {
    fn owner(self, row: &Resource, operation: Operation) -> Owner {
        let name = match self.name {
            "" => "unknown",
            name => name,
        };
        Owner {
            manager: name.to_owned(),
            operation,
            subresource: self.subresource.to_owned(),
            api_version: api_version(row),
        }
    }
}

/// The owners that an object says it has; of what makes no sense, none.
fn entries(object: &Value) -> Vec<Entry> {
    entry::parse(object["metadata"]["managedFields"].clone()).unwrap_or_default()
}

fn write(object: &mut Value, entries: Vec<Entry>) {
    let list = entry::to_json(entries);
    let metadata = metadata::of(object);
    match list.as_array().is_some_and(|list| !list.is_empty()) {
        true => metadata.insert("managedFields".to_owned(), list),
        false => metadata.remove("managedFields"),
    };
}

/// What is known of a custom resource.
fn content(row: &Resource) -> Option<std::sync::Arc<Content>> {
    row.custom.and_then(Custom::content)
}

/// `content`: of a custom resource.
fn root<'a>(row: &Resource, content: Option<&'a Content>) -> Node<'a> {
    match content {
        Some(content) => Node::Root(&content.schema),
        None if row.custom.is_some() => Node::Unknown,
        None => proto::schema()
            .get(row.type_name)
            .map_or(Node::Unknown, Node::Type),
    }
}

/// Nobody owns what names an object and what the server alone writes, nor what the endpoint does
/// not write.
fn strip(row: &Resource, subresource: &str, set: &mut Set) {
    set.here = false;
    for field in ["f:apiVersion", "f:kind"] {
        set.cut(&[field]);
    }
    for field in UNOWNED {
        set.cut(&["f:metadata", &format!("f:{field}")]);
    }
    if let Some(metadata) = set.inner.get_mut("f:metadata") {
        metadata.here = false;
        if metadata.is_empty() {
            set.inner.remove("f:metadata");
        }
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

/// What changed and is gone, as far as the endpoint writes it.
fn difference(row: &Resource, subresource: &str, old: &Value, new: &Value) -> Difference {
    let content = content(row);
    let mut found = compare(root(row, content.as_deref()), old, new);
    strip(row, subresource, &mut found.changed);
    strip(row, subresource, &mut found.removed);
    found
}

/// Whether a list of owners asks to forget them all: `[]`, or `[{}]` for clients that leave out
/// what is empty.
pub fn is_reset(object: &Value) -> bool {
    match object["metadata"]["managedFields"]
        .as_array()
        .map(Vec::as_slice)
    {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Whether the owners that an object names can be understood; none can.
pub fn are_sound(object: &Value) -> bool {
    let list = &object["metadata"]["managedFields"];
    list.is_null() || entry::parse(list.clone()).is_some()
}

/// The owners of a new object: those its maker names, and the maker.
pub fn created(row: &Resource, object: &mut Value, manager: Manager<'_>) {
    let given = metadata::of(object).remove("managedFields");
    let given = given.and_then(entry::parse).unwrap_or_default();
    follow(row, &Value::Null, object, given, manager);
}

/// The owners after a write: what it changed is its writer's. A writer may name other owners, but
/// not through a subresource.
pub fn updated(row: &Resource, old: &Value, new: &mut Value, manager: Manager<'_>) {
    let reset = is_reset(new);
    let given = metadata::of(new).remove("managedFields");
    let all = match given.and_then(entry::parse) {
        _ if !manager.subresource.is_empty() => entries(old),
        _ if reset => return,
        Some(given) if !given.is_empty() => given,
        _ => entries(old),
    };
    // Nobody is followed who writes an object that has no owners.
    if !all.is_empty() {
        follow(row, old, new, all, manager);
    }
}

fn follow(row: &Resource, old: &Value, new: &mut Value, mut all: Vec<Entry>, manager: Manager<'_>) {
    let own = manager.owner(row, Operation::Update);
    let Difference { changed, removed } = difference(row, manager.subresource, old, new);
    if changed.is_empty() && removed.is_empty() {
        return write(new, all);
    }
    for entry in &mut all {
        let is_own = entry.owner.is_same(&own);
        if !changed.is_empty() && !is_own {
            entry.lose(&changed);
        }
        if !removed.is_empty() {
            entry.lose(&removed);
        }
    }
    if !changed.is_empty() {
        match all.iter_mut().find(|entry| entry.owner.is_same(&own)) {
            Some(entry) => {
                entry.set().add(&changed);
                manager.now.clone_into(&mut entry.time);
            }
            None => all.push(Entry::new(own, manager.now, changed)),
        }
    }
    cap(&mut all);
    write(new, all);
}

/// Whether two objects say the same, but for when whose fields were written.
pub fn is_same_but_for_times(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return false;
    };
    if !same_but(a, b, "metadata") {
        return false;
    }
    let metadata = (
        a.get("metadata").and_then(Value::as_object),
        b.get("metadata").and_then(Value::as_object),
    );
    let (Some(a), Some(b)) = metadata else {
        return false;
    };
    let list = |metadata: &Map<String, Value>| metadata.get("managedFields").cloned();
    let (Some(Value::Array(mine)), Some(Value::Array(theirs))) = (list(a), list(b)) else {
        return false;
    };
    let is_same_entry = |(a, b): (&Value, &Value)| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => same_but(a, b, "time"),
        _ => false,
    };
    same_but(a, b, "managedFields")
        && mine.len() == theirs.len()
        && mine.iter().zip(&theirs).all(is_same_entry)
}

/// Whether two objects differ in this member at most.
fn same_but(a: &Map<String, Value>, b: &Map<String, Value>, but: &str) -> bool {
    let others = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(but));
    let same = |(name, value): (&String, &Value)| name == but || b.get(name) == Some(value);
    others(a) == others(b) && a.iter().all(same)
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
    let merged = applied(row, live, config, manager, force);
    let mut merged = match (merged, live) {
        (Err(conflicts), Some(live)) if manager.name == last_applied::KUBECTL => {
            let left = last_applied::disallowed(row, live, conflicts);
            match left.is_empty() {
                true => applied(row, Some(live), config, manager, true),
                false => Err(left),
            }
        }
        (merged, _) => merged,
    }
    .map_err(|conflicts| refusal(&conflicts))?;
    if manager.name == last_applied::KUBECTL {
        last_applied::follow(&mut merged, config);
    }
    Ok(merged)
}

fn applied(
    row: &Resource,
    live: Option<&Value>,
    config: &Value,
    manager: Manager<'_>,
    force: bool,
) -> Result<Value, Vec<Conflict>> {
    let content = content(row);
    let node = root(row, content.as_deref());
    let mut owned = fields(node, config);
    strip(row, manager.subresource, &mut owned);
    let own = manager.owner(row, Operation::Apply);
    let mut all = live.map(entries).unwrap_or_default();
    if let Some(live) = live
        && all.is_empty()
    {
        let before = Manager {
            name: BEFORE,
            subresource: "",
            ..manager
        };
        let set = difference(row, "", &Value::Null, live).changed;
        all.push(Entry::new(
            before.owner(row, Operation::Update),
            manager.now,
            set,
        ));
    }
    let at = all.iter().position(|entry| entry.owner.is_same(&own));
    let mut before = at.map(|at| all.remove(at));
    let mut merged = match live {
        Some(live) => merge(node, live, config),
        None => config.clone(),
    };
    let mut lost = false;
    if let Some(live) = live {
        let changed = compare(node, live, &merged).changed;
        let contested = owned.common(&changed);
        let conflicts: Vec<Conflict> = all
            .iter_mut()
            .filter_map(|entry| {
                let fields = entry.set().common(&contested);
                (!fields.is_empty()).then(|| Conflict {
                    owner: entry.owner.clone(),
                    fields,
                })
            })
            .collect();
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        lost = !conflicts.is_empty();
        for entry in &mut all {
            entry.lose(&contested);
        }
        if let Some(before) = &mut before {
            let mut others = Set::default();
            for entry in &mut all {
                others.add(entry.set());
            }
            let gone = before.set().minus(&owned).minus(&others);
            remove(node, &mut merged, &gone, &owned.union(&others));
        }
    }
    let owns_the_same = before.as_mut().is_some_and(|before| *before.set() == owned);
    let time = match before {
        Some(before) if owns_the_same && !lost && live == Some(&merged) => before.time,
        _ => manager.now.to_owned(),
    };
    all.push(Entry::new(own, &time, owned));
    write(&mut merged, all);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            "Apply failed with 1 conflict: conflict with \"injector\" using apps/v1: .spec.replicas"
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

    /// The owners of an object: manager, operation, subresource, fields.
    fn owners(object: &Value) -> Vec<(String, String, String, Value)> {
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let list = object["metadata"]["managedFields"].as_array();
        let entries = list.into_iter().flatten().map(|entry| {
            let name = |name| text(entry, name);
            (
                name("manager"),
                name("operation"),
                name("subresource"),
                entry["fieldsV1"].clone(),
            )
        });
        entries.collect()
    }

    fn at<'a>(name: &'a str, now: &'a str) -> Manager<'a> {
        Manager { now, ..by(name) }
    }

    #[test]
    fn who_makes_an_object_owns_all_of_it() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut made = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "namespace": "n", "uid": "u", "creationTimestamp": "t", "generation": 1, "labels": {"a": "b"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
                    {"name": "c", "image": "i", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}},
            "status": {"replicas": 0}});
        created(row, &mut made, by("kubectl-create"));
        // As a cluster of the original writes it: structs that are no pointers are always there.
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:type": {}, "f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {
                    "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}, "f:ports": {
                        ".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}});
        let text = String::new;
        assert_eq!(
            owners(&made),
            [(
                "kubectl-create".to_owned(),
                "Update".to_owned(),
                text(),
                fields
            )]
        );
        let entry = &made["metadata"]["managedFields"][0];
        assert_eq!(entry["apiVersion"], "apps/v1");
        assert_eq!(entry["fieldsType"], "FieldsV1");
        assert_eq!(entry["time"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn who_changes_a_field_owns_it() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut made = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        created(row, &mut made, at("maker", "2026-01-01T00:00:00Z"));
        // Nothing changes: nobody's time does.
        let mut same = made.clone();
        updated(row, &made, &mut same, at("other", "2026-01-02T00:00:00Z"));
        assert_eq!(same, made);
        let mut scaled = made.clone();
        scaled["spec"]["replicas"] = 2.into();
        scaled["status"]["replicas"] = 2.into();
        updated(
            row,
            &made,
            &mut scaled,
            at("scaler", "2026-01-02T00:00:00Z"),
        );
        let owned = owners(&scaled);
        assert_eq!(owned[0].0, "maker");
        assert!(owned[0].3["f:spec"]["f:replicas"].is_null(), "{owned:?}");
        assert_eq!(
            (owned[1].0.as_str(), &owned[1].3),
            ("scaler", &json!({"f:spec": {"f:replicas": {}}}))
        );
        // The status belongs to those who write it through its endpoint.
        let mut told = scaled.clone();
        told["status"]["replicas"] = 3.into();
        let status = Manager {
            subresource: "status",
            ..at("scaler", "2026-01-03T00:00:00Z")
        };
        updated(row, &scaled, &mut told, status);
        let owned = owners(&told);
        assert_eq!(owned[2].2, "status");
        assert_eq!(owned[2].3, json!({"f:status": {"f:replicas": {}}}));
        // A field that is gone is nobody's, and an entry without fields goes.
        let mut gone = told.clone();
        gone["spec"]
            .as_object_mut()
            .expect("a map")
            .remove("replicas");
        updated(row, &told, &mut gone, at("third", "2026-01-04T00:00:00Z"));
        let names: Vec<String> = owners(&gone).into_iter().map(|owner| owner.0).collect();
        assert_eq!(names, ["maker", "scaler"]);
        assert_eq!(owners(&gone)[1].2, "status");
    }

    #[test]
    fn who_writes_may_say_who_owns() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut made = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        created(row, &mut made, by("maker"));
        let with = |list: Value| {
            let mut new = made.clone();
            new["metadata"]["managedFields"] = list;
            updated(row, &made, &mut new, by("writer"));
            owners(&new)
        };
        let entry = json!({"manager": "theirs", "operation": "Apply", "apiVersion": "apps/v1",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
        assert_eq!(with(json!([entry]))[0].0, "theirs");
        for reset in [json!([]), json!([{}])] {
            assert!(with(reset.clone()).is_empty(), "{reset}");
        }
        let mut bad = entry.clone();
        bad["operation"] = "Patch".into();
        for ignored in [
            json!([bad, entry]),
            json!(null),
            json!("text"),
            json!([{}, entry]),
        ] {
            assert_eq!(with(ignored.clone())[0].0, "maker", "{ignored}");
        }
        // Who has no owners gets none by an update.
        let mut bare = made.clone();
        bare["metadata"]
            .as_object_mut()
            .expect("a map")
            .remove("managedFields");
        let mut scaled = bare.clone();
        scaled["spec"]["replicas"] = 5.into();
        updated(row, &bare, &mut scaled, by("scaler"));
        assert!(owners(&scaled).is_empty());
        // Through a subresource nobody says who owns.
        let mut new = made.clone();
        new["metadata"]["managedFields"] = json!([]);
        let status = Manager {
            subresource: "status",
            ..by("writer")
        };
        updated(row, &made, &mut new, status);
        assert_eq!(owners(&new)[0].0, "maker");
    }

    #[test]
    fn what_kubectl_applied_before_is_its_own() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let config = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        let mut live = config.clone();
        live["metadata"]["annotations"] = json!({
            "kubectl.kubernetes.io/last-applied-configuration": config.to_string()});
        created(row, &mut live, by("kubectl-client-side-apply"));
        let next = deployment(Some(2), json!([{"name": "a", "image": "1"}]));
        let refused = apply(row, Some(&live), &next, by("other"), false).expect_err("a conflict");
        assert_eq!(
            refused.message,
            "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
        );
        let moved = apply(row, Some(&live), &next, by("kubectl"), false).expect("its own");
        assert_eq!(moved["spec"]["replicas"], 2);
        let last =
            &moved["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
        assert_eq!(
            last.as_str(),
            Some(format!("{next}\n").as_str()),
            "it follows"
        );
        // What somebody else has changed since is not its own.
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = 9.into();
        updated(row, &live, &mut scaled, by("scaler"));
        let refused =
            apply(row, Some(&scaled), &next, by("kubectl"), false).expect_err("another's");
        assert!(
            refused
                .message
                .contains("conflict with \"scaler\" using apps/v1: .spec.replicas"),
            "{refused}"
        );
    }

    #[test]
    fn conflicts_are_listed_by_owner() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut live = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        created(row, &mut live, by("maker"));
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = 2.into();
        let scale = Manager {
            subresource: "scale",
            ..by("scaler")
        };
        updated(row, &live, &mut scaled, scale);
        let config = deployment(Some(3), json!([{"name": "a", "image": "2"}]));
        let refused = apply(row, Some(&scaled), &config, by("me"), false).expect_err("conflicts");
        assert_eq!(
            refused.message,
            "Apply failed with 2 conflicts: conflicts with \"maker\" using apps/v1:\n- .spec.template.spec.containers[name=\"a\"].image\nconflicts with \"scaler\" with subresource \"scale\" using apps/v1:\n- .spec.replicas"
        );
        let causes = refused.details.expect("details").causes;
        assert_eq!(
            causes[1].message,
            "conflict with \"scaler\" with subresource \"scale\" using apps/v1"
        );
        assert_eq!(causes[1].field, ".spec.replicas");
    }

    #[test]
    fn times_alone_are_no_change() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut a = deployment(Some(1), json!([]));
        created(row, &mut a, at("maker", "2026-01-01T00:00:00Z"));
        let mut b = deployment(Some(1), json!([]));
        created(row, &mut b, at("maker", "2026-01-02T00:00:00Z"));
        assert_ne!(a, b);
        assert!(is_same_but_for_times(&a, &b));
        let mut other = b.clone();
        other["spec"]["replicas"] = 2.into();
        assert!(!is_same_but_for_times(&a, &other));
        created(row, &mut b, at("another", "2026-01-02T00:00:00Z"));
        assert!(!is_same_but_for_times(&a, &b));
    }

    /// Following a write costs less than reading, completing, checking and writing the object.
    #[test]
    fn following_is_the_smaller_part_of_a_write() {
        let row = table::find("apps", "v1", "deployments").expect("served");
        let mut object = deployment(
            Some(1),
            json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]),
        );
        object["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
        object["spec"]["template"]["metadata"] = json!({"labels": {"a": "b"}});
        let text = object.to_string();
        let (mut following, mut rest) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
        for _ in 0..300 {
            let begun = crate::testing::cpu_time();
            let (mut made, _) = proto::parse_json(text.as_bytes()).expect("JSON");
            row.default_values(&mut made).expect("defaults");
            let mut causes = crate::apiserver::registry::Causes::default();
            row.validate(&made, &mut causes);
            let written = crate::testing::cpu_time();
            created(row, &mut made, by("maker"));
            let followed = crate::testing::cpu_time();
            let bytes = serde_json::to_vec(&made).expect("JSON");
            let (old, _) = proto::parse_json(&bytes).expect("JSON");
            let mut told = old.clone();
            told["status"]["replicas"] = 1.into();
            let read = crate::testing::cpu_time();
            let status = Manager {
                subresource: "status",
                ..by("teller")
            };
            updated(row, &old, &mut told, status);
            let done = crate::testing::cpu_time();
            rest += (written - begun) + (read - followed);
            following += (followed - written) + (done - read);
        }
        println!("following: {following:?}, the rest: {rest:?}");
        assert!(following < rest, "{following:?}, the rest {rest:?}");
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
        assert_eq!(
            refused.details.expect("details").causes.len(),
            conflict::MAX_NAMED
        );
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
