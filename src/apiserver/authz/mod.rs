//! Who may do what.

use super::{
    request::{Attributes, User},
    status::{Reason, Status},
};

pub enum Decision {
    Allow { reason: String },
    NoOpinion { reason: String },
}

pub struct Authorizer {}

impl Authorizer {
    pub async fn authorize(&self, user: &User, _attributes: &Attributes) -> Decision {
        let reason = String::new();
        if user.groups.iter().any(|group| group == "system:masters") {
            return Decision::Allow { reason };
        }
        Decision::NoOpinion { reason }
    }
}

pub fn forbidden(_user: &User, _attributes: &Attributes, _decision: &Decision) -> Status {
    Status::new(Reason::Forbidden, "forbidden")
}
