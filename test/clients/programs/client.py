# SPDX-License-Identifier: Apache-2.0
# Python's HTTP clients: python3 client.py keep|urllib. A request for each line "METHOD URL FILE" of the input.
import hashlib
import http.client
import sys
import urllib.request
from urllib.parse import urlsplit

connections = {}


def keep(method, url, body):
    at = urlsplit(url)
    if at.netloc not in connections:
        connections[at.netloc] = http.client.HTTPConnection(at.netloc, timeout=60)
    c = connections[at.netloc]
    c.request(method, at.path, body)
    r = c.getresponse()
    return r.status, r.getheader("X-Server"), r.read()


def once(method, url, body):
    with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=60) as r:
        return r.status, r.getheader("X-Server"), r.read()


ask = {"keep": keep, "urllib": once}[sys.argv[1]]
for line in sys.stdin:
    method, url, name = line.split()
    data = None
    if name != "-":
        with open(name, "rb") as f:
            data = f.read()
    try:
        status, server, got = ask(method, url, data)
        print(status, server, hashlib.sha256(got).hexdigest(), flush=True)
    except Exception as e:
        print("error", repr(e), flush=True)
