//! The controllers' narrow view of the cluster's authority: they read and sign requests without
//! ever holding its key.

use std::time::{Duration, SystemTime};

use crate::{
    controllers::{Authority, Former, Requested},
    pki::{Pki, Request},
};

pub struct ClusterAuthority(pub Pki);

impl Authority for ClusterAuthority {
    fn read(&self, request: &[u8]) -> Result<Requested, String> {
        let request = Request::parse(request).map_err(|error| error.to_string())?;
        Ok(Requested {
            common_name: request.common_name,
            organizations: request.organizations,
            names: request.names,
            addresses: request.addresses,
            emails: request.emails.len(),
            uris: request.uris.len(),
        })
    }

    fn sign(
        &self,
        request: &[u8],
        usages: &[&str],
        life: Duration,
        now: SystemTime,
    ) -> Result<String, String> {
        let request = Request::parse(request).map_err(|error| error.to_string())?;
        let signed = self.0.sign(&request, usages, life, now);
        signed.map_err(|error| crate::causes::causes(&error))
    }

    fn ends(&self, certificate: &[u8]) -> Option<SystemTime> {
        crate::pki::ends(certificate)
    }

    fn former(&self, certificate: &str, request: &[u8]) -> Option<Former> {
        let request = Request::parse(request).ok()?;
        let former = self.0.former(certificate, &request)?;
        Some(Former {
            user: former.user,
            groups: former.groups,
            issued: former.issued,
        })
    }
}
