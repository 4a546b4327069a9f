//! Rules of a pod's `dnsConfig`; words and limits are the original's.

use serde_json::Value;

use crate::apiserver::registry::{
    Causes,
    kinds::{
        names,
        value::{has, items, text, texts},
    },
};

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MOST_NAMESERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
/// All search paths together, with blanks between them.
const SEARCH_CHARACTERS: usize = 2048;

pub fn config(spec: &Value, path: &str, causes: &mut Causes) {
    let path = format!("{path}.dnsConfig");
    if text(spec, "dnsPolicy") == "None" {
        if !has(spec, "dnsConfig") {
            return causes.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if items(spec, "dnsConfig.nameservers").is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return causes.required(format!("{path}.nameservers"), detail);
        }
    }
    let nameservers = texts(spec, "dnsConfig.nameservers");
    if nameservers.len() > MOST_NAMESERVERS {
        let detail = format!("must not have more than {MOST_NAMESERVERS} nameservers");
        causes.invalid(format!("{path}.nameservers"), &nameservers, &detail);
    }
    for (index, server) in nameservers.iter().enumerate().take(MOST_NAMESERVERS) {
        if server.parse::<std::net::IpAddr>().is_err() {
            causes.invalid(format!("{path}.nameservers[{index}]"), server, NO_IP);
        }
    }
    let searches = texts(spec, "dnsConfig.searches");
    let field = format!("{path}.searches");
    if searches.len() > MOST_SEARCHES {
        let detail = format!("must not have more than {MOST_SEARCHES} search paths");
        causes.invalid(&field, &searches, &detail);
    }
    if searches.join(" ").len() > SEARCH_CHARACTERS {
        let detail = format!(
            "must not have more than {SEARCH_CHARACTERS} characters (including spaces) in the \
             search list"
        );
        causes.invalid(&field, &searches, &detail);
    }
    for (index, search) in searches.iter().enumerate().take(MOST_SEARCHES) {
        // Underscores are allowed, as in the names of some networks.
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "0");
        if *search != "." {
            let wrong = names::dns_subdomain(&name);
            names::report(wrong, search, &format!("{field}[{index}]"), causes);
        }
    }
    for (index, option) in items(spec, "dnsConfig.options").iter().enumerate() {
        if text(option, "name").is_empty() {
            causes.required(format!("{path}.options[{index}]"), "must not be empty");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_short_and_well_formed() {
        let many: Vec<String> = (0..33).map(|number| format!("a{number}")).collect();
        let long = vec!["a".repeat(60); 32].join(".");
        for (config, want) in [
            (
                json!({"nameservers": ["1.1.1.1"], "searches": ["a.b", ".", "my_net.", "c."]}),
                None,
            ),
            (
                json!({"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}),
                Some("spec.dnsConfig.nameservers"),
            ),
            (
                json!({"nameservers": ["1.1.1.1\nnameserver 2.2.2.2"]}),
                Some("spec.dnsConfig.nameservers[0]"),
            ),
            (json!({"searches": many}), Some("spec.dnsConfig.searches")),
            (
                json!({"searches": [long.clone(), long]}),
                Some("spec.dnsConfig.searches"),
            ),
            (
                json!({"searches": ["a b"]}),
                Some("spec.dnsConfig.searches[0]"),
            ),
            (
                json!({"options": [{"value": "1"}]}),
                Some("spec.dnsConfig.options[0]"),
            ),
        ] {
            let mut causes = Causes::default();
            super::config(&json!({"dnsConfig": config}), "spec", &mut causes);
            let got = causes.0.first().map(|cause| cause.field.as_str());
            assert_eq!(got, want, "{config}");
        }
    }
}
