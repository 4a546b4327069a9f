//! The list in `metadata.managedFields`: read, written, kept short. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::set::{Set, meets};

/// Entries of updates in one list; older ones are joined.
const MAX_UPDATERS: usize = 10;
/// Who owns what joined entries owned.
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "Apply" => Some(Self::Apply),
            "Update" => Some(Self::Update),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Whose entry it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub manager: String,
    pub operation: Operation,
    pub subresource: String,
    pub api_version: String,
}

impl Owner {
    /// One who applies has one entry, whatever the version; one who updates has one for each.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.operation, &self.manager, &self.subresource)
            == (other.operation, &other.manager, &other.subresource)
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As conflicts name it.
    pub fn words(&self) -> String {
        let mut words = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            words.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            words.push_str(&format!(" using {}", self.api_version));
        }
        words
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub owner: Owner,
    pub time: String,
    fields: Fields,
}

/// Most writes touch none or one of the entries: the others stay as they were read.
#[derive(Clone, Debug)]
enum Fields {
    Written(Value),
    Read(Set),
}

impl Entry {
    pub fn new(owner: Owner, time: &str, set: Set) -> Self {
        Self {
            owner,
            time: time.to_owned(),
            fields: Fields::Read(set),
        }
    }

    fn parse(mut value: Value) -> Option<Self> {
        let fields = value.get_mut("fieldsV1").map(Value::take);
        let fields = fields.unwrap_or(Value::Null);
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let known = text("fieldsType") == "FieldsV1" && !text("apiVersion").is_empty();
        (known && (fields.is_null() || Set::is_written(&fields))).then_some(())?;
        Some(Self {
            owner: Owner {
                manager: text("manager"),
                operation: Operation::parse(&text("operation"))?,
                subresource: text("subresource"),
                api_version: text("apiVersion"),
            },
            time: text("time"),
            fields: Fields::Written(fields),
        })
    }

    fn into_json(self) -> Value {
        let fields = match self.fields {
            Fields::Written(value) => value,
            Fields::Read(set) => set.to_json(),
        };
        let owner = self.owner;
        let mut entry = json!({"manager": owner.manager, "operation": owner.operation.name(),
            "apiVersion": owner.api_version, "fieldsType": "FieldsV1"});
        entry["fieldsV1"] = fields;
        if !self.time.is_empty() {
            entry["time"] = self.time.into();
        }
        if !owner.subresource.is_empty() {
            entry["subresource"] = owner.subresource.into();
        }
        entry
    }

    pub fn set(&mut self) -> &mut Set {
        if let Fields::Written(value) = &self.fields {
            self.fields = Fields::Read(Set::parse(value));
        }
        match &mut self.fields {
            Fields::Read(set) => set,
            Fields::Written(_) => unreachable!("read three lines above"),
        }
    }

    /// Fields lost to others.
    pub fn lose(&mut self, fields: &Set) {
        let touched = match &self.fields {
            Fields::Written(value) => meets(value, fields),
            Fields::Read(_) => true,
        };
        if touched {
            let set = self.set();
            *set = set.minus(fields);
        }
    }

    fn is_empty(&self) -> bool {
        match &self.fields {
            Fields::Written(value) => value.as_object().is_none_or(serde_json::Map::is_empty),
            Fields::Read(set) => set.is_empty(),
        }
    }
}

/// The entries of a list; none if any of them makes no sense.
pub fn parse(list: Value) -> Option<Vec<Entry>> {
    match list {
        Value::Array(list) => list.into_iter().map(Entry::parse).collect(),
        _ => None,
    }
}

/// In the original's order: who applied first, then the older first.
pub fn to_json(mut entries: Vec<Entry>) -> Value {
    entries.retain(|entry| !entry.is_empty());
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| (entry.owner.operation, entry.time.clone());
        key(a).cmp(&key(b)).then_with(|| {
            let (a, b) = (&a.owner, &b.owner);
            (&a.manager, &a.api_version, &a.subresource).cmp(&(
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
        })
    });
    entries.into_iter().map(Entry::into_json).collect()
}

/// Joins the oldest updates of a version until there are few enough.
pub fn cap(entries: &mut Vec<Entry>) {
    let updates = |entries: &[Entry]| {
        let updates = entries.iter();
        updates
            .filter(|entry| entry.owner.operation == Operation::Update)
            .count()
    };
    let mut count = updates(entries);
    if count <= MAX_UPDATERS {
        return;
    }
    entries.retain(|entry| !entry.is_empty());
    count = updates(entries);
    let (mut old, applied): (Vec<Entry>, Vec<Entry>) = std::mem::take(entries)
        .into_iter()
        .partition(|entry| entry.owner.operation == Operation::Update);
    old.sort_by(|a, b| (&a.time, &a.owner).cmp(&(&b.time, &b.owner)));
    let mut kept: Vec<Entry> = Vec::new();
    let mut first_of: BTreeMap<String, usize> = BTreeMap::new();
    for mut entry in old {
        let version = entry.owner.api_version.clone();
        match first_of.get(&version).and_then(|at| kept.get_mut(*at)) {
            Some(bucket) if count > MAX_UPDATERS => {
                ANCIENT.clone_into(&mut bucket.owner.manager);
                bucket.owner.subresource.clear();
                bucket.time.clone_from(&entry.time);
                let set = std::mem::take(entry.set());
                bucket.set().add(&set);
                count -= 1;
            }
            _ => {
                first_of.entry(version).or_insert(kept.len());
                kept.push(entry);
            }
        }
    }
    *entries = applied;
    entries.append(&mut kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, time: &str, field: &str) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {field: {}}}})
    }

    #[test]
    fn what_makes_no_sense_is_no_list() {
        let good = entry("a", "Update", "2026-01-01T00:00:00Z", "f:x");
        assert_eq!(parse(json!([good])).map(to_json), Some(json!([good])));
        for (member, bad) in [
            ("operation", json!("Patch")),
            ("apiVersion", json!("")),
            ("fieldsType", json!("FieldsV2")),
            ("fieldsType", Value::Null),
            ("fieldsV1", json!({"data": {}})),
            ("fieldsV1", json!({"k:nothing": {}})),
            ("fieldsV1", json!({"f:x": 1})),
            ("fieldsV1", json!([])),
        ] {
            let mut entry = good.clone();
            entry[member] = bad;
            assert!(parse(json!([good, entry])).is_none(), "{entry}");
        }
        assert!(parse(json!([{}])).is_none());
    }

    #[test]
    fn who_applies_stands_first_and_the_older_before_the_newer() {
        let list = json!([
            entry("c", "Update", "2026-01-02T00:00:00Z", "f:c"),
            entry("b", "Update", "2026-01-01T00:00:00Z", "f:b"),
            entry("z", "Apply", "2026-01-03T00:00:00Z", "f:z"),
            entry("a", "Update", "2026-01-02T00:00:00Z", "f:a"),
        ]);
        let list = to_json(parse(list).expect("a list"));
        let order: Vec<&str> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["manager"].as_str())
            .collect();
        assert_eq!(order, ["z", "b", "a", "c"]);
    }

    #[test]
    fn the_oldest_updates_are_joined() {
        let time = |at: usize| format!("2026-01-{:02}T00:00:00Z", at + 1);
        let list: Vec<Value> = (0..12)
            .map(|at| {
                entry(
                    &format!("m{at:02}"),
                    "Update",
                    &time(at),
                    &format!("f:x{at}"),
                )
            })
            .chain([entry("me", "Apply", &time(0), "f:me")])
            .collect();
        let mut entries = parse(list.into()).expect("a list");
        cap(&mut entries);
        let list = to_json(entries);
        assert_eq!(list.as_array().map(Vec::len), Some(11));
        assert_eq!(list[0]["manager"], "me", "who applies is never joined");
        assert_eq!(list[1]["manager"], "ancient-changes");
        assert_eq!(list[1]["time"], time(2), "that of the newest among them");
        let joined = json!({"f:data": {"f:x0": {}, "f:x1": {}, "f:x2": {}}});
        assert_eq!(list[1]["fieldsV1"], joined);
        // The next one joins the same.
        let mut entries = parse(list).expect("a list");
        let more = entry("new", "Update", &time(20), "f:new");
        entries.extend(parse(json!([more])).expect("a list"));
        cap(&mut entries);
        let list = to_json(entries);
        assert_eq!(list.as_array().map(Vec::len), Some(11));
        assert_eq!(list[1]["fieldsV1"]["f:data"]["f:x3"], json!({}));
    }
}
