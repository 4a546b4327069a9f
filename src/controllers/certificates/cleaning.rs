//! When a request is removed. Pure.

use std::time::SystemTime;

use k8s_openapi::{
    api::certificates::v1::CertificateSigningRequest as Csr,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;

use super::{certificate, conditions};

const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// An hour after it was issued, denied or failed, at once when its certificate has expired, a day
/// after nobody has decided. `None`: it stays as it is. `ends`: of the issued certificate.
pub fn plan(csr: &Csr, ends: Option<SystemTime>) -> Option<Timestamp> {
    let after = |time: Option<Time>, wait: SignedDuration| time?.0.checked_add(wait).ok();
    if conditions(csr).is_empty() {
        return after(csr.creation_timestamp(), PENDING);
    }
    let issued = certificate(csr).is_some();
    let decided = conditions(csr).iter().filter_map(|one| {
        let counts = match one.type_.as_str() {
            "Denied" | "Failed" => true,
            "Approved" => issued,
            _ => false,
        };
        counts
            .then(|| after(one.last_update_time.clone(), DECIDED))
            .flatten()
    });
    let ends = ends
        .filter(|_| issued)
        .and_then(|ends| Timestamp::try_from(ends).ok());
    decided.chain(ends).min()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::controllers::certificates::testing::{DECIDED_AT, csr};

    #[test]
    fn when_a_request_goes() {
        let hour = 3600;
        for (conditions, issued, ends, want) in [
            (&[][..], false, None, Some(24 * hour)),
            (&["Approved"], true, None, Some(hour)),
            (&["Approved"], true, Some(60), Some(60)),
            (&["Approved"], true, Some(9 * hour), Some(hour)),
            // Its signer, another's, may still issue it.
            (&["Approved"], false, None, None),
            (&["Denied"], false, None, Some(hour)),
            (&["Approved", "Failed"], false, None, Some(hour)),
            (&["Other"], false, None, None),
        ] {
            let csr = csr("example.com/own", conditions, issued);
            let ends = ends.map(|seconds: i64| {
                let seconds = u64::try_from(DECIDED_AT + seconds).expect("a time");
                UNIX_EPOCH + Duration::from_secs(seconds)
            });
            let got = plan(&csr, ends).map(|at| at.as_second() - DECIDED_AT);
            assert_eq!(got, want, "{conditions:?} {issued} {ends:?}");
        }
    }
}
