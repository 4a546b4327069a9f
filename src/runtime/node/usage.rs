//! What pods, containers and the machine use, and how much they may.

use oci_spec::runtime::LinuxResources;

use super::{
    super::{
        Ceilings, Error, MemoryReadings, Usage,
        cgroup::{self, Owner},
        pod::Pod,
    },
    Node, blocking,
};

impl Node {
    fn group(&self, pod: &Pod, id: Option<&str>) -> Result<cgroups::Group, Error> {
        let (root, group) = (&self.config.cgroup_root, &pod.record.config.cgroup);
        let name = match id {
            Some(id) => cgroup::child_name(root, group, id),
            None => cgroup::pod_name(root, group),
        };
        cgroups::Group::open(&self.hierarchy, &name).map_err(|error| cgroup::failed(&name, error))
    }

    pub async fn container_usage(&self, id: &str) -> Result<Usage, Error> {
        let pod = self.pod_of(id)?;
        let (group, id) = (self.group(&pod, Some(id))?, id.to_owned());
        blocking(move || cgroup::usage(&group).map_err(|error| cgroup::failed(&id, error))).await
    }

    pub async fn pod_usage(&self, uid: &str) -> Result<Usage, Error> {
        let pod = self.pod(uid)?;
        let (group, uid) = (self.group(&pod, None)?, uid.to_owned());
        blocking(move || cgroup::usage(&group).map_err(|error| cgroup::failed(&uid, error))).await
    }

    pub async fn node_usage(&self) -> Result<Usage, Error> {
        let root = self.config.cgroup_root.clone();
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            cgroups::Group::open(&hierarchy, &root)
                .and_then(|group| cgroup::usage(&group))
                .map_err(|error| cgroup::failed(&root, error))
        })
        .await
    }

    /// What the machine has of memory and uses, and what all pods use together of what they may.
    pub async fn memory(&self) -> Result<MemoryReadings, Error> {
        let name = cgroup::pods_name(&self.config.cgroup_root);
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            let machine = hierarchy.machine_memory();
            let pods = cgroups::Group::open(&hierarchy, &name)
                .and_then(|group| group.working_set())
                .map_err(|error| cgroup::failed(&name, error));
            Ok(MemoryReadings {
                machine: machine.map_err(|error| cgroup::failed("the machine", error)),
                pods_working_set: pods,
            })
        })
        .await
    }

    pub async fn set_ceilings(&self, ceilings: Ceilings) -> Result<(), Error> {
        let root = self.config.cgroup_root.clone();
        let hierarchy = self.hierarchy.clone();
        blocking(move || {
            cgroup::set_ceilings(&hierarchy, &root, ceilings)
                .map_err(|error| cgroup::failed("all pods", error))
        })
        .await
    }

    pub async fn update_resources(&self, id: &str, resources: LinuxResources) -> Result<(), Error> {
        let pod = self.pod_of(id)?;
        let (group, id) = (self.group(&pod, Some(id))?, id.to_owned());
        blocking(move || {
            cgroup::apply(&group, &resources, Owner::Container)
                .map_err(|error| cgroup::failed(&id, error))
        })
        .await
    }
}
