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
mod steps;
#[cfg(test)]
mod tests;

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
                    .retain(|step| step == "f:status" || step == "f:metadata");
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
