"""Raw frames from inside a pod's network namespace, and who sees them.

    frames.py listen LINK            prints `ready`, then the marks of all frames seen until `done`
    frames.py send OWN VICTIM GATEWAY WIRE OUTSIDE
                                     each MAC/address, but OUTSIDE, which is an address; WIRE is the
                                     host's end of the pod's link

With IPv6 addresses the frames are of IPv6, and of what belongs to it.

Every frame carries a mark that names it. The last ones sent are as they should be.
"""

import re
import socket
import struct
import sys
import time

ALL, IP4, ARP, IP6, VLAN, QINQ = 0x0003, 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8
BROADCAST = b"\xff" * 6


def mark(name):
    return b"<<" + name.encode() + b">>"


def hardware(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload):
    return struct.pack("!HHHH", 4000, 9, 8 + len(payload), 0) + payload


def ip4(source, target, name, options=b""):
    payload = udp(mark(name))
    words = 5 + len(options) // 4

    def header(check):
        return struct.pack(
            "!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 7, 0, 64, 17, check,
            socket.inet_aton(source), socket.inet_aton(target)) + options

    return header(checksum(header(0))) + payload


def ip6(source, target, kind, payload):
    return struct.pack(
        "!IHBB16s16s", 6 << 28, len(payload), kind, 255,
        socket.inet_pton(socket.AF_INET6, source),
        socket.inet_pton(socket.AF_INET6, target)) + payload


def icmp6(kind, body):
    return struct.pack("!BBH", kind, 0, 0) + body


def arp(operation, mac, address, target_mac, target, name):
    return struct.pack(
        "!HHBBH6s4s6s4s", 1, IP4, 6, 4, operation, mac, socket.inet_aton(address),
        target_mac, socket.inet_aton(target)) + mark(name)


def frames(own, victim, gateway, wire, outside):
    """Name, target, sender, kind and payload of each frame; `{}` in a payload stands for its mark."""
    (a, a4), (v, v4), (g, g4), (w, _) = own, victim, gateway, wire
    yield "own", g, a, IP4, lambda n: ip4(a4, outside, n)
    # Others' addresses.
    for name, source in [("victim", v4), ("outside", "203.0.113.9"), ("gateway", g4),
                         ("loopback", "127.0.0.1"), ("nobody", "0.0.0.0")]:
        yield "source-" + name, g, a, IP4, lambda n, s=source: ip4(s, outside, n)
        yield "source-to-victim-" + name, g, a, IP4, lambda n, s=source: ip4(s, v4, n)
        yield "source-wire-" + name, w, a, IP4, lambda n, s=source: ip4(s, outside, n)
        yield "source-to-gateway-" + name, g, a, IP4, lambda n, s=source: ip4(s, g4, n)
    yield "mac-victim", g, v, IP4, lambda n: ip4(a4, outside, n)
    yield "mac-victim-whole", g, v, IP4, lambda n: ip4(v4, outside, n)
    yield "mac-gateway", v, g, IP4, lambda n: ip4(g4, v4, n)
    # Past the gateway.
    yield "neighbour", v, a, IP4, lambda n: ip4(a4, v4, n)
    yield "unknown-mac", hardware("02:99:99:99:99:99"), a, IP4, lambda n: ip4(a4, v4, n)
    yield "broadcast", BROADCAST, a, IP4, lambda n: ip4(a4, "255.255.255.255", n)
    yield "multicast", hardware("01:00:5e:00:00:fb"), a, IP4, lambda n: ip4(a4, "224.0.0.251", n)
    yield "multicast-by-gateway", g, a, IP4, lambda n: ip4(a4, "224.0.0.251", n)
    # The groups that bridges treat apart.
    for last in range(16):
        group = hardware("01:80:c2:00:00:%02x" % last)
        yield "group-%d" % last, group, a, IP4, lambda n: ip4("203.0.113.9", outside, n)
        yield "group-%d-gateway" % last, group, a, IP4, lambda n: ip4("203.0.113.9", g4, n)
        yield "group-%d-own" % last, group, a, IP4, lambda n: ip4(a4, g4, n)
    # The host's loopback, and routes of the sender's choice.
    yield "to-loopback", g, a, IP4, lambda n: ip4(a4, "127.0.0.1", n)
    route = b"\x83\x07\x04" + socket.inet_aton(v4) + b"\0"
    yield "source-route", g, a, IP4, lambda n: ip4(a4, outside, n, route)
    # Neighbour discovery of both families.
    zero = b"\0" * 6
    yield "arp-gateway", BROADCAST, a, ARP, lambda n: arp(2, a, g4, BROADCAST, g4, n)
    yield "arp-victim", BROADCAST, a, ARP, lambda n: arp(1, a, v4, zero, v4, n)
    yield "arp-victim-to-gateway", g, a, ARP, lambda n: arp(2, a, v4, g, g4, n)
    yield "arp-gateway-to-victim", v, a, ARP, lambda n: arp(2, a, g4, v, v4, n)
    router = b"\x86\0\0\0\x40\0\x07\x08" + b"\0" * 8
    everybody = hardware("33:33:00:00:00:01")
    for name, target in [("all", everybody), ("victim", v), ("gateway", g)]:
        yield "router-" + name, target, a, IP6, lambda n: ip6(
            "fe80::1", "ff02::1", 58, router + mark(n))
        yield "ipv6-" + name, target, a, IP6, lambda n: ip6(
            "2001:db8::9", "2001:db8::1", 17, udp(mark(n)))
    # Tags, and other protocols.
    for name, target in [("victim", v), ("gateway", g)]:
        for tag in [0, 5]:
            yield "vlan-%d-%s" % (tag, name), target, a, VLAN, lambda n, t=tag: struct.pack(
                "!HH", t, IP4) + ip4(a4, v4, n)
        yield "qinq-" + name, target, a, QINQ, lambda n: struct.pack(
            "!HHHH", 5, VLAN, 6, IP4) + ip4(v4, outside, n)
        yield "other-" + name, target, a, 0x88B5, mark
    yield "spanning-tree", hardware("01:80:c2:00:00:00"), a, 64, lambda n: (
        b"\x42\x42\x03" + b"\0" * 35 + mark(n))
    yield "dhcp", BROADCAST, a, IP4, lambda n: ip4("0.0.0.0", "255.255.255.255", n)


def frames6(own, victim, gateway, wire, outside):
    (a, a6), (v, v6), (g, g6), (w, _) = own, victim, gateway, wire
    link_local = "fe80::" + ":".join("%x" % (a[i] << 8 | a[i + 1]) for i in (0, 2, 4))

    def plain(source, target):
        return lambda n: ip6(source, target, 17, udp(mark(n)))

    yield "own", g, a, IP6, plain(a6, outside)
    # Others' addresses.
    for name, source in [("victim", v6), ("outside", "2001:db8:9::9"), ("gateway", g6), ("loopback", "::1"),
                         ("nobody", "::"), ("link-local", link_local), ("mapped", "::ffff:127.0.0.1")]:
        yield "source-" + name, g, a, IP6, plain(source, outside)
        yield "source-to-victim-" + name, g, a, IP6, plain(source, v6)
        yield "source-wire-" + name, w, a, IP6, plain(source, outside)
        yield "source-to-gateway-" + name, g, a, IP6, plain(source, g6)
    yield "mac-victim", g, v, IP6, plain(a6, outside)
    yield "mac-victim-whole", g, v, IP6, plain(v6, outside)
    yield "mac-gateway", v, g, IP6, plain(g6, v6)
    # Past the gateway.
    yield "neighbour", v, a, IP6, plain(a6, v6)
    yield "unknown-mac", hardware("02:99:99:99:99:99"), a, IP6, plain(a6, v6)
    yield "broadcast", BROADCAST, a, IP6, plain(a6, v6)
    everybody = hardware("33:33:00:00:00:01")
    yield "multicast", everybody, a, IP6, plain(a6, "ff02::1")
    yield "multicast-by-gateway", g, a, IP6, plain(a6, "ff02::1")
    yield "multicast-wide", g, a, IP6, plain(a6, "ff0e::1")
    for last in range(16):
        group = hardware("01:80:c2:00:00:%02x" % last)
        yield "group-%d" % last, group, a, IP6, plain("2001:db8:9::9", outside)
        yield "group-%d-own" % last, group, a, IP6, plain(a6, g6)
    # The host's loopback and links.
    for name, target in [("loopback", "::1"), ("nobody", "::"), ("mapped", "::ffff:127.0.0.1"),
                         ("link-local", "fe80::1")]:
        yield "to-" + name, g, a, IP6, plain(a6, target)
    # Options, and routes of the sender's choice.
    address = socket.inet_pton(socket.AF_INET6, v6)
    route = b"\x11\x02%c\x01" + b"\0" * 4 + address
    for name, kind, header in [("hop-by-hop", 0, b"\x11\0\x05\x02\0\0\x01\0"),
                               ("destination-options", 60, b"\x11\0\x01\x04\0\0\0\0"),
                               ("source-route", 43, route % 0), ("mobile-route", 43, route % 2),
                               ("segments", 43, route % 4)]:
        for place, target in [("outside", outside), ("gateway", g6)]:
            yield name + "-" + place, g, a, IP6, lambda n, h=header, k=kind, t=target: ip6(
                a6, t, k, h + udp(mark(n)))
    # Neighbour discovery, with one's own address and with others'.
    hop = b"\x01\x01" + a
    router = icmp6(134, b"\x40\0\x07\x08" + b"\0" * 8) + hop
    pods = socket.inet_pton(socket.AF_INET6, g6)
    messages = [("router", router), ("ask-router", icmp6(133, b"\0" * 4) + hop),
                ("ask", icmp6(135, b"\0" * 4 + address) + hop),
                ("answer", icmp6(136, b"\x20\0\0\0" + address) + b"\x02\x01" + a),
                ("answer-gateway", icmp6(136, b"\xe0\0\0\0" + pods) + b"\x02\x01" + a),
                ("redirect", icmp6(137, b"\0" * 4 + pods + address) + b"\x02\x01" + a)]
    for name, message in messages:
        for whose, source in [("own", a6), ("link-local", link_local), ("gateway", g6), ("nobody", "::")]:
            for place, target, to in [("all", everybody, "ff02::1"), ("victim", v, v6), ("gateway", g, g6),
                                      ("victim-by-gateway", g, v6)]:
                yield "-".join([name, whose, place]), target, a, IP6, lambda n, s=source, t=to, m=message: ip6(
                    s, t, 58, m + mark(n))
    report = hardware("33:33:00:00:00:16")
    yield "listener", report, a, IP6, lambda n: ip6(
        link_local, "ff02::16", 0, b"\x3a\0\x05\x02\0\0\x01\0" + icmp6(143, b"\0" * 4) + mark(n))
    yield "dhcp", hardware("33:33:00:01:00:02"), a, IP6, lambda n: ip6(
        link_local, "ff02::1:2", 17, struct.pack("!HHHH", 546, 547, 8, 0) + mark(n))
    # Tags, and other protocols.
    for name, target in [("victim", v), ("gateway", g)]:
        for tag in [0, 5]:
            yield "vlan-%d-%s" % (tag, name), target, a, VLAN, lambda n, t=tag: struct.pack(
                "!HH", t, IP6) + ip6(a6, v6, 17, udp(mark(n)))
        yield "other-" + name, target, a, 0x88B5, mark
        yield "as-ipv4-" + name, target, a, IP4, lambda n: ip6(a6, v6, 17, udp(mark(n)))
        yield "ipv4-" + name, target, a, IP4, lambda n: ip4("203.0.113.9", "192.0.2.9", n)


def send(arguments):
    pairs = [argument.split("/") for argument in arguments[:4]]
    own, victim, gateway, wire = [(hardware(mac), address) for mac, address in pairs]
    outside = arguments[4]
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    link.bind(("eth0", 0))
    is_ipv6 = ":" in own[1]
    all_frames = list((frames6 if is_ipv6 else frames)(own, victim, gateway, wire, outside))
    for _ in range(3):
        for name, target, sender, kind, payload in all_frames:
            link.send(target + sender + struct.pack("!H", kind) + payload(name))
    for target in [victim[1], outside, gateway[1]]:
        if is_ipv6:
            kind, packet = IP6, ip6(own[1], target, 17, udp(mark("done")))
        else:
            kind, packet = IP4, ip4(own[1], target, "done")
        link.send(gateway[0] + own[0] + struct.pack("!H", kind) + packet)
    names = {name for name, *_ in all_frames}
    print(len(names))


def listen(name):
    """On a link; or, of the names `ip` and `ip6`, to what this host takes for itself, whatever link it came by."""
    if name in ("ip", "ip6"):
        family = socket.AF_INET6 if name == "ip6" else socket.AF_INET
        link = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    else:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        link.bind((name, 0))
        promiscuous = struct.pack("IHH8s", socket.if_nametoindex(name), 1, 0, b"")
        link.setsockopt(263, 1, promiscuous)
    link.settimeout(1)
    print("ready", flush=True)
    seen, end = set(), time.monotonic() + 30
    while "done" not in seen and time.monotonic() < end:
        try:
            frame = link.recv(65536)
        except TimeoutError:
            continue
        seen.update(name.decode() for name in re.findall(rb"<<([a-z0-9-]+)>>", frame))
    print(" ".join(sorted(seen)))


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2:])
    else:
        listen(sys.argv[2])
