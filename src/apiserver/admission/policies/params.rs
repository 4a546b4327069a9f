//! Parameters of a policy: the objects that a binding names.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::apiserver::{
    objects::Lookup,
    registry::{
        Resource, Scope, custom,
        kinds::{
            selector,
            value::{has, text},
        },
    },
    status::qualified,
    write::api_version,
};

/// `paramKind` of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl ParamKind {
    pub fn new(kind: &Value) -> Self {
        let version = text(kind, "apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text(kind, "kind").to_owned(),
        }
    }

    pub fn row(&self, lookup: &dyn Lookup) -> Option<&'static Resource> {
        lookup.row_of_kind(&self.group, &self.version, &self.kind)
    }

    fn unknown(&self) -> String {
        let version = match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        };
        format!(
            "paramKind kind `&ParamKind{{APIVersion:{version},Kind:{},}}` not known",
            self.kind
        )
    }
}

/// `paramRef` of a binding.
#[derive(Debug)]
pub struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Value>,
    /// Whether there must be one.
    must_exist: bool,
}

impl ParamRef {
    pub fn new(reference: &Value) -> Self {
        Self {
            name: text(reference, "name").to_owned(),
            namespace: text(reference, "namespace").to_owned(),
            selector: has(reference, "selector").then(|| reference["selector"].clone()),
            must_exist: text(reference, "parameterNotFoundAction") == "Deny",
        }
    }
}

/// What to evaluate a policy with: once for each, `None` for one without parameters.
pub async fn collect(
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    namespace: &str,
    lookup: &dyn Lookup,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else {
        return Ok(vec![None]);
    };
    let row = kind.row(lookup).ok_or_else(|| kind.unknown())?;
    let namespace = match (row.scope, reference.namespace.as_str()) {
        (Scope::Cluster, "") => "",
        (Scope::Cluster, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
        (Scope::Namespaced, "") if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
        }
        (Scope::Namespaced, "") => namespace,
        (Scope::Namespaced, own) => own,
    };
    let plural = qualified(row.group, row.plural);
    let found: Vec<Arc<Value>> = match &reference.selector {
        None => lookup
            .get(&plural, namespace, &reference.name)
            .await
            .into_iter()
            .collect(),
        Some(selector) => {
            let mut all = lookup.list(&plural, namespace).await;
            all.retain(|one| selector::matches(selector, one["metadata"].get("labels")));
            all
        }
    };
    if found.is_empty() && reference.must_exist {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    let mut params = Vec::with_capacity(found.len());
    for one in found {
        params.push(Some(in_version(row, one, lookup).await?));
    }
    Ok(params)
}

/// As the policy asks for it: with its kind, and in the version that it names.
async fn in_version(
    row: &'static Resource,
    param: Arc<Value>,
    lookup: &dyn Lookup,
) -> Result<Arc<Value>, String> {
    let version = api_version(row);
    if text(&param, "apiVersion") == version && text(&param, "kind") == row.kind {
        return Ok(param);
    }
    let mut made = match (row.custom, lookup.row(&qualified(row.group, row.plural))) {
        (Some(_), Some(from)) => custom::converted(lookup, from, row, &param)
            .await
            .map_err(|status| status.message)?,
        _ => (*param).clone(),
    };
    made["apiVersion"] = json!(version);
    made["kind"] = json!(row.kind);
    Ok(Arc::new(made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing::Memory;

    #[tokio::test]
    async fn which_parameters_there_are() {
        let map = |namespace: &str, name: &str, color: &str| {
            (
                "configmaps",
                json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": namespace, "labels": {"color": color}}}),
            )
        };
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast"}});
        let memory = Memory::with(&[
            map("a", "one", "red"),
            map("a", "two", "blue"),
            map("b", "one", "blue"),
            ("storageclasses.storage.k8s.io", class),
        ]);
        let maps = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        let classes = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"});
        let none = json!({"apiVersion": "x.example/v1", "kind": "X"});
        for (kind, reference, namespace, want) in [
            (Some(&maps), json!({"name": "one"}), "a", Ok("a/one")),
            (
                Some(&maps),
                json!({"name": "one", "namespace": "b"}),
                "a",
                Ok("b/one"),
            ),
            (
                Some(&maps),
                json!({"name": "one"}),
                "",
                Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources",
                ),
            ),
            (
                Some(&maps),
                json!({"name": "three", "parameterNotFoundAction": "Allow"}),
                "a",
                Ok(""),
            ),
            (
                Some(&maps),
                json!({"name": "three", "parameterNotFoundAction": "Deny"}),
                "a",
                Err("no params found for policy binding with `Deny` parameterNotFoundAction"),
            ),
            (Some(&maps), json!({"selector": {}}), "a", Ok("a/one a/two")),
            (
                Some(&maps),
                json!({"selector": {"matchLabels": {"color": "blue"}}}),
                "a",
                Ok("a/two"),
            ),
            (Some(&classes), json!({"name": "fast"}), "a", Ok("/fast")),
            (
                Some(&classes),
                json!({"name": "fast", "namespace": "a"}),
                "a",
                Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`"),
            ),
            (
                Some(&none),
                json!({"name": "x"}),
                "a",
                Err("paramKind kind `&ParamKind{APIVersion:x.example/v1,Kind:X,}` not known"),
            ),
            (Some(&maps), Value::Null, "a", Ok("none")),
            (None, json!({"name": "one"}), "a", Ok("none")),
        ] {
            let kind = kind.map(ParamKind::new);
            let given = reference.is_object().then(|| ParamRef::new(&reference));
            let found = collect(kind.as_ref(), given.as_ref(), namespace, &*memory).await;
            let found = found.map(|all| {
                let each = all.iter().map(|one| match one {
                    Some(one) => format!(
                        "{}/{}",
                        text(one, "metadata.namespace"),
                        text(one, "metadata.name")
                    ),
                    None => "none".to_owned(),
                });
                each.collect::<Vec<_>>().join(" ")
            });
            assert_eq!(
                found,
                want.map(str::to_owned).map_err(str::to_owned),
                "{reference}"
            );
        }
    }
}
