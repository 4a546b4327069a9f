//! How many pods each ReplicaSet of a Deployment shall have. Pure arithmetic.
//!
//! Source: the Deployment documentation ("Rolling update", "Proportional scaling") and the worked
//! numbers of its conformance tests.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;

use crate::controllers::percent::{Round, of_total};

pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    Recreate,
    Rolling,
}

/// The bounds of a Deployment, resolved to counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub replicas: i32,
    pub strategy: Strategy,
    pub surge: i32,
    pub unavailable: i32,
}

impl Bounds {
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        let strategy = deployment.spec.strategy.as_ref();
        if strategy.and_then(|one| one.type_.as_deref()) == Some("Recreate") {
            return Self {
                replicas,
                strategy: Strategy::Recreate,
                surge: 0,
                unavailable: 0,
            };
        }
        let rolling = strategy.and_then(|one| one.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling
            .and_then(|one| one.max_surge.as_ref())
            .unwrap_or(&quarter);
        let unavailable = rolling
            .and_then(|one| one.max_unavailable.as_ref())
            .unwrap_or(&quarter);
        Self::rolling(replicas, surge, unavailable)
    }

    fn rolling(replicas: i32, surge: &IntOrString, unavailable: &IntOrString) -> Self {
        let surge = of_total(surge, replicas, Round::Up);
        let mut unavailable = of_total(unavailable, replicas, Round::Down);
        if surge == 0 && unavailable == 0 {
            // Both may round to nothing; then one pod at a time keeps the update moving.
            unavailable = 1;
        }
        Self {
            replicas,
            strategy: Strategy::Rolling,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    /// The most pods at any moment.
    pub fn max_total(&self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest available pods at any moment.
    pub fn min_available(&self) -> i32 {
        self.replicas - self.unavailable
    }

    /// Pods of the new ReplicaSet, which has `new` now, while all ReplicaSets together have `all`.
    pub fn new_replicas(&self, new: i32, all: i32) -> i32 {
        match self.strategy {
            Strategy::Recreate => self.replicas,
            Strategy::Rolling => {
                let room = self.max_total() - all;
                if room <= 0 {
                    return new;
                }
                new + room.min(self.replicas - new)
            }
        }
    }
}

/// A ReplicaSet that takes part in proportional scaling.
#[derive(Clone, Debug)]
pub struct Share {
    pub replicas: i32,
    /// The most pods of the whole Deployment when this ReplicaSet was last sized.
    pub max_before: Option<i32>,
}

/// New sizes when the Deployment's own size changed in the middle of a rollout. `shares` come
/// largest first (of equals the newest first when growing, the oldest when shrinking); what
/// rounding leaves goes to the first.
pub fn proportional(shares: &[Share], bounds: &Bounds, status_replicas: i32) -> Vec<i32> {
    let allowed = if bounds.replicas > 0 {
        bounds.max_total()
    } else {
        0
    };
    let total: i32 = shares.iter().map(|share| share.replicas).sum();
    let to_add = allowed - total;
    let mut added = 0;
    let mut sizes: Vec<i32> = shares
        .iter()
        .map(|share| {
            let part = proportion(share, bounds, to_add, added, status_replicas);
            added += part;
            share.replicas + part
        })
        .collect();
    if to_add != 0
        && let Some(first) = sizes.first_mut()
    {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn proportion(share: &Share, bounds: &Bounds, to_add: i32, added: i32, status: i32) -> i32 {
    if share.replicas == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(share, bounds, status);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(share: &Share, bounds: &Bounds, status: i32) -> i32 {
    if bounds.replicas == 0 {
        return -share.replicas;
    }
    let before = share.max_before.filter(|max| *max > 0).unwrap_or(status);
    if before <= 0 {
        return 0;
    }
    let size = f64::from(share.replicas) * f64::from(bounds.max_total()) / f64::from(before);
    // Replica counts are far below the precision of f64, and rounding is to the nearest.
    #[allow(clippy::cast_possible_truncation)] // `as` saturates, and a count fits
    let size = size.round() as i32;
    size - share.replicas
}

pub fn annotation_number(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.annotations().get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(text: &str) -> IntOrString {
        IntOrString::String(text.into())
    }

    #[test]
    fn bounds_of_a_rolling_update() {
        // Source: the Deployment documentation, "Max Surge" and "Max Unavailable", worked through.
        for (replicas, surge, unavailable, total, available) in [
            (3, percent("25%"), percent("25%"), 4, 3),
            (1, percent("25%"), percent("25%"), 2, 1),
            (5, IntOrString::Int(0), percent("10%"), 5, 4),
            (10, percent("25%"), percent("25%"), 13, 8),
            (10, IntOrString::Int(3), IntOrString::Int(2), 13, 8),
        ] {
            let bounds = Bounds::rolling(replicas, &surge, &unavailable);
            assert_eq!(
                (bounds.max_total(), bounds.min_available()),
                (total, available),
                "{replicas} {surge:?} {unavailable:?}"
            );
        }
    }

    #[test]
    fn growth_in_the_middle_of_a_rollout_is_shared() {
        // Source: the Deployment documentation, "Proportional scaling": 8 old and 5 new, scaled
        // from 10 to 15 with surge 3, become 11 and 7.
        let bounds = Bounds::rolling(15, &IntOrString::Int(3), &IntOrString::Int(2));
        let share = |replicas| Share {
            replicas,
            max_before: Some(13),
        };
        assert_eq!(
            proportional(&[share(8), share(5)], &bounds, 13),
            [11, 7],
            "10 to 15"
        );
        let none = Bounds::rolling(0, &IntOrString::Int(3), &IntOrString::Int(2));
        assert_eq!(proportional(&[share(8), share(5)], &none, 13), [0, 0]);
        let less = Bounds::rolling(5, &IntOrString::Int(3), &IntOrString::Int(2));
        assert_eq!(proportional(&[share(8), share(5)], &less, 13), [5, 3]);
    }

    #[test]
    fn the_new_set_grows_into_the_room_left() {
        let bounds = Bounds::rolling(10, &percent("25%"), &percent("25%"));
        for (new, all, want) in [(0, 10, 3), (3, 13, 3), (3, 11, 5), (8, 8, 10), (0, 0, 10)] {
            assert_eq!(bounds.new_replicas(new, all), want, "{new} of {all}");
        }
    }
}
