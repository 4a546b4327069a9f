"""Raw frames from inside a pod's network namespace, and who sees them.

    frames.py listen LINK            prints `ready`, then the marks of all frames seen until `done`
    frames.py send OWN VICTIM GATEWAY WIRE OUTSIDE
                                     each MAC/address, but OUTSIDE, which is an address; WIRE is the
                                     host's end of the pod's link

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


def send(arguments):
    pairs = [argument.split("/") for argument in arguments[:4]]
    own, victim, gateway, wire = [(hardware(mac), address) for mac, address in pairs]
    outside = arguments[4]
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    link.bind(("eth0", 0))
    for _ in range(3):
        for name, target, sender, kind, payload in frames(own, victim, gateway, wire, outside):
            link.send(target + sender + struct.pack("!H", kind) + payload(name))
    for target in [victim[1], outside, gateway[1]]:
        frame = gateway[0] + own[0] + struct.pack("!H", IP4) + ip4(own[1], target, "done")
        link.send(frame)
    names = {name for name, *_ in frames(own, victim, gateway, wire, outside)}
    print(len(names))


def listen(name):
    """On a link; or, of the name `ip`, to what this host takes for itself, whatever link it came by."""
    if name == "ip":
        link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
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
