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
    let again =
        apply_to(Some(&other), &deployment(None, one.clone()), "me", false).expect("no conflict");
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
    let refused = apply(row, Some(&scaled), &next, by("kubectl"), false).expect_err("another's");
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
