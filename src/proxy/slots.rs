//! The numbered places that connections are dealt to. Pure.

use std::collections::BTreeSet;

use super::model::{Backend, Front, Outcome, Plan};

/// The places of each front of a Service.
#[derive(Debug, Default)]
pub struct Slots(Box<[(Front, Box<[Backend]>)]>);

impl Slots {
    /// With the next plan.
    pub fn next(&self, plan: &Plan) -> Self {
        let of_fronts = plan.fronts.iter().filter_map(|(front, outcome)| {
            let Outcome::Forward {
                backends, affinity, ..
            } = outcome
            else {
                return None;
            };
            let places = match affinity {
                Some(_) => Places::Sticky,
                None => Places::Dense,
            };
            let slots = assign(self.of(front), backends, places);
            Some((*front, slots.into_boxed_slice()))
        });
        Self(of_fronts.collect())
    }

    /// None of a front that leads nowhere.
    pub fn of(&self, front: &Front) -> &[Backend] {
        let found = self.0.binary_search_by_key(front, |(front, _)| *front);
        found.ok().map_or(&[], |at| &self.0[at].1)
    }
}

/// What becomes of a place whose backend went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    /// The last place's backend moves in: as many places as backends.
    Dense,
    /// Another backend serves it too, so that the clients of the others stay where they are.
    Sticky,
}

/// Gives each backend a place, and leaves those that had one where they were.
fn assign(before: &[Backend], backends: &BTreeSet<Backend>, places: Places) -> Vec<Backend> {
    if backends.is_empty() {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut slots: Vec<Option<Backend>> = before
        .iter()
        .map(|backend| (backends.contains(backend) && seen.insert(*backend)).then_some(*backend))
        .collect();
    let mut fresh = backends.difference(&seen).copied();
    for slot in &mut slots {
        if slot.is_none() {
            *slot = fresh.next();
        }
    }
    slots.extend(fresh.map(Some));
    match places {
        Places::Sticky => {
            let mut spare = backends.iter().copied().cycle();
            slots
                .into_iter()
                .filter_map(|slot| slot.or_else(|| spare.next()))
                .collect()
        }
        Places::Dense => {
            let mut dense: Vec<Option<Backend>> = slots;
            let mut at = 0;
            while at < dense.len() {
                match dense[at] {
                    Some(_) => at += 1,
                    None => {
                        dense.swap_remove(at);
                    }
                }
            }
            dense.into_iter().flatten().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn backends_keep_their_places() {
        let backend = |last: u8| (IpAddr::from([10, 0, 0, last]), 80);
        for (before, now, places, want) in [
            (&[][..], &[1, 2][..], Places::Dense, &[1, 2][..]),
            (&[1, 2, 3], &[2, 3], Places::Dense, &[3, 2]), // the last fills the hole
            (&[1, 2, 3], &[2, 3, 4], Places::Dense, &[4, 2, 3]), // the new one fills it
            (&[1, 2, 3], &[2, 3], Places::Sticky, &[2, 2, 3]), // 2 and 3 stay
            (&[2, 2, 3], &[2, 3, 4], Places::Sticky, &[2, 4, 3]), // the double gives way
            (&[1, 2], &[], Places::Sticky, &[]),
        ] {
            let list = |numbers: &[u8]| numbers.iter().map(|n| backend(*n)).collect::<Vec<_>>();
            let got = assign(&list(before), &list(now).into_iter().collect(), places);
            assert_eq!(got, list(want), "{before:?} {now:?} {places:?}");
        }
    }
}
