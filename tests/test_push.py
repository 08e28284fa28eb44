"""`ticketkit push` through the hub's own client, against a server here that speaks what the client needs of the hub."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ticketkit import Plugins, RunError, StorageError, Ticket, mask_from_zeros
from ticketkit.card import push
from ticketkit.export import export
from ticketkit.exported import check_files

pytest.importorskip("huggingface_hub", reason="pip install 'ticketkit[hf]'")


class Hub(ThreadingHTTPServer):
    """Repositories, by name: whether private, and their files. Large files come by their digests, before the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.refuses = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, asked: dict[str, Any]) -> Any:
        name = f"{asked['organization']}/{asked['name']}"
        if name not in self.private:
            self.private[name], self.files[name] = asked["visibility"] == "private", {}
        return {"url": f"{self.url}/{name}", "name": name}

    def plan(self, asked: dict[str, Any]) -> Any:
        """Say which files come as large ones."""
        kinds = {True: "lfs", False: "regular"}
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": kinds[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in asked["files"]
            ]
        }

    def places(self, asked: dict[str, Any]) -> Any:
        return {
            "transfer": "basic",
            "objects": [
                {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}} for one in asked["objects"]
            ],
        }

    def commit(self, name: str, lines: list[dict[str, Any]]) -> Any:
        for line in lines:
            match line["key"]:
                case "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                case "lfsFile":
                    self.files[name][line["value"]["path"]] = self.large[line["value"]["oid"]]
        return {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1", "hookOutput": ""}


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        content, hub, path = self._content(), self.server, self.path
        if hub.refuses:
            self._say({"error": "You may not."}, hub.refuses)
        elif path == "/api/repos/create":
            self._say(hub.create(json.loads(content)))
        elif "/preupload/" in path:
            self._say(hub.plan(json.loads(content)))
        elif path.endswith("/info/lfs/objects/batch"):
            self._say(hub.places(json.loads(content)))
        elif path.endswith("/commit/main"):
            lines = [json.loads(line) for line in content.splitlines()]
            self._say(hub.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), lines))
        elif path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        else:
            self._say({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        content = self._content()
        assert sha256(content).hexdigest() == self.path.removeprefix("/large/")
        self.server.large[sha256(content).hexdigest()] = content
        self._say({})

    def do_GET(self) -> None:
        self._say({"error": f"no {self.path}"}, 404)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _say(self, answer: Any, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = nn.Linear(4, 4)
    module.weight.data[1] = 0

    class Bundle:
        def __init__(self) -> None:
            self.module = module

    plugins = Plugins()
    ticket = Ticket(mask_from_zeros(module))
    export(Bundle(), ticket, tmp_path / "shipped", plugins.choose("exporter", "sparse"), run={"backbone": "layer"})
    (tmp_path / "shipped" / "README.md").write_text("---\nlibrary_name: ticketkit\n---\n")
    return tmp_path / "shipped"


def child(hub_url: str, shipped: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN": "hf_nobody",
        "HF_HOME": str(shipped.parent / "hf"),
        "HF_HUB_OFFLINE": "0",  # its hub is on this machine
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
        "COLUMNS": "200",
    }
    command = (sys.executable, *command)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


TWICE = """
import sys
from ticketkit.cli import app
app(["push", sys.argv[1], "me/ticket"], standalone_mode=False)
app(["push", sys.argv[1], "me/open", "--public"], standalone_mode=False)
"""


def test_every_file_of_an_export_arrives_whole_in_a_repository_as_private_as_it_was_told(
    hub: Hub, shipped: Path, tmp_path: Path
) -> None:
    done = child(hub.url, shipped, "-c", TWICE, str(shipped))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"uploaded: {hub.url}/me/{name}/commit/1\n" for name in ("ticket", "open"))
    assert hub.private == {"me/ticket": True, "me/open": False}
    assert hub.files["me/open"] == hub.files["me/ticket"]
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.files["me/ticket"].items():
        (arrived / name).write_bytes(content)
    assert {path.name for path in arrived.iterdir()} == {path.name for path in shipped.iterdir()}
    assert check_files(arrived) == check_files(shipped)


def test_what_the_hub_refuses_is_one_line_with_what_to_do(hub: Hub, shipped: Path) -> None:
    hub.refuses = 403
    done = child(hub.url, shipped, "-m", "ticketkit", "push", str(shipped), "me/ticket")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {shipped} is not uploaded to me/ticket: ")
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files == {}


def test_what_is_no_export_and_what_has_changed_is_not_uploaded(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"export\.json"):
        push(tmp_path, "me/ticket")
    (shipped / "model.safetensors").write_bytes(b"other")
    with pytest.raises(StorageError, match="is not the file that was exported"):
        push(shipped, "me/ticket")


def test_an_address_that_is_none_is_refused_before_anything_is_sent(shipped: Path) -> None:
    with pytest.raises(RunError, match="is not uploaded to me/ticket/digits: "):
        push(shipped, "me/ticket/digits")
