//! `vetch up`.

use std::{io::Write, process::ExitCode};

use ipnet::IpNet;

use super::{
    Error,
    daemon::{self, Config},
    detached, disable, need_root,
    node::{self, Ranges},
    node_args::NodeArgs,
    notify::Notifier,
    pod_encryption::PodEncryption,
};
use crate::{
    addresses::{family::PerFamily, pool},
    apiserver::admission::{Exemptions, ExternalIps},
    logging,
};

/// Start the cluster on this machine
#[derive(clap::Args)]
pub struct Up {
    #[command(flatten)]
    node: NodeArgs,
    /// Port of the API server
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    port: u16,
    /// Start a small application too, and show how it answers
    #[arg(long)]
    demo: bool,
    /// Range of service addresses, IPv4 or IPv6, or one of each [default: 10.96.0.0/12; a part of it below
    /// another --root]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    service_cidr: Option<PerFamily<IpNet>>,
    /// Range of this node's pod addresses, of the same families as those of services [default: 10.42.0.0/24;
    /// another /24 below another --root]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pod_cidr: Option<PerFamily<IpNet>>,
    /// Encrypt what pods send to pods of other machines; every node follows
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pod_encryption: PodEncryption,
    /// How much all objects may take; writes that add to them are refused beyond
    #[arg(long, default_value = "256Mi", value_name = "SIZE", value_parser = size)]
    store_quota: usize,
    /// Refuse Services that name external addresses to take traffic for
    #[arg(long)]
    deny_service_external_ips: bool,
    /// Give Services of the type LoadBalancer addresses from these ranges, which the nodes answer for on their
    /// network, rather than the nodes' own; CIDR or FIRST-LAST, IPv4 or IPv6; may be repeated
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    load_balancer_pool: Vec<pool::Range>,
    /// Exempt from Pod Security: namespace=NAME, user=NAME or runtime-class=NAME; may be repeated
    #[arg(long, value_name = "WHAT=NAME", value_parser = exemption)]
    pod_security_exempt: Vec<Exemption>,
}

/// One exemption from Pod Security.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exemption {
    Namespace(String),
    User(String),
    RuntimeClass(String),
}

fn exemption(text: &str) -> Result<Exemption, String> {
    let (what, name) = text.split_once('=').unwrap_or((text, ""));
    let name = name.to_owned();
    match what {
        _ if name.is_empty() => Err("must be WHAT=NAME".to_owned()),
        "namespace" => Ok(Exemption::Namespace(name)),
        "user" => Ok(Exemption::User(name)),
        "runtime-class" => Ok(Exemption::RuntimeClass(name)),
        other => Err(format!(
            "{other:?} is not one of namespace, user, runtime-class"
        )),
    }
}

fn exemptions(given: &[Exemption]) -> Exemptions {
    let mut all = Exemptions::default();
    for one in given.iter().cloned() {
        match one {
            Exemption::Namespace(name) => all.namespaces.push(name),
            Exemption::User(name) => all.users.push(name),
            Exemption::RuntimeClass(name) => all.runtime_classes.push(name),
        }
    }
    all
}

impl Up {
    pub fn run(self) -> Result<ExitCode, Error> {
        need_root("up")?;
        let machine = self.node.machine()?;
        let usual = Ranges::of(&machine.paths);
        let ranges = Ranges {
            pods: self.pod_cidr.unwrap_or(usual.pods),
            services: self.service_cidr.unwrap_or(usual.services),
        };
        ranges.check()?;
        self.pod_encryption.check(&machine)?;
        // One that cannot be read is written anew.
        if let Ok(Some(recorded)) = node::recorded_services(&machine.paths) {
            ranges.continues(&recorded)?;
        }
        let pool = ranges.pool(self.load_balancer_pool)?;
        disable::refuse_idle_pool(&machine.disabled, &pool)?;
        if self.node.detach {
            let join = detached::start(&machine.paths)?;
            let kubeconfig = machine.paths.kubeconfig();
            let kubeconfig = kubeconfig.display();
            writeln!(
                std::io::stdout(),
                "The cluster is up.\n  export KUBECONFIG={kubeconfig}\n  kubectl get nodes"
            )?;
            if let Some(command) = join {
                writeln!(
                    std::io::stdout(),
                    "To make another machine a node, run there within a day:\n  {command}"
                )?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        logging::start();
        let config = Config {
            port: self.port,
            services: ranges.services,
            pod_cidrs: ranges.pods,
            pod_encryption: self.pod_encryption,
            store_quota: self.store_quota,
            external_ips: match self.deny_service_external_ips {
                true => ExternalIps::Denied,
                false => ExternalIps::Allowed,
            },
            pool,
            exemptions: exemptions(&self.pod_security_exempt),
            demo: self.demo,
            machine,
        };
        let notifier = Notifier::from_env();
        detached::run_daemon(daemon::run(config, &notifier))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A size as Kubernetes writes it: `256Mi`.
fn size(text: &str) -> Result<usize, String> {
    /// Less would not hold what every cluster has.
    const LEAST: usize = 16 << 20;
    let quantity = proto::quantity::Quantity::parse(text).map_err(|error| error.to_string())?;
    match usize::try_from(quantity.value()) {
        Ok(bytes) if bytes >= LEAST => Ok(bytes),
        _ => Err("must be at least 16Mi".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_are_told_apart() {
        let given: Vec<Exemption> = ["namespace=kube-system", "user=jane", "runtime-class=vm"]
            .into_iter()
            .map(|text| exemption(text).unwrap())
            .collect();
        let all = exemptions(&given);
        assert_eq!(all.namespaces, ["kube-system"]);
        assert_eq!(all.users, ["jane"]);
        assert_eq!(all.runtime_classes, ["vm"]);
        for bad in ["kube-system", "namespace=", "group=x"] {
            assert!(exemption(bad).is_err(), "{bad}");
        }
    }
}
