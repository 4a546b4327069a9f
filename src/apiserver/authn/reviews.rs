//! TokenReview and SelfSubjectReview.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Authenticator, user_info};
use crate::apiserver::{
    registry::Resource,
    special::{Call, Special},
    status::Status,
};

const GROUP: &str = "authentication.k8s.io";

/// Whose token is this? For those who authenticate by asking the API.
pub struct TokenReviews(pub Arc<Authenticator>);

#[async_trait::async_trait]
impl Special for TokenReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        resource.group == GROUP && resource.plural == "tokenreviews" && subresource.is_none()
    }

    async fn create(&self, _: &Call<'_>, mut body: Value) -> Result<Value, Status> {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let asked: Vec<String> = body["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|audience| Some(audience.as_str()?.to_owned()))
            .collect();
        let audiences = if asked.is_empty() {
            self.0.issuer.audiences()
        } else {
            &asked
        };
        body["status"] = match self.0.token(token, audiences).await {
            Ok(verified) => json!({
                "authenticated": true,
                "user": user_info(&verified.user),
                "audiences": verified.audiences,
            }),
            Err(why) => json!({ "user": {}, "error": format!("[invalid bearer token, {why}]") }),
        };
        Ok(body)
    }
}

/// Who am I?
pub struct SelfSubjectReviews;

#[async_trait::async_trait]
impl Special for SelfSubjectReviews {
    fn serves(&self, resource: &Resource, subresource: Option<&str>) -> bool {
        resource.group == GROUP && resource.plural == "selfsubjectreviews" && subresource.is_none()
    }

    async fn create(&self, call: &Call<'_>, mut body: Value) -> Result<Value, Status> {
        body["status"] = json!({ "userInfo": user_info(call.user) });
        Ok(body)
    }
}
