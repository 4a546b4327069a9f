//! TaintNodesByCondition and DefaultTolerationSeconds: new nodes start tainted, and pods bear the
//! loss of their node for five minutes.

use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::apiserver::{
    objects::Lookup,
    registry::kinds::value::{items, object_mut, text},
    status::Status,
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const SECONDS: u32 = 300;

pub struct TaintNodesByCondition;

#[async_trait::async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        node: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let tainted = items(node, "spec.taints")
            .iter()
            .any(|taint| text(taint, "key") == NOT_READY && text(taint, "effect") == "NoSchedule");
        if request.is(Operation::Create, "", "nodes") && !tainted {
            append(
                node,
                "taints",
                json!({"key": NOT_READY, "effect": "NoSchedule"}),
            );
        }
        Ok(())
    }
}

pub struct DefaultTolerationSeconds;

#[async_trait::async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(
        &self,
        request: &mut Request<'_>,
        pod: &mut Value,
        _lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let pods =
            request.is(Operation::Create, "", "pods") || request.is(Operation::Update, "", "pods");
        if !pods {
            return Ok(());
        }
        for key in [NOT_READY, UNREACHABLE] {
            let tolerated = items(pod, "spec.tolerations").iter().any(|toleration| {
                matches!(text(toleration, "key"), own if own == key || own.is_empty())
                    && matches!(text(toleration, "effect"), "NoExecute" | "")
            });
            if !tolerated {
                append(
                    pod,
                    "tolerations",
                    json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}),
                );
            }
        }
        Ok(())
    }
}

fn append(object: &mut Value, list: &str, item: Value) {
    let entry = object_mut(object, "spec")
        .entry(list)
        .or_insert_with(|| json!([]));
    match entry.as_array_mut() {
        Some(items) => items.push(item),
        None => *entry = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::admission::testing;

    #[tokio::test]
    async fn defaults_fill_what_is_missing() {
        let memory = testing::Memory::with(&[]);
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"tolerations": [{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}});
        for _ in 0..2 {
            testing::admit(&DefaultTolerationSeconds, &memory, "pods", &mut pod, None)
                .await
                .unwrap();
            assert_eq!(items(&pod, "spec.tolerations").len(), 2);
        }
        let mut node = json!({"metadata": {"name": "n"}});
        testing::admit(&TaintNodesByCondition, &memory, "nodes", &mut node, None)
            .await
            .unwrap();
        assert_eq!(
            node["spec"]["taints"],
            json!([{"key": NOT_READY, "effect": "NoSchedule"}])
        );
    }
}
