//! Events: one stored form, the core one, served by two groups.

use serde_json::{Value, json};

use crate::apiserver::registry::{
    Behaviour, Column, Conversion, PLAIN, Resource,
    kinds::{
        cells::since,
        row::{self, column, count, field, read, wide},
        value::{at, default_to, has, number, remove, set, text},
    },
};

pub const CORE: Resource = Resource {
    short_names: &["ev"],
    columns: COLUMNS,
    fields: &[
        field("involvedObject.kind", |event| {
            read(event, "involvedObject.kind")
        }),
        field("involvedObject.namespace", |event| {
            read(event, "involvedObject.namespace")
        }),
        field("involvedObject.name", |event| {
            read(event, "involvedObject.name")
        }),
        field("involvedObject.uid", |event| {
            read(event, "involvedObject.uid")
        }),
        field("involvedObject.apiVersion", |event| {
            read(event, "involvedObject.apiVersion")
        }),
        field("involvedObject.resourceVersion", |event| {
            read(event, "involvedObject.resourceVersion")
        }),
        field("involvedObject.fieldPath", |event| {
            read(event, "involvedObject.fieldPath")
        }),
        field("reason", |event| read(event, "reason")),
        field("reportingComponent", |event| {
            read(event, "reportingComponent")
        }),
        field("source", source_field),
        field("type", |event| read(event, "type")),
    ],
    behaviour: Behaviour {
        default: |event| default_to(event, "involvedObject", json!({})),
        validate: |event, causes| {
            let (own, involved) = (
                text(event, "metadata.namespace"),
                text(event, "involvedObject.namespace"),
            );
            let cluster = involved.is_empty() && matches!(own, "default" | "kube-system");
            // A node's events lie in the namespace `default`.
            if !cluster && !involved.is_empty() && own != involved {
                causes.invalid(
                    "involvedObject.namespace",
                    involved,
                    "does not match event.namespace",
                );
            }
        },
        create_on_update: true,
        ..PLAIN
    },
    ..row::namespaced(
        "",
        "v1",
        "Event",
        "events",
        "event",
        "io.k8s.api.core.v1.Event",
    )
};

pub const EVENTS: Resource = Resource {
    group: "events.k8s.io",
    type_name: "io.k8s.api.events.v1.Event",
    fields: &[
        field("regarding.kind", |event| read(event, "regarding.kind")),
        field("regarding.namespace", |event| {
            read(event, "regarding.namespace")
        }),
        field("regarding.name", |event| read(event, "regarding.name")),
        field("regarding.uid", |event| read(event, "regarding.uid")),
        field("regarding.apiVersion", |event| {
            read(event, "regarding.apiVersion")
        }),
        field("regarding.resourceVersion", |event| {
            read(event, "regarding.resourceVersion")
        }),
        field("regarding.fieldPath", |event| {
            read(event, "regarding.fieldPath")
        }),
        field("reason", |event| read(event, "reason")),
        field("reportingController", |event| {
            read(event, "reportingController")
        }),
        field("type", |event| read(event, "type")),
    ],
    behaviour: Behaviour {
        default: |event| default_to(event, "regarding", json!({})),
        create_on_update: true,
        ..PLAIN
    },
    convert: Some(Conversion {
        to_stored: to_core,
        from_stored: from_core,
    }),
    ..CORE
};

/// Unlike every other kind, Name comes last; a row that has its own Name column gets no first one.
const COLUMNS: &[Column] = &[
    column("Last Seen", |event| last_seen(event).into()),
    column("Type", |event| row::cell(event, "type")),
    column("Reason", |event| row::cell(event, "reason")),
    column("Object", |event| {
        let object = part(event, "involvedObject", "regarding");
        format!(
            "{}/{}",
            text(&object, "kind").to_lowercase(),
            text(&object, "name")
        )
        .into()
    }),
    wide("Subobject", |event| {
        part(event, "involvedObject", "regarding")["fieldPath"]
            .as_str()
            .unwrap_or_default()
            .into()
    }),
    wide("Source", |event| source(event).into()),
    column("Message", |event| match text(event, "message") {
        "" => text(event, "note").trim().into(),
        message => message.trim().into(),
    }),
    wide("First Seen", |event| first_seen(event).into()),
    Column {
        priority: 1,
        ..count("Count", |event| seen(event).into())
    },
    wide("Name", |event| row::cell(event, "metadata.name")),
];

fn part(event: &Value, core: &str, other: &str) -> Value {
    at(event, core)
        .or_else(|| at(event, other))
        .cloned()
        .unwrap_or_default()
}

fn seen(event: &Value) -> i64 {
    number(event, "series.count")
        .or_else(|| number(event, "count").filter(|count| *count > 0))
        .or_else(|| number(event, "deprecatedCount").filter(|count| *count > 0))
        .unwrap_or(1)
}

fn first_seen(event: &Value) -> String {
    match ["firstTimestamp", "deprecatedFirstTimestamp"]
        .into_iter()
        .find(|path| has(event, path))
    {
        Some(path) => since(event, path),
        None => since(event, "eventTime"),
    }
}

fn last_seen(event: &Value) -> String {
    let known = [
        "series.lastObservedTime",
        "lastTimestamp",
        "deprecatedLastTimestamp",
    ];
    match known.into_iter().find(|path| has(event, path)) {
        Some(path) => since(event, path),
        None => first_seen(event),
    }
}

fn source(event: &Value) -> String {
    let source = part(event, "source", "deprecatedSource");
    let component = match text(&source, "component") {
        "" => match text(event, "reportingComponent") {
            "" => text(event, "reportingController"),
            component => component,
        },
        component => component,
    };
    match text(&source, "host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn source_field(event: &Value) -> String {
    match text(event, "source.component") {
        "" => read(event, "reportingComponent"),
        component => component.to_owned(),
    }
}

/// events.k8s.io name and core name of the members that differ.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn to_core(event: &mut Value) {
    for (new, core) in RENAMED {
        if let Some(value) = remove(event, new) {
            set(event, core, value);
        }
    }
    set(event, "apiVersion", "v1");
}

fn from_core(event: &mut Value) {
    for (new, core) in RENAMED {
        if let Some(value) = remove(event, core) {
            set(event, new, value);
        }
    }
    set(event, "apiVersion", "events.k8s.io/v1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_one_event() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod", "name": "p"},
            "message": "hi", "reason": "R", "count": 3, "source": {"component": "kubelet", "host": "n"}});
        let mut event = core.clone();
        from_core(&mut event);
        assert_eq!(event["note"], "hi");
        assert_eq!(event["regarding"]["name"], "p");
        assert_eq!(source(&event), source(&core));
        assert_eq!(seen(&event), 3);
        to_core(&mut event);
        assert_eq!(event, core);
    }
}
