//! `componentstatuses`, which old tools and dashboards ask for: the parts of the daemon under the
//! names that the original's components have. Nothing of it is stored.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    apiserver::{
        cache::{self, Object},
        registry::Resource,
        response::Page,
        status::Status,
    },
    supervision::PartReport,
};

/// Told to whoever asks.
pub(super) const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";

const COMPONENTS: [(&str, fn(&str) -> bool); 3] = [
    ("controller-manager", |part| {
        part.ends_with("controller") || part.ends_with("collector")
    }),
    ("etcd-0", |part| part == cache::PART),
    ("scheduler", |part| part == "part/kube-scheduler"),
];

pub(super) fn is_one(row: &Resource) -> bool {
    row.group.is_empty() && row.plural == "componentstatuses"
}

/// All of them, in the order of their names.
pub(super) fn list(row: &Resource, parts: &[PartReport]) -> Result<Page, Status> {
    let objects = statuses(parts).into_iter().map(|value| {
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        let bytes = value.to_string();
        let object = Object::new(cache::key(row.storage, "", name), name, bytes.as_bytes(), 0);
        let object = object.map_err(Status::internal)?;
        // They have no revision.
        Ok(Arc::new(object.converted(value)))
    });
    Ok(Page {
        objects: objects.collect::<Result<_, Status>>()?,
        revision: 0,
        next: String::new(),
        remaining: None,
    })
}

fn statuses(parts: &[PartReport]) -> Vec<Value> {
    let status = |(name, is_of): (&str, fn(&str) -> bool)| {
        let mut own = parts.iter().filter(|part| is_of(&part.name));
        let down = own.find_map(|part| part.down.as_ref());
        let (healthy, message) = match down {
            None => ("True", "ok".to_owned()),
            Some(reason) => ("False", reason.to_string()),
        };
        json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": healthy, "message": message}]})
    };
    COMPONENTS.into_iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervision::Reason;

    #[test]
    fn parts_are_told_as_components() {
        let part = |name: &str, down| PartReport {
            name: name.into(),
            down,
            restarts: 0,
        };
        let down = Some(Reason::Panic("a defect".into()));
        let told = statuses(&[
            part("part/deployment-controller", None),
            part("part/job-controller", down),
            part("part/kube-scheduler", None),
            part("part/kubelet", None),
        ]);
        let told: Vec<(&str, &str)> = told
            .iter()
            .map(|status| {
                (
                    status["metadata"]["name"].as_str().unwrap_or_default(),
                    status["conditions"][0]["status"]
                        .as_str()
                        .unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("controller-manager", "False"),
                ("etcd-0", "True"),
                ("scheduler", "True")
            ]
        );
    }
}
