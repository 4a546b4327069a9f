//! Certificates of nodes that were removed from the cluster for good.

use crate::{
    apiserver::{
        objects::Lookup,
        status::{Cause, CauseType, Details, Reason, Status},
    },
    node_identity::{self, NAMESPACE, RECORD, is_from_before, node_of},
    pki::Holder,
};

/// Why the certificate does not count, if it is from before the removal of its node. Its machine learns that
/// from it, and stops.
pub async fn refusal(holder: &Holder, lookup: &dyn Lookup) -> Option<Status> {
    let node = node_of(&holder.user, &holder.groups)?;
    let record = lookup.get("configmaps", NAMESPACE, RECORD).await?;
    let entry = record["data"][node].as_str()?;
    if !is_from_before(entry, holder.issued) {
        return None;
    }
    let message = node_identity::refusal(node);
    let cause = Cause {
        reason: CauseType::NodeRemoved,
        message: message.clone(),
        field: String::new(),
    };
    let mut status = Status::new(Reason::Unauthorized, message);
    status.details = Some(Details {
        name: node.to_owned(),
        kind: "nodes".to_owned(),
        causes: vec![cause],
        ..Details::default()
    });
    Some(status)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::apiserver::testing::InMemory;

    #[tokio::test]
    async fn only_what_is_from_before_the_removal_is_refused() {
        let objects = InMemory::default();
        let now = SystemTime::now();
        let removed = Timestamp::try_from(now).expect("a time").to_string();
        objects.put(
            "configmaps",
            json!({"metadata": {"namespace": NAMESPACE, "name": RECORD},
                "data": {"gone": removed}}),
        );
        let minute = Duration::from_secs(60);
        for (user, group, issued, want) in [
            ("system:node:gone", "system:nodes", now - minute, true),
            ("system:node:gone", "system:nodes", now + minute, false),
            ("system:node:other", "system:nodes", now - minute, false),
            (
                "system:kube-proxy",
                "vetch.io:proxy-of:gone",
                now - minute,
                true,
            ),
            (
                "system:kube-proxy",
                "vetch.io:proxy-of:other",
                now - minute,
                false,
            ),
            ("system:node:gone", "people", now - minute, false),
        ] {
            let holder = Holder {
                user: user.to_owned(),
                groups: vec![group.to_owned()],
                fingerprint: [0; 32],
                issued,
            };
            let refused = refusal(&holder, &objects).await;
            assert_eq!(refused.is_some(), want, "{user} {group} {issued:?}");
            if let Some(status) = refused {
                assert_eq!(status.code, 401);
                let told = serde_json::to_value(&status).expect("JSON");
                assert_eq!(
                    told["details"]["causes"][0]["reason"],
                    node_identity::REMOVED
                );
            }
        }
        // Where nobody was removed there is no record.
        let holder = Holder {
            user: "system:node:gone".to_owned(),
            groups: vec!["system:nodes".to_owned()],
            fingerprint: [0; 32],
            issued: now - minute,
        };
        assert!(refusal(&holder, &InMemory::default()).await.is_none());
    }
}
