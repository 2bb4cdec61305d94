"""A local stand-in that speaks the Hub client's protocol: create, preupload, LFS batch, commit, tree.

with HubServer(token="hf_x") as hub: ... HF_ENDPOINT=hub.url ...
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class HubServer:
    """One repository in memory.

    Args:
        token: The only token that is let in.
        lose: Paths that are taken and then not listed, as if the push had lost them.
        spoil: Paths that are listed with another hash.
        fail: (method, part of the path, status): requests that are refused.
        public: Whether the repository exists already and is public.
        leftovers: Path -> content of files from an earlier push.
    """

    def __init__(self, *, token="hf_secret", lose=(), spoil=(), fail=None, public=False, leftovers=None):
        self.token, self.lose, self.spoil, self.fail, self.public = token, lose, spoil, fail, public
        self.files, self.objects, self.requests, self.created = dict(leftovers or {}), {}, [], None
        self.lfs = set()

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.requests.append((self.command, self.path))
                status, answer = hub.answer(self.command, self.path, body, self.headers)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        for method in ("GET", "POST", "PUT", "HEAD"):
            setattr(Handler, f"do_{method}", Handler.handle_any)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, method, path, body, headers):
        """Return status and JSON for one request."""
        if self.fail and method == self.fail[0] and self.fail[1] in path:
            return self.fail[2], {"error": "planted"}
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = body
            return 200, {}
        if headers.get("Authorization") not in (f"Bearer {self.token}",):
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            self.created = json.loads(body)
            exists = {"error": "You already created this model repo", "url": f"{self.url}/ada/tuned"}
            return (409, exists) if self.public else (200, {"url": f"{self.url}/ada/tuned"})
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return 200, {
                "transfer": "basic",
                "objects": [
                    {**o, "authenticated": True, "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
                    for o in objects
                ],
            }
        if "/commit/" in path:
            return 200, self.commit(body)
        if "/tree/" in path:
            return 200, [self.entry(name, data) for name, data in sorted(self.files.items()) if name not in self.lose]
        if re.fullmatch(r"/api/models/ada/tuned(\?.*)?", path):
            asked = (self.created or {}).get("visibility") == "private"
            return 200, {"id": "ada/tuned", "private": asked and not self.public, "sha": COMMIT}
        return 404, {"error": f"unknown {path}"}

    def commit(self, body):
        """Take the files of a commit, which come one JSON object a line."""
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
                self.lfs.add(value["path"])
        return {"commitUrl": f"{self.url}/ada/tuned/commit/{COMMIT}", "commitOid": COMMIT, "success": True}

    def entry(self, name, data):
        """Return a file as the tree lists it."""
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        sha = hashlib.sha256(data).hexdigest()
        if name in self.spoil:
            git, sha = git[::-1], sha[::-1]
        entry = {"type": "file", "oid": git, "size": len(data), "path": name}
        return {**entry, "lfs": {"oid": sha, "size": len(data), "pointerSize": 134}} if name in self.lfs else entry
