//! What the node keeps for itself, what is left for pods, and what holds them to it. Pure.

use crate::{
    kubelet::{
        container::Facts,
        eviction::{Settings, Signal},
        settings::{Invalid, ResourceSettings, pairs},
    },
    runtime::Ceilings,
};

/// Of the machine's memory the daemon and its supervisors get this part, but at least and at most...
const MEMORY_PART: u64 = 20;
const MEMORY_LEAST: u64 = 100 << 20;
const MEMORY_MOST: u64 = 500 << 20;
/// The same of the processes that the kernel allows.
const PIDS_PART: u64 = 50;
const PIDS_LEAST: u64 = 100;
const PIDS_MOST: u64 = 1000;

/// Of the resources that can be reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub ephemeral: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Amounts {
    /// `cpu=200m,memory=500Mi,ephemeral-storage=1Gi,pid=1000`.
    pub fn parse(flag: &'static str, text: &str) -> Result<Self, Invalid> {
        let mut amounts = Self::default();
        for (name, text) in pairs(flag, text, '=')? {
            let wrong = |problem: &str| Invalid::new(flag, format!("{name}: {text:?} {problem}"));
            let quantity = proto::quantity::Quantity::parse(text)
                .map_err(|error| wrong(&error.to_string()))?;
            if quantity.is_negative() {
                return Err(wrong("must not be negative"));
            }
            let whole = u64::try_from(quantity.value()).unwrap_or(0);
            match name {
                "cpu" => amounts.cpu_milli = u64::try_from(quantity.milli()).unwrap_or(0),
                "memory" => amounts.memory = whole,
                "ephemeral-storage" => amounts.ephemeral = whole,
                "pid" => amounts.pids = whole,
                _ => {
                    let problem = "cannot be reserved, only cpu, memory, ephemeral-storage and pid";
                    return Err(wrong(problem));
                }
            }
        }
        Ok(amounts)
    }

    /// What suits a machine when nobody says otherwise.
    fn suitable(capacity: Self) -> Self {
        Self {
            memory: (capacity.memory / MEMORY_PART).clamp(MEMORY_LEAST, MEMORY_MOST),
            pids: (capacity.pids / PIDS_PART).clamp(PIDS_LEAST, PIDS_MOST),
            ..Self::default()
        }
    }

    fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    fn without(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    fn each(self, other: Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: with(self.cpu_milli, other.cpu_milli),
            memory: with(self.memory, other.memory),
            ephemeral: with(self.ephemeral, other.ephemeral),
            pids: with(self.pids, other.pids),
        }
    }
}

/// The node's capacity and what is not for pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The disk's size may change while the daemon runs; it comes with each question.
    capacity: Amounts,
    reserved: Amounts,
    eviction: Settings,
}

impl Budget {
    /// Errors: more is reserved than there is.
    pub fn new(facts: &Facts, pids: u64, settings: &ResourceSettings) -> Result<Self, Invalid> {
        let capacity = Amounts {
            cpu_milli: facts.cpu_milli,
            memory: facts.memory_bytes,
            ephemeral: 0,
            pids,
        };
        let suitable = || Amounts::suitable(capacity);
        let own = settings.kube_reserved.unwrap_or_else(suitable);
        let reserved = own.plus(settings.system_reserved);
        for (name, reserved, capacity) in [
            ("cpu", reserved.cpu_milli, capacity.cpu_milli),
            ("memory", reserved.memory, capacity.memory),
            ("pid", reserved.pids, capacity.pids),
        ] {
            if reserved >= capacity {
                let problem = format!(
                    "with --system-reserved it leaves no {name} for pods: {reserved} of {capacity}"
                );
                return Err(Invalid::new("--kube-reserved", problem));
            }
        }
        Ok(Self {
            capacity,
            reserved,
            eviction: settings.eviction.clone(),
        })
    }

    pub fn capacity(&self, disk: u64) -> Amounts {
        Amounts {
            ephemeral: disk,
            ..self.capacity
        }
    }

    /// Capacity without reservations and without what the hard thresholds keep free.
    pub fn allocatable(&self, disk: u64) -> Amounts {
        let kept = Amounts {
            memory: self
                .eviction
                .kept_free(Signal::Memory, self.capacity.memory),
            ephemeral: self.eviction.kept_free(Signal::NodefsBytes, disk),
            ..Amounts::default()
        };
        self.capacity(disk).without(self.reserved).without(kept)
    }

    /// What the kernel holds all pods to. Eviction comes before it, hence the thresholds do not
    /// count here.
    pub fn ceilings(&self) -> Ceilings {
        let left = self.capacity.without(self.reserved);
        Ceilings {
            memory_bytes: left.memory,
            pids: left.pids,
            cpu_shares: left.cpu_milli * 1024 / 1000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GI: u64 = 1 << 30;

    fn budget(settings: &ResourceSettings) -> Result<Budget, Invalid> {
        let facts = Facts {
            cpu_milli: 4000,
            memory_bytes: 8 * GI,
            ..Facts::default()
        };
        Budget::new(&facts, 32_768, settings)
    }

    #[test]
    fn what_is_left() {
        let usual = budget(&ResourceSettings::default()).unwrap();
        let mi = |bytes: u64| bytes >> 20;
        let allocatable = usual.allocatable(1000);
        assert_eq!(allocatable.cpu_milli, 4000);
        assert_eq!(mi(allocatable.memory), 8192 - 409 - 100 - 1); // 5 %, and the threshold
        assert_eq!(allocatable.ephemeral, 900);
        let ceilings = usual.ceilings();
        assert_eq!(mi(ceilings.memory_bytes), 8192 - 409 - 1);
        assert_eq!((ceilings.pids, ceilings.cpu_shares), (32_768 - 655, 4096));
        let typed = |text| Amounts::parse("--x", text).unwrap();
        let given = budget(&ResourceSettings {
            kube_reserved: Some(typed("cpu=500m,memory=1Gi")),
            system_reserved: typed("memory=1Gi,ephemeral-storage=100,pid=768"),
            ..ResourceSettings::default()
        })
        .unwrap();
        let allocatable = given.allocatable(1000);
        assert_eq!(allocatable.cpu_milli, 3500);
        assert_eq!(mi(allocatable.memory), 6 * 1024 - 100);
        assert_eq!(allocatable.ephemeral, 800);
        assert_eq!(given.ceilings().pids, 32_000);
    }

    #[test]
    fn small_and_large_machines() {
        for (memory, pids, want) in [
            (GI, 2000, (MEMORY_LEAST, PIDS_LEAST)),
            (64 * GI, 4_000_000, (MEMORY_MOST, PIDS_MOST)),
        ] {
            let capacity = Amounts {
                memory,
                pids,
                ..Amounts::default()
            };
            let got = Amounts::suitable(capacity);
            assert_eq!((got.memory, got.pids), want);
        }
    }

    #[test]
    fn what_makes_no_sense() {
        for text in ["memory", "memory=much", "memory=-1", "gpu=1"] {
            assert!(Amounts::parse("--x", text).is_err(), "{text}");
        }
        let all = ResourceSettings {
            kube_reserved: Some(Amounts {
                memory: 8 * GI,
                ..Amounts::default()
            }),
            ..ResourceSettings::default()
        };
        let error = budget(&all).unwrap_err().to_string();
        assert!(error.contains("leaves no memory for pods"), "{error}");
    }
}
