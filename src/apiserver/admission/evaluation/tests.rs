//! Match conditions, and what expressions are told.

use serde_json::json;

use super::*;
use crate::apiserver::admission::{
    Operation, Round,
    testing::{Memory, row},
};

async fn held(conditions: &[&str], on_failure: OnFailure) -> Result<bool, String> {
    let all: Vec<Json> = conditions
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"name": format!("c{index}"), "expression": text}))
        .collect();
    let conditions = Conditions::new(&json!({"matchConditions": all}), false).expect("some");
    let user = User::internal("jane", &["dev"]);
    let (mut warnings, mut round) = (Vec::new(), Round::default());
    let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}});
    let request = Request {
        user: &user,
        operation: Operation::Create,
        resource: row("pods"),
        subresource: None,
        namespace: "n",
        name: "p",
        old: None,
        dry_run: false,
        warnings: &mut warnings,
        round: &mut round,
    };
    let shown = Shown {
        row: row("pods"),
        object: Some(&object),
        old: None,
    };
    let namespace = json!({"metadata": {"name": "n", "labels": {"a": "b"}}});
    let memory = Memory::with(&[("namespaces", namespace)]);
    let facts = Facts::new(&request, &shown, &Authority::default(), &*memory).await;
    let facts = facts.expect("a namespace");
    conditions.hold(&facts, &shown, None, on_failure)
}

#[tokio::test]
async fn conditions_and_what_their_failures_mean() {
    use OnFailure::{GoOn, Refuse};
    const BAD: &str = "object.nothing == 1";
    const WHY: &str = "expression 'object.nothing == 1' resulted in error: no such key: nothing";
    for (all, on_failure, want) in [
        (
            &["object.metadata.name == 'p'", "oldObject == null"][..],
            Refuse,
            Ok(true),
        ),
        (
            &["request.userInfo.username == 'jane' && request.operation == 'CREATE'"],
            Refuse,
            Ok(true),
        ),
        (
            &["'dev' in request.userInfo.groups && request.resource.resource == 'pods'"],
            Refuse,
            Ok(true),
        ),
        (
            &["namespaceObject.metadata.labels['a'] == 'b'"],
            Refuse,
            Ok(true),
        ),
        (&["has(request.subResource)"], Refuse, Ok(false)),
        (&[BAD, "false"], Refuse, Ok(false)),
        (&["true", BAD], Refuse, Err(WHY.to_owned())),
        (&["true", BAD], GoOn, Ok(false)),
        (&[BAD, BAD], Refuse, Err(WHY.to_owned())),
        // Nothing is known of roles here.
        (
            &["authorizer.requestResource.check('get').errored()"],
            Refuse,
            Ok(true),
        ),
    ] {
        assert_eq!(held(all, on_failure).await, want, "{all:?}");
    }
    let two = held(&[BAD, "object.other"], Refuse).await.expect_err("two");
    assert!(
        two.starts_with(&format!("[{WHY}, compilation error: must evaluate to bool")),
        "{two}"
    );
}

#[tokio::test]
async fn what_costs_too_much_is_cut_off() {
    let list = (0..100)
        .map(|one| one.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let slow = format!("[{list}].all(a, [{list}].all(b, [{list}].all(c, a + b + c < 1000)))");
    let begun = crate::testing::cpu_time();
    let why = held(&[&slow], OnFailure::Refuse)
        .await
        .expect_err("too much");
    assert!(
        why.ends_with("operation cancelled: actual cost limit exceeded"),
        "{why}"
    );
    let why = held(&[&slow, &slow, &slow, "1 == 1"], OnFailure::Refuse).await;
    assert_eq!(why.expect_err("too much"), OUT_OF_BUDGET);
    let took = crate::testing::cpu_time() - begun;
    assert!(took.as_secs() < 10, "{took:?}");
}
