"""A stand-in for W&B's server: what its client asks of one when a run begins, goes on and gets lines of history.

It answers as wandb's own client reads it. That the real server does the same cannot be tested here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from tests.shown import Shown

HISTORY = "wandb-history.jsonl"
_PLACE = {"id": "1", "name": "project", "entity": {"id": "1", "name": "somebody"}}


class Server:
    """One run: its lines of history by their number."""

    def __init__(self) -> None:
        self.address = ""
        self.lines: dict[int, dict[str, Any]] = {}
        self.names: set[str] = set()
        self.operations: list[str] = []
        self.summary = "{}"
        self.lock = Lock()

    def history(self) -> Shown:
        """Each step once, or an error."""
        [_] = self.names
        found: Shown = {}
        for number in range(len(self.lines)):
            values = dict(self.lines[number])
            step = values.pop("_step")
            assert step not in found, f"step {step} is there twice"
            found[step] = {key: value for key, value in values.items() if not key.startswith("_")}
        return found

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Of a GraphQL request."""
        self.operations.append(operation)
        if operation == "RunResumeStatus":
            return {"model": {**_PLACE, "bucket": self._run(variables["name"]) if self.names else None}}
        if operation == "UpsertBucket":
            inserted = not self.names
            self.names.add(variables["name"])
            return {"upsertBucket": {"bucket": self._run(variables["name"]), "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/put"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        viewer = {"id": "1", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": {"features": []}}

    def take(self, files: dict[str, Any]) -> None:
        """Of a request to the file stream: lines, from a number on."""
        for number, line in enumerate(files.get(HISTORY, {}).get("content", [])):
            self.lines[files[HISTORY]["offset"] + number] = json.loads(line)
        if summary := files.get("wandb-summary.json"):
            self.summary = summary["content"][-1]

    def _run(self, name: str) -> dict[str, Any]:
        last = [json.dumps(self.lines[len(self.lines) - 1])] if self.lines else []
        counts = {"logLineCount": 0, "historyLineCount": len(self.lines), "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(last), "eventsTail": "[]", "summaryMetrics": self.summary, "config": "{}"}
        texts = {"displayName": name, "description": "", "sweepName": "", "notes": "", "wandbConfig": '{"t": 1}'}
        return {"id": "1", "name": name, "project": _PLACE, "tags": [], **counts, **tails, **texts}


@contextmanager
def wandb_server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._json()
            with state.lock:
                if self.path.endswith("/graphql"):
                    words = body["query"].replace("(", " ").replace("{", " ").split()
                    content = {"data": state.answer(body.get("operationName") or words[1], body.get("variables") or {})}
                else:
                    state.take(body.get("files") or {})
                    content = {}
            self._reply(json.dumps(content).encode())

        def do_PUT(self) -> None:
            self._body()
            self._reply(b"")

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))

        def _json(self) -> dict[str, Any]:
            """Of what is sent to GraphQL and the file stream; wandb tells of itself elsewhere, in other formats."""
            body = self._body()
            is_known = self.path.endswith(("/graphql", "/file_stream"))
            return dict(json.loads(body)) if is_known else {}

        def _reply(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """No output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()
