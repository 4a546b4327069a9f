//! How much a pod may receive and send, by the annotations `kubernetes.io/ingress-bandwidth` and
//! `kubernetes.io/egress-bandwidth`: bits a second. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use proto::quantity::Quantity;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
const LEAST: i64 = 1_000;
const MOST: i64 = 1_000_000_000_000_000;

/// Bits a second; `None` where nothing is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// The error names the annotation and says what it may be.
    pub fn of(pod: &Pod) -> Result<Self, String> {
        let bits = |name: &str| match pod.annotations().get(name) {
            None => Ok(None),
            Some(text) => parse(text).map(Some).ok_or_else(|| {
                format!("the annotation {name} is {text:?}: it must be from 1k to 1P bits a second")
            }),
        };
        Ok(Self {
            ingress: bits(INGRESS)?,
            egress: bits(EGRESS)?,
        })
    }

    pub fn is_limited(self) -> bool {
        self != Self::default()
    }
}

fn parse(text: &str) -> Option<u64> {
    let bits = Quantity::parse(text).ok()?.value();
    (LEAST..=MOST)
        .contains(&bits)
        .then_some(bits.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_annotations_say() {
        for (ingress, egress, want) in [
            (None, None, Ok((None, None))),
            (Some("1M"), None, Ok((Some(1_000_000), None))),
            (
                Some("1k"),
                Some("1P"),
                Ok((Some(1_000), Some(1_000_000_000_000_000))),
            ),
            (Some("999"), None, Err("ingress-bandwidth is \"999\"")),
            (None, Some("2P"), Err("egress-bandwidth is \"2P\"")),
            (None, Some("fast"), Err("egress-bandwidth is \"fast\"")),
            (None, Some("-1M"), Err("egress-bandwidth is \"-1M\"")),
        ] {
            let mut pod = Pod::default();
            let given = [(INGRESS, ingress), (EGRESS, egress)];
            let given = given
                .into_iter()
                .filter_map(|(name, text)| Some((name, text?)));
            let given: BTreeMap<String, String> = given
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect();
            pod.metadata.annotations = Some(given);
            match (Bandwidth::of(&pod), want) {
                (Ok(got), Ok(want)) => assert_eq!((got.ingress, got.egress), want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
    }
}
