//! Which endpoints a node chooses by their hints.

use super::*;

/// Each endpoint's hints: for nodes, and for zones.
type Said<'a> = (&'a [&'a str], &'a [&'a str]);

fn chosen(hints: &[Said<'_>], zone: Option<&str>, policy: &str) -> Vec<u8> {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}],
        "internalTrafficPolicy": policy});
    let endpoints: Vec<(String, &str)> = (1..=hints.len())
        .zip(["a", "b", "c"])
        .map(|(last, node)| (format!("10.0.0.{last}"), node))
        .collect();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, node)| (address.as_str(), *node, true, false))
        .collect();
    let mut slice = slice(8080, "TCP", &endpoints);
    let named =
        |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({"name": name})).collect() };
    for (endpoint, (nodes, zones)) in slice.endpoints.iter_mut().flatten().zip(hints) {
        let hints = json!({"forNodes": named(nodes), "forZones": named(zones)});
        endpoint.hints = serde_json::from_value(hints).expect("hints");
    }
    let node = Node {
        zone: zone.map(str::to_owned),
        ..at("a")
    };
    let plan = plan(&service(spec), &[&slice], &node);
    match plan.fronts.into_values().next() {
        Some(Outcome::Forward { backends, .. }) => backends
            .iter()
            .map(|(address, _)| match address {
                IpAddr::V4(address) => address.octets()[3],
                IpAddr::V6(_) => panic!("{address}"),
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hints_choose_where_every_endpoint_has_one() {
    let none: &[&str] = &[];
    for (hints, zone, want) in [
        (&[(&["a"][..], none), (&["b"], none)][..], None, &[1u8][..]),
        (
            &[(&["b"], none), (&["a", "b"], none), (&["c"], none)],
            None,
            &[2],
        ),
        // One that says nothing: nobody is chosen.
        (&[(&["a"], none), (none, none)], None, &[1, 2]),
        // Nobody is for this node.
        (&[(&["b"], none), (&["c"], none)], None, &[1, 2]),
        // Zones.
        (&[(none, &["x"]), (none, &["y"])], Some("y"), &[2]),
        (&[(none, &["x"]), (none, &["x", "y"])], Some("x"), &[1, 2]),
        (&[(none, &["x"]), (none, &["y"])], Some("z"), &[1, 2]),
        (&[(none, &["x"]), (none, none)], Some("x"), &[1, 2]),
        // A node in no zone.
        (&[(none, &["x"]), (none, &["y"])], None, &[1, 2]),
        // The node comes before the zone,
        (
            &[(&["a"], &["x"]), (&["b"], &["x"]), (&["c"], &["y"])],
            Some("x"),
            &[1],
        ),
        // and the zone is next where nobody is for the node.
        (
            &[(&["d"], &["x"]), (&["b"], &["x"]), (&["c"], &["y"])],
            Some("x"),
            &[1, 2],
        ),
    ] {
        assert_eq!(chosen(hints, zone, "Cluster"), want, "{hints:?} {zone:?}");
    }
    // A policy counts more.
    assert_eq!(
        chosen(&[(&["b"], none), (&["a"], none)], None, "Local"),
        [1]
    );
}
