//! What the node keeps for itself and when it evicts pods, as typed. The spelling is the kubelet's.

use std::time::Duration;

use super::Error;
use crate::kubelet::{
    eviction, image_gc,
    node::reserved::Amounts,
    settings::{ResourceSettings, TypedThresholds, duration},
};

#[derive(clap::Args)]
#[command(next_help_heading = "The node's own resources")]
pub struct Reservations {
    /// What the daemon and its supervisors need, as cpu=200m,memory=500Mi,ephemeral-storage=1Gi,pid=1000 [default: 5 % of the memory, 100Mi to 500Mi; 2 % of the processes, 100 to 1000]
    #[arg(long, value_name = "RESOURCES")]
    kube_reserved: Option<String>,
    /// What the rest of the system needs, spelled the same
    #[arg(long, value_name = "RESOURCES", default_value = "")]
    system_reserved: String,
    /// Less of a resource than this evicts pods at once; replaces the defaults [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%,pid.available<5%]
    #[arg(long, value_name = "SIGNAL<VALUE,...>")]
    eviction_hard: Option<String>,
    /// Less of a resource than this for as long as its grace period evicts pods gently
    #[arg(long, value_name = "SIGNAL<VALUE,...>", default_value = "")]
    eviction_soft: String,
    /// How long each soft threshold must be met, as memory.available=1m30s
    #[arg(long, value_name = "SIGNAL=DURATION,...", default_value = "")]
    eviction_soft_grace_period: String,
    /// How much more than the threshold must be free again, as imagefs.available=2Gi
    #[arg(long, value_name = "SIGNAL=VALUE,...", default_value = "")]
    eviction_minimum_reclaim: String,
    /// How long the node stays under pressure in its conditions after it was seen last
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    eviction_pressure_transition_period: Duration,
    /// Seconds that a pod gets at most to end by itself when a soft threshold evicts it
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    eviction_max_pod_grace_period: u32,
    /// Use of the images' disk, in percent, that has unused images removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// Use of the images' disk, in percent, down to which they are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
    /// How old an unused image must be to be removed
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    minimum_image_ttl_duration: Duration,
}

impl Reservations {
    pub fn settings(&self) -> Result<ResourceSettings, Error> {
        let typed = TypedThresholds {
            hard: self.eviction_hard.as_deref(),
            soft: &self.eviction_soft,
            soft_grace: &self.eviction_soft_grace_period,
            minimum_reclaim: &self.eviction_minimum_reclaim,
        };
        let (high, low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        if low >= high {
            return Err(format!(
                "--image-gc-low-threshold {low} must be lower than --image-gc-high-threshold {high}"
            )
            .into());
        }
        let kube = self.kube_reserved.as_deref();
        Ok(ResourceSettings {
            eviction: eviction::Settings {
                thresholds: typed.parse()?,
                transition: self.eviction_pressure_transition_period,
                max_pod_grace: Duration::from_secs(self.eviction_max_pod_grace_period.into()),
            },
            kube_reserved: kube
                .map(|text| Amounts::parse("--kube-reserved", text))
                .transpose()?,
            system_reserved: Amounts::parse("--system-reserved", &self.system_reserved)?,
            image_gc: image_gc::Policy {
                high_percent: high,
                low_percent: low,
                min_age: self.minimum_image_ttl_duration,
            },
        })
    }
}
