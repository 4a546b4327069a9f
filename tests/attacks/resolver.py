"""DNS from all sides.

    resolver.py upstream ADDRESS           answers names that end in `good`, never any other; for a minute, those that
                                           end in `short.good` for a second
    resolver.py flood ADDRESS              2,060 connections, and queries that nobody answers, for ever
    resolver.py fill ADDRESS COUNT         asks for so many names that end in `good`, and ends
    resolver.py ask ADDRESS NAME udp|tcp   prints the response code and the last four bytes
"""

import resource
import socket
import struct
import sys
import time


def query(name, number=7):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


def upstream(address):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    tcp = socket.create_server((address, 53))
    tcp.setblocking(False)
    server.settimeout(0.05)
    print("ready", flush=True)
    while True:
        try:
            connection, _ = tcp.accept()
            connection.setblocking(True)
            length, = struct.unpack("!H", connection.recv(2))
            reply = answer(connection.recv(length))
            if reply:
                connection.sendall(struct.pack("!H", len(reply)) + reply)
            connection.close()
        except BlockingIOError:
            pass
        try:
            asked, client = server.recvfrom(4096)
        except TimeoutError:
            continue
        reply = answer(asked)
        if reply:
            # Somebody guesses: another number, and another question.
            server.sendto(struct.pack("!H", 1 ^ struct.unpack("!H", reply[:2])[0]) + reply[2:], client)
            server.sendto(reply.replace(b"good", b"evil")[:-4] + b"\x06\x06\x06\x06", client)
            server.sendto(reply, client)


def answer(asked):
    if b"\4good\0" not in asked:
        return None
    time_to_live = 1 if b"\5short\4good\0" in asked else 60
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, time_to_live, 4) + socket.inet_aton("192.0.2.80")
    return asked[:2] + b"\x81\x80" + asked[4:6] + b"\0\1\0\0\0\0" + asked[12:] + record


def flood(address):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    held = []
    for _ in range(2060):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex((address, 53))
        held.append(connection)
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.connect((address, 53))
    silent.setblocking(False)
    number = 0
    while True:
        number += 1
        try:
            silent.send(query("n%d.silent" % number, number % 65536))
            if number % 100 == 0:
                # Half a query, and another one that nobody answers.
                for connection in held[number % 2000:number % 2000 + 50]:
                    connection.send(struct.pack("!H", 30) + query("t%d.silent" % number)[:9])
        except OSError:
            pass
        if number % 20 == 0:
            time.sleep(0.002)
        if number == 3000:
            print("ready", flush=True)


def fill(address, count):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    client.connect((address, 53))
    answered, asked, waiting = 0, 0, 0
    while answered < int(count):
        while waiting < 50:
            asked, waiting = asked + 1, waiting + 1
            client.send(query("n%d.fill.good" % asked, asked % 65536))
        try:
            answered += client.recv(4096)[3] & 15 == 0
            waiting -= 1
        except TimeoutError:
            waiting = 0
    print(answered)


def ask(address, name, transport):
    if transport == "tcp":
        connection = socket.create_connection((address, 53), 5)
        asked = query(name)
        connection.sendall(struct.pack("!H", len(asked)) + asked)
        reply = connection.recv(65536)[2:]
    else:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(2)
        client.connect((address, 53))
        reply = None
        for attempt in range(2):
            client.send(query(name))
            try:
                reply = client.recv(65536)
                break
            except TimeoutError:
                continue
    if not reply:
        sys.exit(f"no answer about {name} from {address}")
    print(reply[3] & 15, ".".join(str(byte) for byte in reply[-4:]))


if __name__ == "__main__":
    {"upstream": upstream, "flood": flood, "fill": fill, "ask": ask}[sys.argv[1]](*sys.argv[2:])
