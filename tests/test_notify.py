"""A word when a run is over: to a real server and a real command, once, and never at the cost of the run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from senet.config.load import load_config
from senet.distributed.preemption import StopFlag
from senet.errors import ConfigError
from senet.launch import train
from senet.notify import message, target, tell, was_finished
from slurm import batch
from slurm.starts import Launch

CONTENT = {"state": "finished", "text": "a run"}
RUNNING = "JobState=RUNNING Restarts=0 PreemptTime=None EndTime=Unknown"


class Server:
    """What it was sent; ``answer`` decides the status code."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.answer, self.wait_s = 200, 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.got.append((self.path, json.loads(body)))
                time.sleep(server.wait_s)
                self.send_response(server.answer)
                if server.answer == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """No output."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port

    def start(self) -> None:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def https(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """With a certificate of its own, which SSL_CERT_FILE makes known."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return server


def test_an_https_address_gets_json_by_post(https: Server, capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"https://localhost:{https.port}/hook", CONTENT)
    assert https.got == [("/hook", CONTENT)]
    assert capsys.readouterr().err == ""


def test_an_address_with_an_unknown_certificate_gets_nothing(
    https: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    tell(f"https://localhost:{https.port}/hook", CONTENT)
    assert https.got == []
    assert "nobody was told" in capsys.readouterr().err


def test_a_command_gets_json_on_its_standard_input(tmp_path: Path) -> None:
    tell(f"cat > {tmp_path}/got; : https://example.org", CONTENT)  # a command may hold an address
    assert json.loads((tmp_path / "got").read_text()) == CONTENT


def test_a_redirection_is_not_followed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.start()
    server.answer = 302
    tell(f"http://localhost:{server.port}/hook", CONTENT)
    assert [path for path, _ in server.got] == ["/hook"]
    assert capsys.readouterr().err == "notify: nobody was told: the address answers 302\n"


def test_a_slow_or_dead_receiver_costs_seconds_and_one_line(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    server.start()
    server.wait_s = 60
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        port = closed.getsockname()[1]
        for notify in (f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{port}", "sleep 60", "exit 3", "no-such"):
            began = time.monotonic()
            tell(notify, CONTENT)
            assert time.monotonic() - began < 45
            lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("notify: nobody was told")]
            assert len(lines) == 1, notify


def test_an_address_may_come_from_a_variable_which_no_file_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the variable HOOK is not set here"):
        target("env:HOOK")
    monkeypatch.setenv("HOOK", "https://hooks.example/services/T0001/B2/0123456789abcdef0123?x=1")
    assert target("env:HOOK").endswith("?x=1")
    monkeypatch.setenv("HOOK", "http://hooks.example")
    with pytest.raises(ConfigError, match="no https address") as error:
        target("env:HOOK")
    assert "hooks.example" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("http://example.org/hook", "is no https address"),
        ("ftp://example.org", "is no https address"),
        ("https://user:word@example.org/", "notify=env:NOTIFY"),
        ("https://example.org/hook?token=1", "notify=env:NOTIFY"),
        ("https://hooks.example/services/T0001/B2/0123456789abcdef0123", "notify=env:NOTIFY"),
        ("env:", "the name of a variable"),
    ],
)
def test_what_would_write_a_key_into_files_or_send_in_the_clear_is_refused(typed: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load_config([f"notify={typed}"])
    assert "token=1" not in str(error.value)
    assert "0123456789" not in str(error.value)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("sleep 60; curl -H SECRETKEY0123 example", "the command was not done within 4.5 s"),
        ("https://localhost/hooks/x y/SECRETKEY0123", "the address holds a blank or another character that no address"),
        ("https://localhost/hooks/\u00e4/SECRETKEY0123", "the address holds a blank or another character that no"),
        ("https://localhost:SECRETKEY0123/", "the address holds a blank or another character that no address may have"),
        ("curl SECRETKEY0123 \0", "ValueError"),
    ],
)
def test_what_fails_is_said_without_the_address_or_the_command(
    secret: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "NOTIFY": secret})
    tell("env:NOTIFY", CONTENT)
    shown = capsys.readouterr().err
    assert "SECRETKEY" not in shown
    assert shown.startswith(f"notify: nobody was told: {said}")


def test_a_message_says_which_run_how_it_ended_why_and_where(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"result": {"epoch": 3, "best_top1": 91.5}}))
    found = message(tmp_path, "failed", "a disk is full", "123")
    assert (found["run"], found["state"], found["cause"]) == (tmp_path.name, "failed", "a disk is full")
    assert found["result"]["best_top1"] == 91.5
    assert found["where"] | {"host": ""} == {"host": "", "run_dir": str(tmp_path), "job": "123"}
    assert found["text"] == f"run {tmp_path.name} failed: a disk is full, best 91.50 % top-1; {tmp_path}"


def test_a_run_that_had_finished_before_is_not_told_again(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "done": 44}))
    for after, start, expected in (("finished", 44, True), ("finished", 22, False), ("stopped", 44, False)):
        (tmp_path / "starts.jsonl").write_text(json.dumps({"resumed_from": start, "after": {"state": after}}) + "\n")
        assert was_finished(tmp_path) == expected
    (tmp_path / "starts.jsonl").unlink()
    assert not was_finished(tmp_path)


def test_a_job_tells_once_of_its_end_and_of_no_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm").mkdir()
    variables = {"SENET_RUN_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SENET_JOB": "7", "SENET_LAUNCH": "0"}
    variables |= {"SENET_MAX_REQUEUES": "1", "SENET_MAX_RESTARTS": "0", "SENET_SIGNAL_LEAD_S": "1"}
    variables |= {"SENET_MAY_SHRINK": "0", "SLURM_JOB_NUM_NODES": "1", "SENET_NOTIFY": f"cat >> {tmp_path}/got"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def ended(restarts: int, **outcome: str) -> list[dict[str, Any]]:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        Launch.from_environment().outcome_file.write_text(json.dumps(outcome))
        batch.main(["end", RUNNING, "", "n1"])
        got = tmp_path / "got"
        return [json.loads(line) for line in got.read_text().replace("}{", "}\n{").splitlines()] if got.exists() else []

    assert ended(0, state="stopped", reason="SIGUSR2") == []
    assert capsys.readouterr().out == "requeue\n"
    for _ in range(2):  # the batch script may ask again
        [told] = ended(1, state="stopped", reason="SIGUSR2")
        assert (told["state"], told["where"]["job"]) == ("stopped", "7")
        assert told["cause"] == "slurm.max_requeues=1 is used up; submit again to go on"
    assert [each["state"] for each in ended(2, state="finished")] == ["stopped", "finished"]
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "done": 44}))
    (tmp_path / "starts.jsonl").write_text(json.dumps({"resumed_from": 44, "after": {"state": "finished"}}) + "\n")
    assert len(ended(3, state="finished")) == 2  # submitted again, it had nothing to do


def test_launch_sh_tells_of_a_run_that_failed_and_not_of_one_that_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "status.json").write_text(json.dumps({"reason": "a bug", "result": {}}))
    ends = [("refused", "", ""), ("failed", "rank 0 ended", ""), ("failed", "rank 0 ended", "RESTARTS=1 is used up")]
    options = ["configs/tiny.yaml", f"run_dir={run_dir}", f"notify=cat >> {tmp_path}/got; echo >> {tmp_path}/got"]
    monkeypatch.setenv("NPROC", "1")
    for each in ends:
        monkeypatch.setattr("senet.launch._until_it_ends", lambda *_, found=each: found)
        train(options, StopFlag())
    told = [json.loads(line) for line in (tmp_path / "got").read_text().splitlines()]
    assert [(each["state"], each["cause"]) for each in told] == [
        ("failed", "a bug"),
        ("failed", "RESTARTS=1 is used up"),
    ]


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 all is well":
                    connection.send(bytes([byte]))
                    time.sleep(2)

        threading.Thread(target=trickle, daemon=True).start()
        began = time.monotonic()
        tell(f"http://127.0.0.1:{listening.getsockname()[1]}", CONTENT)
    assert time.monotonic() - began < 40
    assert capsys.readouterr().err == "notify: nobody was told: no answer within 5 s\n"
