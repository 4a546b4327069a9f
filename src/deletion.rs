//! Deleting what was judged, and nothing else.
//!
//! Who decides that an object shall go has looked at it in a cache, or some time ago. The server is
//! told what it looked at, and refuses with a conflict if that is no longer what is there.
//! Used by all that delete objects through the API.

use kube::api::{DeleteParams, ObjectMeta, Preconditions};

/// What the decision to delete an object rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// On which object it is, whatever becomes of it.
    Identity,
    /// On what it said: if it has changed, it is judged again.
    State,
}

impl Judged {
    pub fn preconditions(self, object: &ObjectMeta) -> Preconditions {
        Preconditions {
            uid: object.uid.clone(),
            resource_version: match self {
                Self::Identity => None,
                Self::State => object.resource_version.clone(),
            },
        }
    }

    /// Parameters that hold for this object only.
    pub fn params(self, object: &ObjectMeta, params: DeleteParams) -> DeleteParams {
        params.preconditions(self.preconditions(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_as_it_was() {
        let object = ObjectMeta {
            uid: Some("u".into()),
            resource_version: Some("7".into()),
            ..ObjectMeta::default()
        };
        for (judged, revision) in [(Judged::Identity, None), (Judged::State, Some("7"))] {
            let found = judged.preconditions(&object);
            assert_eq!(found.uid.as_deref(), Some("u"));
            assert_eq!(found.resource_version.as_deref(), revision);
        }
    }
}
