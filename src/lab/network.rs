//! The links of a lab: a bridge on the host `switch`, a veth pair from it to each machine of the lab, and one to the
//! machine that all of it is on, which is all that it has there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

use ipnet::IpNet;
use netns::{
    Namespace,
    host::Process,
    route::{Change, Disturbance, Prefix, Socket, Veth},
    sysctl,
};

use super::{
    Error,
    plan::{self, End},
    record::{Faults, Host, Record},
};
use crate::addresses::family::{Family, PerFamily};

const BRIDGE: &str = "lab";
/// The bridge's port towards the machine.
const UPLINK: &str = "machine";
/// A host's link.
const LINK: &str = "eth0";
const MTU: u32 = 1500;

/// All that this machine has an address in or a route to.
pub fn taken() -> Result<Vec<IpNet>, Error> {
    let mut socket = Socket::open()?;
    let addresses = socket.addresses()?.into_iter().map(|(_, prefix)| prefix);
    let all = socket.destinations()?.into_iter().chain(addresses);
    let nets = all.filter_map(|prefix| IpNet::new(prefix.address, prefix.length).ok());
    Ok(nets.collect())
}

/// The bridge, and the link between it and the machine.
pub fn make_switch(switch: &Process, record: &Record) -> Result<(), Error> {
    let (machine, space) = (Namespace::current()?, namespace(switch)?);
    let address = plan::machine_address(&record.range);
    remove_link(&record.link)?;
    space.run(|| -> Result<(), netns::Error> {
        let mut socket = Socket::open()?;
        let bridge_mac = plan::mac(record.range.primary().network(), End::Switch);
        let lo = socket.link("lo")?.index;
        socket.apply(vec![
            Change::add_bridge(BRIDGE, bridge_mac),
            Change::set_up(lo),
        ])?;
        let bridge = socket.link(BRIDGE)?.index;
        let pair = Veth {
            name: UPLINK,
            peer_name: &record.link,
            peer_netns: machine.as_fd(),
            mac: plan::mac(*address.primary(), End::Switch),
            peer_mac: plan::mac(*address.primary(), End::Host),
            mtu: MTU,
            master: Some(bridge),
        };
        socket.apply(vec![Change::set_up(bridge), Change::add_veth(&pair)])
    })??;
    if record.range.of(Family::V6).is_some() {
        allow_ipv6(&record.link)?;
    }
    let mut socket = Socket::open()?;
    let link = socket.link(&record.link)?.index;
    let mut changes = add_addresses(link, &address, &record.range);
    changes.push(Change::set_up(link));
    socket.apply(changes)?;
    Ok(())
}

/// Machines may have IPv6 switched off for links that are new. `link`: one, or `all` of the namespace.
fn allow_ipv6(link: &str) -> Result<(), Error> {
    let setting = format!("net/ipv6/conf/{link}/disable_ipv6");
    match sysctl::read(&setting)? {
        None => Err(Error::NoIpv6),
        Some(_) => Ok(sysctl::write(&setting, "0")?),
    }
}

/// The link between a host and the switch; one that is there stays.
pub fn wire(
    switch: &Process,
    process: &Process,
    host: &Host,
    range: &PerFamily<IpNet>,
) -> Result<(), Error> {
    let (switch, space) = (namespace(switch)?, namespace(process)?);
    let there = space.run(|| Socket::open()?.link(LINK))?;
    match there {
        Ok(_) => return Ok(()),
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error.into()),
    }
    switch.run(|| -> Result<(), netns::Error> {
        let mut socket = Socket::open()?;
        let bridge = socket.link(BRIDGE)?.index;
        // The last one of that name goes with the host that it led to, a moment after it.
        let stale = socket.apply(vec![Change::delete_link(&host.name)]);
        absent_is_fine(stale)?;
        let pair = Veth {
            name: &host.name,
            peer_name: LINK,
            peer_netns: space.as_fd(),
            mac: plan::mac(*host.address.primary(), End::Switch),
            peer_mac: plan::mac(*host.address.primary(), End::Host),
            mtu: MTU,
            master: Some(bridge),
        };
        socket.apply(vec![Change::add_veth(&pair)])
    })??;
    space.run(|| -> Result<(), Error> {
        if range.of(Family::V6).is_some() {
            allow_ipv6("all")?;
        }
        let mut socket = Socket::open()?;
        let (lo, link) = (socket.link("lo")?.index, socket.link(LINK)?.index);
        let mut changes = vec![Change::set_up(lo), Change::set_up(link)];
        changes.extend(add_addresses(link, &host.address, range));
        for machine in plan::machine_address(range).iter() {
            let everywhere = Prefix::new(unspecified(machine), 0);
            changes.push(Change::add_route(link, everywhere, Some(*machine)));
        }
        Ok(socket.apply(changes)?)
    })??;
    Ok(())
}

/// Takes the machine's end of the lab's network away, and with it all of what the machine has of the lab.
pub fn remove_link(name: &str) -> Result<(), Error> {
    let removed = Socket::open()?.apply(vec![Change::delete_link(name)]);
    Ok(absent_is_fine(removed)?)
}

/// The switch's end of a host's link.
pub fn unwire(switch: &Process, host: &Host) -> Result<(), Error> {
    let removed =
        namespace(switch)?.run(|| Socket::open()?.apply(vec![Change::delete_link(&host.name)]))?;
    Ok(absent_is_fine(removed)?)
}

pub fn set_link(switch: &Process, host: &Host, up: bool) -> Result<(), Error> {
    namespace(switch)?.run(|| -> Result<(), netns::Error> {
        let mut socket = Socket::open()?;
        let change = match up {
            true => Change::set_up(socket.link(&host.name)?.index),
            false => Change::set_down(&host.name),
        };
        socket.apply(vec![change])
    })??;
    Ok(())
}

/// Delays and loses the host's packets both ways, as `faults` say.
pub fn disturb(
    switch: &Process,
    process: &Process,
    host: &Host,
    faults: &Faults,
) -> Result<(), Error> {
    let how = Disturbance {
        delay: std::time::Duration::from_millis(faults.delay_ms.into()),
        lost_percent: faults.lost_percent,
    };
    let calm = how.delay.is_zero() && how.lost_percent == 0;
    for (of, link) in [(switch, host.name.as_str()), (process, LINK)] {
        let done = namespace(of)?.run(|| -> Result<(), netns::Error> {
            let mut socket = Socket::open()?;
            let index = socket.link(link)?.index;
            match calm {
                true => absent_is_fine(socket.apply(vec![Change::undisturb(index)])),
                false => socket.apply(vec![Change::disturb(index, &how)]),
            }
        })?;
        match done {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Err(Error::NoEmulator),
            done => done?,
        }
    }
    Ok(())
}

fn namespace(process: &Process) -> Result<Namespace, netns::Error> {
    Namespace::of_process(process.pid())
}

/// Each address with the length of its family's range.
fn add_addresses(
    link: u32,
    addresses: &PerFamily<IpAddr>,
    ranges: &PerFamily<IpNet>,
) -> Vec<Change> {
    let both = addresses.iter().zip(ranges.iter());
    both.map(|(address, range)| {
        Change::add_address(link, Prefix::new(*address, range.prefix_len()))
    })
    .collect()
}

fn unspecified(same_family: &IpAddr) -> IpAddr {
    match same_family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn absent_is_fine(done: Result<(), netns::Error>) -> Result<(), netns::Error> {
    match done {
        Err(error) if error.is_absent() => Ok(()),
        done => done,
    }
}
