"""A stand-in for the hub: the part of its interface that huggingface_hub calls to upload and download a model."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_stand_in"
COMMIT = "c0ffee" * 6 + "c0de"


class Hub(ThreadingHTTPServer):
    """A hub with one user, who may write with one token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[str] = []

    def environment(self, home):
        """Environment variables with which huggingface_hub uses this hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Print nothing."""

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content=b"", status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        content = self.body()
        if self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            if not name.startswith("user/"):
                self.answer({"error": "You don't have the rights"}, 403)
                return
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            self.answer({"url": f"{self.server.endpoint}/{name}", "id": name}, status)
        elif re.fullmatch(r"/api/models/[\w/-]+/preupload/main", self.path):
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            self.answer({"files": [{"path": name, "uploadMode": modes[name], "shouldIgnore": False} for name in files]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.endpoint}/blobs/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([\w/-]+)/commit/main", self.path):
            self.commit(self.server.repositories[found[1]], [json.loads(line) for line in content.splitlines()])
        else:
            self.answer({"error": f"unknown {self.path}"}, 404)

    def commit(self, files, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        self.answer(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.endpoint}/user/pets/commit/{COMMIT}"}
        )

    def do_PUT(self):
        content = self.body()
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        self.server.blobs[name] = content
        self.answer()

    def do_GET(self):
        found = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/[\w]+/([\w.]+)", self.path)
        content = self.server.repositories.get(found[1], {}).get(found[2]) if found else None
        if content is None:
            self.answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    def do_HEAD(self):
        self.do_GET()
