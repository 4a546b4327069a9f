"""A tenant that creates and lists all the time, as a client with one connection.

    TOKEN=... neighbour.py NAMESPACE    prints "SECONDS CODE" for each answer, for ever
"""

import http.client
import json
import os
import ssl
import sys
import time

path = f"/api/v1/namespaces/{sys.argv[1]}/configmaps"
headers = {"Authorization": "Bearer " + os.environ["TOKEN"], "Content-Type": "application/json"}
context = ssl._create_unverified_context()
connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=context, timeout=10)


def ask(method, url, body=None):
    begun = time.monotonic()
    try:
        connection.request(method, url, body, headers)
        answer = connection.getresponse()
        answer.read()
        code = answer.status
    except OSError as error:
        connection.close()
        code = type(error).__name__
    print(f"{time.monotonic() - begun:.6f} {code}", flush=True)


number = 0
while True:
    number += 1
    body = {"metadata": {"name": f"n{number}"}, "data": {"a": "b"}}
    ask("POST", path, json.dumps(body))
    ask("GET", path + "?limit=10")
    time.sleep(0.02)
