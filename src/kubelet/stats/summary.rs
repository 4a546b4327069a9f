//! The document of `/stats/summary`. Pure.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    ContainerFigures, Depth, Gauge, Interface, Part, PodFigures, Snapshot, Space, Stall, Taken,
    Volume,
};

pub fn summary(snapshot: &Snapshot, node: &str, depth: Depth) -> Value {
    let document = Document {
        now: time(snapshot.at),
        depth,
        disk: snapshot.disk,
    };
    json!({
        "node": document.node(snapshot, node),
        "pods": snapshot.pods.iter().map(|pod| document.pod(pod)).collect::<Vec<_>>(),
    })
}

fn time(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

struct Document {
    now: String,
    depth: Depth,
    disk: Option<Space>,
}

impl Document {
    fn node(&self, snapshot: &Snapshot, name: &str) -> Value {
        let machine = &snapshot.machine;
        let all = Gauge {
            part: machine.all,
            rate: snapshot.cpu_rate,
            processes: machine.processes,
            group: None,
        };
        let booted = Timestamp::from_second(machine.booted).unwrap_or_default();
        let parts = snapshot.parts.iter().map(|(name, gauge)| {
            let mut part = self.compute(gauge);
            part.insert("name".into(), (*name).into());
            part.insert("startTime".into(), time(booted.into()).into());
            Value::from(part)
        });
        let mut node = self.compute(&all);
        node.insert("nodeName".into(), name.into());
        node.insert("startTime".into(), time(booted.into()).into());
        node.insert("systemContainers".into(), parts.collect());
        let working = machine.all.working_set_bytes;
        node["memory"]["availableBytes"] =
            machine.memory_total_bytes.saturating_sub(working).into();
        node["swap"]["swapAvailableBytes"] = machine.swap_free_bytes.into();
        for (name, stall) in [
            ("cpu", machine.stalls.cpu),
            ("memory", machine.stalls.memory),
            ("io", machine.stalls.io),
        ] {
            if let Some(stall) = stall {
                let part = node
                    .entry(name)
                    .or_insert_with(|| json!({"time": self.now}));
                part["psi"] = psi(stall);
            }
        }
        if self.depth == Depth::All {
            node.insert("network".into(), self.network(&machine.interfaces));
            node.insert(
                "rlimit".into(),
                json!({
                    "time": self.now,
                    "maxpid": machine.processes_most,
                    "curproc": machine.processes,
                }),
            );
            if let Some(disk) = &snapshot.disk {
                node.insert("fs".into(), self.space(disk, None));
                let images = self.space(disk, snapshot.images);
                node.insert(
                    "runtime".into(),
                    json!({"imageFs": images, "containerFs": self.space(disk, None)}),
                );
            }
        }
        node.into()
    }

    fn pod(&self, pod: &PodFigures) -> Value {
        let mut found = match &pod.usage {
            Some(gauge) => self.compute(gauge),
            None => Map::new(),
        };
        let identity = &pod.identity;
        found.insert(
            "podRef".into(),
            json!({"name": identity.name, "namespace": identity.namespace, "uid": identity.uid}),
        );
        found.insert("startTime".into(), time(pod.created).into());
        let containers = pod.containers.iter().map(|one| self.container(one));
        found.insert("containers".into(), containers.collect());
        if let Some(gauge) = &pod.usage {
            found.insert(
                "process_stats".into(),
                json!({"process_count": gauge.processes}),
            );
        }
        if self.depth == Depth::All {
            if !pod.interfaces.is_empty() {
                found.insert("network".into(), self.network(&pod.interfaces));
            }
            let volumes = pod.volumes.iter().map(|volume| self.volume(pod, volume));
            found.insert("volume".into(), volumes.collect());
            if let Some(disk) = &self.disk {
                let taken = pod.ephemeral();
                found.insert("ephemeral-storage".into(), self.space(disk, Some(taken)));
            }
        }
        found.into()
    }

    fn container(&self, container: &ContainerFigures) -> Value {
        let mut found = match &container.usage {
            Some(gauge) => self.compute(gauge),
            None => Map::new(),
        };
        found.insert("name".into(), container.name.clone().into());
        found.insert("startTime".into(), time(container.started).into());
        let disk = self.disk.as_ref();
        for (name, taken) in [("rootfs", container.layer), ("logs", container.logs)] {
            if let (Some(disk), Some(taken)) = (disk, taken) {
                found.insert(name.into(), self.space(disk, Some(taken)));
            }
        }
        found.into()
    }

    fn volume(&self, pod: &PodFigures, volume: &Volume) -> Value {
        let mut found = self.space(&volume.space, Some(volume.taken));
        found["name"] = volume.name.clone().into();
        if let Some(claim) = &volume.claim {
            found["pvcRef"] = json!({"name": claim, "namespace": pod.identity.namespace});
        }
        found
    }

    fn compute(&self, gauge: &Gauge) -> Map<String, Value> {
        let Part {
            cpu_ns,
            memory_bytes,
            working_set_bytes,
            rss_bytes,
            page_faults,
            major_page_faults,
            swap_bytes,
            cache_bytes: _,
        } = gauge.part;
        let mut cpu = json!({"time": self.now, "usageCoreNanoSeconds": cpu_ns});
        if let Some(rate) = gauge.rate {
            cpu["usageNanoCores"] = rate.into();
        }
        let memory = json!({
            "time": self.now,
            "usageBytes": memory_bytes,
            "workingSetBytes": working_set_bytes,
            "rssBytes": rss_bytes,
            "pageFaults": page_faults,
            "majorPageFaults": major_page_faults,
        });
        let swap = json!({"time": self.now, "swapUsageBytes": swap_bytes});
        [("cpu", cpu), ("memory", memory), ("swap", swap)]
            .map(|(name, value)| (name.to_owned(), value))
            .into_iter()
            .collect()
    }

    /// A filesystem, and how much of it is `taken`: all that is, if not told.
    fn space(&self, space: &Space, taken: Option<Taken>) -> Value {
        let all = Taken {
            bytes: space.used_bytes,
            inodes: space.inodes.saturating_sub(space.inodes_free),
        };
        let taken = taken.unwrap_or(all);
        json!({
            "time": self.now,
            "capacityBytes": space.capacity_bytes,
            "availableBytes": space.available_bytes,
            "usedBytes": taken.bytes,
            "inodes": space.inodes,
            "inodesFree": space.inodes_free,
            "inodesUsed": taken.inodes,
        })
    }

    /// The first interface is told as the default one.
    fn network(&self, interfaces: &[Interface]) -> Value {
        let told: Vec<Value> = interfaces.iter().map(interface).collect();
        let first = told.iter().find(|one| one["name"] == "eth0");
        let mut network = first.or(told.first()).cloned().unwrap_or_else(|| json!({}));
        network["time"] = self.now.clone().into();
        network["interfaces"] = told.into();
        network
    }
}

fn interface(interface: &Interface) -> Value {
    json!({
        "name": interface.name,
        "rxBytes": interface.rx_bytes,
        "rxErrors": interface.rx_errors,
        "txBytes": interface.tx_bytes,
        "txErrors": interface.tx_errors,
    })
}

fn psi(stall: Stall) -> Value {
    let share = |share: super::Share| {
        json!({
            "total": share.total,
            "avg10": share.avg10,
            "avg60": share.avg60,
            "avg300": share.avg300,
        })
    };
    json!({"some": share(stall.some), "full": share(stall.full)})
}

impl PodFigures {
    /// What the pod takes of the node's disk: writable layers, logs, volumes that end with it, and
    /// the files that the node makes for it.
    pub fn ephemeral(&self) -> Taken {
        let of_containers = self
            .containers
            .iter()
            .flat_map(|container| [container.layer, container.logs])
            .flatten();
        let of_volumes = self
            .volumes
            .iter()
            .filter(|volume| !volume.in_memory && volume.claim.is_none())
            .map(|volume| volume.taken);
        of_containers
            .chain(of_volumes)
            .chain([self.managed])
            .fold(Taken::default(), |sum, one| Taken {
                bytes: sum.bytes + one.bytes,
                inodes: sum.inodes + one.inodes,
            })
    }
}
