//! Reviews: created only, never stored; their handlers answer at once.

use crate::apiserver::registry::{Resource, kinds::row};

macro_rules! review {
    ($maker:ident, $group:literal, $kind:literal, $plural:literal, $singular:literal, $type:literal) => {
        Resource {
            verbs: row::CREATE,
            ..row::$maker($group, "v1", $kind, $plural, $singular, $type)
        }
    };
}

pub const TOKEN: Resource = review!(
    cluster,
    "authentication.k8s.io",
    "TokenReview",
    "tokenreviews",
    "tokenreview",
    "io.k8s.api.authentication.v1.TokenReview"
);
pub const SELF_SUBJECT: Resource = review!(
    cluster,
    "authentication.k8s.io",
    "SelfSubjectReview",
    "selfsubjectreviews",
    "selfsubjectreview",
    "io.k8s.api.authentication.v1.SelfSubjectReview"
);
pub const SUBJECT_ACCESS: Resource = review!(
    cluster,
    "authorization.k8s.io",
    "SubjectAccessReview",
    "subjectaccessreviews",
    "subjectaccessreview",
    "io.k8s.api.authorization.v1.SubjectAccessReview"
);
pub const SELF_ACCESS: Resource = review!(
    cluster,
    "authorization.k8s.io",
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    "selfsubjectaccessreview",
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview"
);
pub const SELF_RULES: Resource = review!(
    cluster,
    "authorization.k8s.io",
    "SelfSubjectRulesReview",
    "selfsubjectrulesreviews",
    "selfsubjectrulesreview",
    "io.k8s.api.authorization.v1.SelfSubjectRulesReview"
);
pub const LOCAL_ACCESS: Resource = review!(
    namespaced,
    "authorization.k8s.io",
    "LocalSubjectAccessReview",
    "localsubjectaccessreviews",
    "localsubjectaccessreview",
    "io.k8s.api.authorization.v1.LocalSubjectAccessReview"
);
