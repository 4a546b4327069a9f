"""A backend that answers as its path says, most of it against the rules. Arguments: address, port, a
file for the heads of all requests, and for TLS a file with certificate and key."""

import itertools, socket, ssl, sys, threading

ADDRESS, PORT, LOG = sys.argv[1], int(sys.argv[2]), sys.argv[3]
TLS = None
if len(sys.argv) > 4:
    TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    TLS.load_cert_chain(sys.argv[4])
LOCK = threading.Lock()


def plain(body, kind="text/plain", fields="", code="200 OK"):
    head = f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{fields}Connection: close\r\n\r\n"
    return [head.encode() + body.encode()]


def answers(path, head):
    if "/interim" in path:
        return (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 64 for _ in itertools.count())
    if "/huge" in path:
        return [b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * (4 << 20) + b"\r\n\r\n"]
    if "/many" in path:
        return [b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 100000 + b"\r\n"]
    if "/endless-head" in path:
        return itertools.chain([b"HTTP/1.1 200 OK\r\n"], (b"X-More: 1\r\n" * 100 for _ in itertools.count()))
    if "/endless" in path:
        return itertools.chain([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"], (b"x" * 65536 for _ in itertools.count()))
    if "/switch" in path:
        return [b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"x" * 100]
    if "/socket" in path:
        return [b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSet-Cookie: a=b\r\n\r\n"]
    if "/split" in path:
        return [b"HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"]
    if "/nonsense" in path:
        return [b"SSH-2.0-hello\r\n\r\n"]
    if "/redirect" in path:
        return plain("", fields="Location: http://127.0.0.1:10248/healthz\r\n", code="302 Found")
    if "/origin" in path:
        fields = "Set-Cookie: a=b\r\nAlt-Svc: h2=\":443\"\r\nStrict-Transport-Security: max-age=1\r\n"
        return plain("ok", fields=fields + "Access-Control-Allow-Origin: *\r\nX-Own: 1\r\nAudit-Id: forged\r\n")
    if "/page" in path:
        return itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<a href='"], (b"x" for _ in range(200000)))
    if path.rstrip("/") == "/apis/x.example/v1":
        return plain('{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"x.example/v1","resources":'
                     '[{"name":"tabs","singularName":"tab","namespaced":true,"kind":"Tab","verbs":["list"]}]}', "application/json")
    return plain('{"heard":true}', "application/json")


def serve(connection):
    try:
        connection.settimeout(20)
        if TLS:
            connection = TLS.wrap_socket(connection, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        with LOCK, open(LOG, "ab") as log:
            log.write(head + b"----\n")
        for piece in answers(head.split(b" ")[1].decode(), head):
            connection.sendall(piece)
    except OSError:
        pass
    finally:
        connection.close()


listener = socket.create_server((ADDRESS, PORT))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
