//! Things that happen at nearly the same moment, parts that fail and host state that others undo, on a
//! running cluster: the newest wish wins, nothing is lost, and the cluster heals by itself.
//!
//! A file for each part of the program.

#[path = "../lab/mod.rs"]
mod lab;

mod edges;
mod plane;
mod pods;
mod records;
mod repair;
mod steps;
mod supervision;
mod upgrade;

/// A webhook with these rules, whose server is dead, and which fails closed.
fn dead_webhook(name: &str, rules: &str) -> String {
    format!(
        "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
- name: {name}.example.com
  clientConfig: {{url: 'https://127.0.0.1:1/'}}
  failurePolicy: Fail
  sideEffects: None
  timeoutSeconds: 1
  admissionReviewVersions: [v1]
  rules:{rules}"
    )
}
