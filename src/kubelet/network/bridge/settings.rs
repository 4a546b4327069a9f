//! Settings of the host's kernel that pods need, changed after their old values are on record. Blocking.

use std::collections::BTreeSet;

use netns::{route, sysctl};

use super::{Error, during, records::Records};

pub const FORWARD: &str = "net/ipv4/ip_forward";
pub const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";
const ACCEPT_ADVERTISEMENTS: &str = "accept_ra";
/// Also on a host that forwards.
pub const ALSO_AS_ROUTER: &str = "2";
/// Whether the host tells a sender of a shorter way.
pub const REDIRECTS: &str = "net/ipv4/conf/all/send_redirects";

/// A host that forwards does no longer what routers advertise, unless it is told to: it would lose the default
/// route that it has from one. The settings that say so, of today or of an earlier daemon.
pub fn keep_advertised(records: &Records) -> Result<Vec<String>, Error> {
    let failed = || during("look up the default routes that routers advertise".into());
    let mut socket = route::Socket::open().map_err(failed())?;
    let by_router = socket.advertised_defaults().map_err(failed())?;
    let links = socket.links().map_err(failed())?;
    let found = links
        .iter()
        .filter(|link| by_router.contains(&link.index))
        .map(|link| format!("net/ipv6/conf/{}/{ACCEPT_ADVERTISEMENTS}", link.name));
    let recorded = records.settings().into_iter().map(|(name, _)| name);
    let recorded = recorded.filter(|name| name.ends_with(ACCEPT_ADVERTISEMENTS));
    let mut kept = Vec::new();
    for name in found.chain(recorded).collect::<BTreeSet<_>>() {
        let value = sysctl::read(&name).map_err(during(format!("read {name}")))?;
        match value.as_deref() {
            Some("1") => set(records, &name, ALSO_AS_ROUTER)?,
            Some(ALSO_AS_ROUTER) => {}
            _ => continue, // nobody does it in the kernel
        }
        kept.push(name);
    }
    Ok(kept)
}

/// Changes a kernel setting, after its old value is on record.
pub fn set(records: &Records, name: &str, value: &str) -> Result<(), Error> {
    let old = sysctl::read(name).map_err(during(format!("read {name}")))?;
    match old {
        Some(old) if old != value => {
            records.record_setting(name, &old)?;
            sysctl::write(name, value).map_err(during(format!("set {name} to {value}")))
        }
        _ => Ok(()),
    }
}
