//! `DenyServiceExternalIPs`, switchable; and a word to those whose external addresses will not work.
//!
//! An external address takes the cluster's traffic for it away from whoever has it, so a cluster whose
//! users do not trust each other denies them. Words are the original's.

use std::net::IpAddr;

use serde_json::Value;

use super::{super::Request, ServiceConfig, ranges};
use crate::{
    addresses::canonical,
    apiserver::{
        admission::{Operation, Plugin},
        objects::Lookup,
        registry::kinds::value::texts,
        status::Status,
    },
};

const FIELD: &str = "spec.externalIPs";

/// Whether Services may name addresses of their own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    #[default]
    Allowed,
    /// Those that are there may stay.
    Denied,
}

pub struct ExternalIpsCheck {
    policy: ExternalIps,
}

impl ExternalIpsCheck {
    pub fn new(config: &ServiceConfig) -> Self {
        Self {
            policy: config.external_ips,
        }
    }
}

#[async_trait::async_trait]
impl Plugin for ExternalIpsCheck {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    async fn validate(
        &self,
        request: &mut Request<'_>,
        service: Option<&Value>,
        lookup: &dyn Lookup,
    ) -> Result<(), Status> {
        let written = request.is(Operation::Create, "", "services")
            || request.is(Operation::Update, "", "services");
        let Some(service) = service.filter(|_| written) else {
            return Ok(());
        };
        let new = texts(service, FIELD);
        let old = request.old.map(|old| texts(old, FIELD)).unwrap_or_default();
        if new.iter().all(|ip| old.contains(ip)) {
            return Ok(());
        }
        if self.policy == ExternalIps::Denied {
            return Err(request.forbidden("Use of external IPs is denied by admission control."));
        }
        let ranges = ranges::now(lookup).await;
        for (index, ip) in new.iter().enumerate() {
            let of_services = ip
                .parse::<IpAddr>()
                .is_ok_and(|ip| ranges.cover(canonical(ip)));
            if of_services {
                request.warnings.push(format!(
                    "{FIELD}[{index}]: {ip} is in the range of cluster addresses: it is not served"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::admission::testing::{Memory, admit};

    #[tokio::test]
    async fn what_is_there_may_stay() {
        let denied = ExternalIpsCheck {
            policy: ExternalIps::Denied,
        };
        let service = |ips: &[&str]| json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"externalIPs": ips}});
        let memory = Memory::default();
        let old = service(&["192.0.2.1", "192.0.2.2"]);
        for (new, old, want) in [
            (&[][..], None, None),
            (
                &["192.0.2.1"],
                None,
                Some(
                    "services \"s\" is forbidden: Use of external IPs is denied by admission control.",
                ),
            ),
            (&["192.0.2.1"], Some(&old), None),
            (
                &["192.0.2.1", "192.0.2.3"],
                Some(&old),
                Some(
                    "services \"s\" is forbidden: Use of external IPs is denied by admission control.",
                ),
            ),
        ] {
            let mut new = service(new);
            let got = admit(&denied, &memory, "services", &mut new, old).await;
            let got = got.err().map(|status| status.message);
            assert_eq!(got.as_deref(), want, "{new}");
        }
    }
}
