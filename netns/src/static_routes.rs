//! IPv6 routes that programs have made; those of IPv4 are listed by [`crate::route::Socket::static_routes`].

use nix::sys::socket::SockProtocol;

use crate::{
    Error,
    route::{Prefix, parse_route},
    socket::Netlink,
    wire::Message,
};

/// The protocol of routes that programs make.
const STATIC: u8 = 4;

/// Where the main table leads straight to this link because a program said so, not the kernel, in the calling
/// thread's namespace.
pub fn ipv6(link: u32) -> Result<Vec<Prefix>, Error> {
    const FAMILY: u8 = libc::AF_INET6 as u8;
    let fixed = [FAMILY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = libc::NLM_F_DUMP;
    let message = Message::new(libc::RTM_GETROUTE, flags, &fixed, "list IPv6 routes");
    let mut found = Vec::new();
    Netlink::open(SockProtocol::NetlinkRoute)?.query(&message, |body| {
        // Where there is no IPv6 the kernel lists what else it has. IPv6 routes have no scope: what leads
        // straight to the link is what leads to nobody on it.
        let header = [0, 4, 5].map(|at| body.get(at).copied().unwrap_or_default());
        let is_static = header == [FAMILY, libc::RT_TABLE_MAIN, STATIC];
        let route = parse_route(body).filter(|route| is_static && route.via.is_none());
        let route = route.filter(|route| route.link == Some(link));
        found.extend(route.map(|route| route.to));
    })?;
    Ok(found)
}
