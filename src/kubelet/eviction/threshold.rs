//! Signals, thresholds, and how they are written. Pure.
//!
//! Source: Kubernetes documentation, "Node-pressure Eviction".

use std::time::Duration;

use crate::kubelet::settings::{Invalid, TypedThresholds, duration, pairs};

/// The original's, and one for processes: without it pods that fork for ever would keep all others
/// from starting anything.
const DEFAULT_HARD: &str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,\
     imagefs.available<15%,imagefs.inodesFree<5%,pid.available<5%";
const HARD: &str = "--eviction-hard";
const SOFT: &str = "--eviction-soft";
const GRACE: &str = "--eviction-soft-grace-period";
const RECLAIM: &str = "--eviction-minimum-reclaim";
/// How long a condition is still told after it was seen last.
const TRANSITION: Duration = Duration::from_secs(300);

/// Something of which the node may run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    Memory,
    /// Memory that all pods together may still use; follows the threshold of memory.
    AllocatableMemory,
    NodefsBytes,
    NodefsInodes,
    ImagefsBytes,
    ImagefsInodes,
    Pids,
}

/// Those that can be named.
const SIGNALS: [(&str, Signal); 6] = [
    ("memory.available", Signal::Memory),
    ("nodefs.available", Signal::NodefsBytes),
    ("nodefs.inodesFree", Signal::NodefsInodes),
    ("imagefs.available", Signal::ImagefsBytes),
    ("imagefs.inodesFree", Signal::ImagefsInodes),
    ("pid.available", Signal::Pids),
];

/// What evicting a pod gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Memory,
    Disk,
    Pid,
}

impl Signal {
    fn parse(flag: &'static str, name: &str) -> Result<Self, Invalid> {
        let found = SIGNALS.iter().find(|(known, _)| *known == name);
        found.map(|(_, signal)| *signal).ok_or_else(|| {
            let known = SIGNALS.map(|(name, _)| name).join(", ");
            let hint = match name.starts_with("containerfs.") {
                true => "; containers lie on nodefs here",
                false => "",
            };
            let problem = format!("unsupported eviction signal {name}{hint} (known: {known})");
            Invalid::new(flag, problem)
        })
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        let found = SIGNALS.iter().find(|(_, signal)| *signal == self);
        found.map_or("allocatableMemory.available", |(name, _)| *name)
    }

    pub fn resource(self) -> Resource {
        match self {
            Self::Memory | Self::AllocatableMemory => Resource::Memory,
            Self::NodefsBytes | Self::ImagefsBytes => Resource::EphemeralStorage,
            Self::NodefsInodes | Self::ImagefsInodes => Resource::Inodes,
            Self::Pids => Resource::Pids,
        }
    }

    pub fn condition(self) -> Condition {
        match self.resource() {
            Resource::Memory => Condition::Memory,
            Resource::EphemeralStorage | Resource::Inodes => Condition::Disk,
            Resource::Pids => Condition::Pid,
        }
    }
}

impl Resource {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// In the signal's own unit, or as a part of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Units(u64),
    Part(f64),
}

impl Amount {
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Units(units) => units,
            Self::Part(part) => (capacity as f64 * part) as u64,
        }
    }

    /// `None`: `0%` and `100%` mean that nothing shall be watched.
    fn parse(flag: &'static str, signal: &str, text: &str) -> Result<Option<Self>, Invalid> {
        let wrong = |problem: String| Invalid::new(flag, problem);
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent
                .parse()
                .map_err(|_| wrong(format!("{signal}: {text:?} is not a percentage")))?;
            if !(0.0..=100.0).contains(&percent) {
                let problem =
                    format!("eviction percentage threshold {signal} must be 0% to 100%: {text}");
                return Err(wrong(problem));
            }
            let none = percent == 0.0 || percent == 100.0;
            return Ok((!none).then_some(Self::Part(percent / 100.0)));
        }
        let quantity = proto::quantity::Quantity::parse(text)
            .map_err(|error| wrong(format!("{signal}: {text:?}: {error}")))?;
        match u64::try_from(quantity.value()) {
            Ok(units) if units > 0 => Ok(Some(Self::Units(units))),
            _ => Err(wrong(format!(
                "eviction threshold {signal} must be positive: {text}"
            ))),
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Units(units) => {
                f.write_str(&proto::quantity::Quantity::from_bytes(*units).canonical())
            }
            Self::Part(part) => write!(f, "{}%", (*part * 10_000.0_f64).round() / 100.0),
        }
    }
}

/// Pods are evicted when there is less of the signal than this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// How long it must be met before pods are evicted, gently then; `None`: at once and hard.
    pub grace: Option<Duration>,
    /// Once met, there must be so much more before it counts as resolved.
    pub reclaim: Option<Amount>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub thresholds: Vec<Threshold>,
    pub transition: Duration,
    /// The most that a pod gets to end where a soft threshold evicts it.
    pub max_pod_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let thresholds = TypedThresholds::default().parse();
        Self {
            thresholds: thresholds.unwrap_or_default(),
            transition: TRANSITION,
            max_pod_grace: Duration::ZERO,
        }
    }
}

impl Settings {
    /// What the hard threshold of `signal` keeps free of a capacity.
    pub fn kept_free(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = |one: &&Threshold| one.signal == signal && one.grace.is_none();
        let found = self.thresholds.iter().find(hard);
        found.map_or(0, |threshold| threshold.amount.of(capacity))
    }
}

pub fn thresholds(typed: &TypedThresholds<'_>) -> Result<Vec<Threshold>, Invalid> {
    let graces = pairs(GRACE, typed.soft_grace, '=')?
        .into_iter()
        .map(|(name, text)| {
            let signal = Signal::parse(GRACE, name)?;
            let grace = duration(text)
                .map_err(|problem| Invalid::new(GRACE, format!("{name}: {problem}")))?;
            Ok((signal, grace))
        })
        .collect::<Result<Vec<_>, Invalid>>()?;
    let reclaims = pairs(RECLAIM, typed.minimum_reclaim, '=')?
        .into_iter()
        .map(|(name, text)| {
            let signal = Signal::parse(RECLAIM, name)?;
            // Nothing more is a sensible thing to ask for here.
            let amount = match text {
                "0" => None,
                text => Amount::parse(RECLAIM, name, text)?,
            };
            Ok((signal, amount))
        })
        .collect::<Result<Vec<_>, Invalid>>()?;
    let of = |signal: Signal| {
        let found = reclaims.iter().find(|(other, _)| *other == signal);
        found.and_then(|(_, amount)| *amount)
    };
    let mut all = Vec::new();
    for (name, text) in pairs(HARD, typed.hard.unwrap_or(DEFAULT_HARD), '<')? {
        let signal = Signal::parse(HARD, name)?;
        if let Some(amount) = Amount::parse(HARD, name, text)? {
            all.push(Threshold {
                signal,
                amount,
                grace: None,
                reclaim: of(signal),
            });
        }
    }
    for (name, text) in pairs(SOFT, typed.soft, '<')? {
        let signal = Signal::parse(SOFT, name)?;
        let grace = graces.iter().find(|(other, _)| *other == signal);
        let Some((_, grace)) = grace else {
            let problem = format!(
                "grace period must be specified for the soft eviction threshold {name}, by {GRACE}"
            );
            return Err(Invalid::new(SOFT, problem));
        };
        if let Some(amount) = Amount::parse(SOFT, name, text)? {
            all.push(Threshold {
                signal,
                amount,
                grace: Some(*grace),
                reclaim: of(signal),
            });
        }
    }
    let of_pods = all
        .iter()
        .find(|one| one.signal == Signal::Memory && one.grace.is_none())
        .map(|one| Threshold {
            signal: Signal::AllocatableMemory,
            ..*one
        });
    all.extend(of_pods);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults() {
        let settings = Settings::default();
        let shown: Vec<_> = settings
            .thresholds
            .iter()
            .map(|one| (one.signal, one.amount))
            .collect();
        assert_eq!(
            shown,
            [
                (Signal::Memory, Amount::Units(100 << 20)),
                (Signal::NodefsBytes, Amount::Part(0.10)),
                (Signal::NodefsInodes, Amount::Part(0.05)),
                (Signal::ImagefsBytes, Amount::Part(0.15)),
                (Signal::ImagefsInodes, Amount::Part(0.05)),
                (Signal::Pids, Amount::Part(0.05)),
                (Signal::AllocatableMemory, Amount::Units(100 << 20)),
            ]
        );
        assert_eq!(settings.kept_free(Signal::NodefsBytes, 1000), 100);
        let typed: Vec<String> = settings.thresholds[..2]
            .iter()
            .map(|one| format!("{}<{}", one.signal.name(), one.amount))
            .collect();
        assert_eq!(typed, ["memory.available<100Mi", "nodefs.available<10%"]);
    }

    #[test]
    fn what_can_be_typed() {
        let typed = TypedThresholds {
            hard: Some("memory.available<1Gi,nodefs.available<0%"),
            soft: "imagefs.available<20%",
            soft_grace: "imagefs.available=1m30s",
            minimum_reclaim: "imagefs.available=2Gi,memory.available=0",
        };
        let got = typed.parse().unwrap();
        assert_eq!(
            got.iter().map(|one| one.signal).collect::<Vec<_>>(),
            [
                Signal::Memory,
                Signal::ImagefsBytes,
                Signal::AllocatableMemory
            ]
        );
        assert_eq!(got[1].grace, Some(Duration::from_secs(90)));
        assert_eq!(got[1].reclaim, Some(Amount::Units(2 << 30)));
        let none = TypedThresholds {
            hard: Some(""),
            ..TypedThresholds::default()
        };
        assert!(none.parse().unwrap().is_empty());
    }

    #[test]
    fn what_cannot() {
        let hard = |text| TypedThresholds {
            hard: Some(text),
            ..TypedThresholds::default()
        };
        let soft = |soft, soft_grace| TypedThresholds {
            soft,
            soft_grace,
            ..TypedThresholds::default()
        };
        for (typed, want) in [
            (hard("memory.available"), "malformed pair"),
            (hard("memory.free<1Gi"), "unsupported eviction signal"),
            (
                hard("containerfs.available<1Gi"),
                "containers lie on nodefs",
            ),
            (hard("memory.available<-1Gi"), "must be positive"),
            (hard("memory.available<0"), "must be positive"),
            (hard("memory.available<much"), "must match"),
            (hard("nodefs.available<101%"), "0% to 100%"),
            (hard("nodefs.available<x%"), "not a percentage"),
            (soft("memory.available<1Gi", ""), "grace period must be"),
            (
                soft("memory.available<1Gi", "memory.available=soon"),
                "invalid duration",
            ),
        ] {
            let error = typed.parse().unwrap_err().to_string();
            assert!(error.contains(want), "{typed:?}: {error}");
        }
    }
}
