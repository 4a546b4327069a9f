//! Tells the neighbours on a link that an address is this machine's: gratuitous ARP (RFC 5227, 3) and unsolicited
//! neighbour advertisements (RFC 4861, 7.2.6).
//!
//! Who has the address in its tables sends to the named hardware address from then on; nobody else is disturbed.
#![allow(unsafe_code)] // sending by a packet socket, whose addresses nix does not make

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::{Error, route::Mac};

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const BROADCAST: Mac = [0xff; 6];
/// Of all nodes of a link, ff02::1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;

/// Says once on this link that the address is there, at this hardware address. Within the namespace of the thread.
pub fn announce(link: u32, mac: Mac, address: IpAddr) -> Result<(), Error> {
    let failed = |source| Error::Io {
        action: "announce an address",
        source,
    };
    let socket = open().map_err(failed)?;
    for frame in frames(mac, address) {
        send(&socket, link, &frame).map_err(failed)?;
    }
    Ok(())
}

/// For IPv4 both forms that there are: some neighbours heed one of them only.
fn frames(mac: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            const REQUEST: u16 = 1;
            const REPLY: u16 = 2;
            [REQUEST, REPLY]
                .map(|operation| arp(mac, address, operation))
                .to_vec()
        }
        IpAddr::V6(address) => vec![advertisement(mac, address)],
    }
}

fn header(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes()].concat()
}

fn arp(mac: Mac, address: Ipv4Addr, operation: u16) -> Vec<u8> {
    let mut frame = header(BROADCAST, mac, ARP);
    // Ethernet and IPv4, with addresses of six and four bytes.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(BROADCAST);
    frame.extend(address.octets());
    frame
}

/// It takes the place of what is known (`Override`), and answers nobody.
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_MAC: u8 = 2;
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_MAC, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    let sum = checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = header(ALL_NODES_MAC, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // Whoever would send it from another link could not give it all hops.
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// Over the pseudo header and a message whose own sum is zero; its length is even.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let next = [0, 0, 0, ICMPV6];
    let all = [&from.octets()[..], &to.octets(), &length, &next, message].concat();
    let words = all.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// With no protocol it takes nothing in.
fn open() -> io::Result<OwnedFd> {
    // SAFETY: takes three numbers and touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    match fd {
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(socket: &OwnedFd, link: u32, frame: &[u8]) -> io::Result<()> {
    let mut hardware = [0; 8];
    hardware[..6].copy_from_slice(&frame[..6]);
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: u16::from_be_bytes([frame[12], frame[13]]).to_be(),
        sll_ifindex: link as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: hardware,
    };
    // SAFETY: the descriptor is open; the kernel reads as many bytes of `frame` and `to` as they have.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn arp_names_the_address_as_sender_and_target() {
        let frames = frames(MAC, Ipv4Addr::new(192, 0, 2, 9).into());
        assert_eq!(frames.len(), 2);
        for (frame, operation) in frames.iter().zip([1, 2]) {
            assert_eq!(frame.len(), 42);
            assert_eq!(frame[..14], [&[0xff; 6][..], &MAC, &[8, 6]].concat());
            assert_eq!(frame[20..22], [0, operation]);
            assert_eq!(frame[22..28], MAC);
            assert_eq!(
                (&frame[28..32], &frame[38..42]),
                (&[192, 0, 2, 9][..], &[192, 0, 2, 9][..])
            );
        }
    }

    #[test]
    fn an_advertisement_has_the_sum_that_receivers_look_for() {
        let address: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let frames = frames(MAC, address.into());
        let [frame] = &frames[..] else {
            panic!("{frames:?}");
        };
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!((frame[18], frame[19]), (0, 32));
        assert_eq!((frame[20], frame[21], frame[54]), (58, 255, 136));
        assert_eq!(frame[62..78], address.octets());
        assert_eq!(frame[80..86], MAC);
        // With its own sum in it, the sum comes to nothing.
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
    }
}
