"""A hub on loopback for tests: the parts of huggingface.co that weft talks to, and faults on request.

usage: fake_hub.py SCENARIO.json LOG.jsonl
Starts the hub and a storage server, prints "HUB_PORT STORAGE_PORT" and serves until stdin closes.

Scenario:
  models: {"ORG/NAME": {"dir": path of the files, "sha": commit, "lfs": [files in LFS],
           "revisions": [names beside main], "token": needed one, "gated": true, "siblings": extra names,
           "etag": {file: a false one}, "redirect": where LFS files really are,
           "same_host": true for LFS files behind a redirect to this very hub}}
  faults: [{"server": "hub" | "storage", "method": "GET", "path": part of the path, "times": n,
            "skip": so many matching requests first,
            "status": answer this (with "headers") | "drop_after": send so many body bytes, then close |
            "flip": xor this byte of the file | "ignore_range": true | "silent": seconds}]
Every request is a line of the log: server, method, path, range, authorization, if_range, sent bytes.
"""
import hashlib
import http.server
import json
import os
import re
import sys
import threading
import time

scenario = json.load(open(sys.argv[1]))
log_file = open(sys.argv[2], "a", buffering=1)
lock = threading.Lock()
storage_port = 0


def take_fault(server, method, path):
    """The first fault that matches and is not used up."""
    with lock:
        for fault in scenario.get("faults", []):
            if fault.get("server", server) != server or fault.get("method", method) != method:
                continue
            if fault["path"] not in path or fault.get("times", 1 << 30) <= 0:
                continue
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                continue
            fault["times"] = fault.get("times", 1 << 30) - 1
            return fault
    return {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_kind = "hub"

    def log_message(self, *args):
        pass

    def record(self, sent):
        entry = {"server": self.server_kind, "method": self.command, "path": self.path, "sent": sent}
        for name in ("Range", "Authorization", "If-Range"):
            if name in self.headers:
                entry[name.lower().replace("-", "_")] = self.headers[name]
        with lock:
            log_file.write(json.dumps(entry) + "\n")

    def answer(self, status, body=b"", headers=None):
        self.record(len(body))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, path, headers, fault):
        data = open(path, "rb").read()
        if "flip" in fault:
            at = fault["flip"]
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        begin, end, status = 0, len(data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range")
        if wanted and not fault.get("ignore_range") and if_range in (None, headers.get("ETag")):
            begin = int(wanted[1])
            end = min(len(data), int(wanted[2]) + 1) if wanted[2] else len(data)
            if begin >= len(data):
                return self.answer(416)
            status = 206
            headers["Content-Range"] = "bytes %d-%d/%d" % (begin, end - 1, len(data))
        body = data[begin:end]
        headers["Content-Length"] = str(len(body))
        if "drop_after" not in fault or self.command == "HEAD":
            return self.answer(status, body, headers)
        sent = body[:fault["drop_after"]]
        self.record(len(sent))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        fault = take_fault(self.server_kind, self.command, self.path)
        if "silent" in fault:
            time.sleep(fault["silent"])
        if "status" in fault:
            return self.answer(fault["status"], b"fault", fault.get("headers"))
        try:
            self.serve(fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def serve(self, fault):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "storage":
            path = os.path.join(scenario["models"]["/".join(parts[1:3])]["dir"], parts[3])
            return self.send_file(path, {}, fault)
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        model = scenario["models"].get(name)
        if model is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        token = self.headers.get("Authorization", "")
        if model.get("token") and token != "Bearer " + model["token"]:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if model.get("gated"):
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        sha = model["sha"]
        revision = parts[5] if api else parts[3]
        if revision.replace("%2F", "/") not in ["main", sha] + model.get("revisions", []):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if api:
            names = sorted(os.listdir(model["dir"])) + model.get("siblings", [])
            info = {"id": name, "sha": sha, "siblings": [{"rfilename": n} for n in names]}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        file = "/".join(parts[4:])
        path = os.path.join(model["dir"], file)
        if not os.path.isfile(path):
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = open(path, "rb").read()
        is_lfs = file in model.get("lfs", [])
        digest = hashlib.sha256(data).hexdigest() if is_lfs else hashlib.sha1(data).hexdigest()
        etag = '"' + model.get("etag", {}).get(file, digest) + '"'
        headers = {"X-Repo-Commit": sha, "ETag": etag}
        if not is_lfs:
            return self.send_file(path, headers, fault)
        base = model.get("redirect", "http://127.0.0.1:%d" % storage_port)
        if model.get("same_host"):
            base = "/storage"
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data)),
                   "Location": "%s/%s/%s?signature=x" % (base, name, file)}
        self.answer(302, b"", headers)


class Storage(Handler):
    server_kind = "storage"

    def serve(self, fault):
        parts = self.path.split("?")[0].strip("/").split("/")
        model = scenario["models"]["/".join(parts[:2])]
        self.send_file(os.path.join(model["dir"], parts[2]), {"ETag": '"storage"'}, fault)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # a client that closes its connection is no news


servers = [Server(("127.0.0.1", 0), Handler), Server(("127.0.0.1", 0), Storage)]
storage_port = servers[1].server_address[1]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
print(servers[0].server_address[1], storage_port, flush=True)
sys.stdin.read()
