//! From group, version and kind to the type.

use super::{Schema, Type};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

impl Schema {
    /// The type of a kind: `("apps/v1", "Deployment")`. `DeleteOptions`, `Status` and their like
    /// are known in every group and version.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&'static Type> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let own = self.get(&format!("{}.{version}.{kind}", package(group)));
        own.filter(|ty| !ty.fields.is_empty()).or_else(|| {
            let shared = matches!(
                kind,
                "DeleteOptions"
                    | "CreateOptions"
                    | "UpdateOptions"
                    | "PatchOptions"
                    | "ListOptions"
                    | "GetOptions"
                    | "Status"
                    | "List"
                    | "PartialObjectMetadata"
                    | "PartialObjectMetadataList"
                    | "APIGroup"
                    | "APIGroupList"
                    | "APIResourceList"
                    | "APIVersions"
            );
            self.get(&format!("{META}.{kind}")).filter(|_| shared)
        })
    }
}

/// The package of a group's types in OpenAPI names, without the version.
fn package(group: &str) -> String {
    match group {
        "" => "io.k8s.api.core".to_owned(),
        "meta.k8s.io" => "io.k8s.apimachinery.pkg.apis.meta".to_owned(),
        "apiextensions.k8s.io" => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned()
        }
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_owned(),
        "metrics.k8s.io" => "io.k8s.metrics.pkg.apis.metrics".to_owned(),
        "internal.apiserver.k8s.io" => "io.k8s.api.apiserverinternal".to_owned(),
        group => {
            let first = group.split('.').next().unwrap_or(group);
            format!("io.k8s.api.{first}")
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::schema;

    #[test]
    fn kinds_are_found() {
        for (api_version, kind, name) in [
            ("v1", "Pod", Some("io.k8s.api.core.v1.Pod")),
            (
                "rbac.authorization.k8s.io/v1",
                "Role",
                Some("io.k8s.api.rbac.v1.Role"),
            ),
            (
                "policy/v1",
                "Eviction",
                Some("io.k8s.api.policy.v1.Eviction"),
            ),
            (
                "v1",
                "Status",
                Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
            ),
            (
                "apps/v1",
                "DeleteOptions",
                Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
            ),
            (
                "v1",
                "List",
                Some("io.k8s.apimachinery.pkg.apis.meta.v1.List"),
            ),
            ("apps/v1", "Pod", None),
            ("example.com/v1", "Widget", None),
        ] {
            let found = schema().by_kind(api_version, kind).map(|ty| ty.name);
            assert_eq!(found, name, "{api_version} {kind}");
        }
    }
}
