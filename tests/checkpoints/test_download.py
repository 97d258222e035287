"""`dpt download` against a hub on this machine: real requests, no network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dpt.cli.main import run
from dpt.errors import UserError

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "/leigangqu/DPT-T2I/resolve/main/pytorch_model.bin"


@dataclass
class Hub:
    """A local hub that serves one file."""

    endpoint: str = ""
    sends: int = len(CONTENT)
    """Where the connection breaks off."""
    fault: tuple[int, str] | None = None
    drips: bool = False
    """Whether its answers are headers without end, a byte now and then."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            state.requests.append((self.command, self.path))
            state.tokens.append(self.headers.get("Authorization"))
            if state.drips:
                self.drip()
                return
            status, fault = state.fault or ((200, "") if self.path == FILE else (404, "EntryNotFound"))
            self.send_response(status)
            if fault:
                self.send_header("X-Error-Code", fault)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{SHA256}"')
            self.send_header("Content-Length", str(0 if fault else len(CONTENT)))
            self.end_headers()
            if self.command == "GET" and not fault:
                self.wfile.write(CONTENT[: state.sends])

        def drip(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            with suppress(OSError):
                while state.drips:
                    self.wfile.write(b"a")
                    self.wfile.flush()
                    time.sleep(0.05)

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield state
    state.drips = False
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, folder: Path, *words: str) -> None:
    run(["download", "--out", str(folder), "--endpoint", hub.endpoint, *words])


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_file_is_downloaded_once(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", str(len(CONTENT)), "--sha256", SHA256.upper()]
    fetch(hub, tmp_path / "ckpt" / "dpt-v2.1", *words)
    assert listing(tmp_path) == ["ckpt", "ckpt/dpt-v2.1", "ckpt/dpt-v2.1/pytorch_model.bin"]
    assert (tmp_path / "ckpt/dpt-v2.1/pytorch_model.bin").read_bytes() == CONTENT
    assert f"was fetched from leigangqu/DPT-T2I (256,000 bytes, SHA-256 {SHA256})" in capsys.readouterr().out
    requests = list(hub.requests)
    assert ("GET", FILE) in requests
    fetch(hub, tmp_path / "ckpt" / "dpt-v2.1", *words)
    assert "pytorch_model.bin already exists (256,000 bytes" in capsys.readouterr().out
    assert hub.requests == requests


def test_other_files_beside_it_are_left_alone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    fetch(hub, tmp_path)
    assert listing(tmp_path) == ["README.md", "pytorch_model.bin"]


def test_token_is_not_sent_to_another_endpoint(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, tmp_path)
    assert hub.tokens and set(hub.tokens) == {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "7"], "pytorch_model.bin of leigangqu/DPT-T2I was not kept: it has 256000 bytes instead of 7$"),
        (["--sha256", "0" * 64], f"was not kept: it has the SHA-256 {SHA256} instead of 0000"),
    ],
    ids=["size", "sha256"],
)
def test_file_with_wrong_size_or_hash_is_not_kept(hub: Hub, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fetch(hub, tmp_path / "new", *words)
    assert listing(tmp_path) == []
    fetch(hub, tmp_path)
    with pytest.raises(UserError, match=r"pytorch_model.bin already exists, but it has "):
        fetch(hub, tmp_path, *words)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == CONTENT


def test_broken_connection_leaves_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.sends = 1000
    with pytest.raises(UserError, match=r"the download broke off .*; try again, or .* put it at .*new/pytorch_model.b"):
        fetch(hub, tmp_path / "new")
    assert ("GET", FILE) in hub.requests and listing(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((404, "RepoNotFound"), "no repository 'leigangqu/DPT-T2I', or it is private: check the name, or log in"),
        ((404, "RevisionNotFound"), "not its revision 'main': check the branch, tag or commit$"),
        ((404, "EntryNotFound"), "no file 'pytorch_model.bin' in it: check the name of the file$"),
        ((403, "GatedRepo"), "is gated: accept its conditions on its page, then log in with `hf auth login`$"),
        ((401, "Other"), r"refuses access to .* \(401\): log in"),
        ((403, "Other"), r"refuses access to .* \(403\): log in"),
        ((503, "Busy"), "the hub answered 503; try again later, or .* put it at"),
    ],
    ids=lambda value: f"{value[0]} {value[1]}" if isinstance(value, tuple) else "",
)
def test_hub_errors_name_the_next_step(
    hub: Hub, tmp_path: Path, fault: tuple[int, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    hub.fault = fault
    with pytest.raises(UserError, match=message) as caught:
        fetch(hub, tmp_path / "new", "--revision", "main")
    assert "\n" not in str(caught.value) and listing(tmp_path) == []


def test_unreachable_hub_is_a_user_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.endpoint = "http://127.0.0.1:9"
    with pytest.raises(
        UserError, match=r"no hub can be reached to fetch it: check the path, or .* the proxy, or fetch"
    ):
        fetch(hub, tmp_path / "new")
    assert listing(tmp_path) == []


def test_slow_headers_hit_the_timeout(hub: Hub, tmp_path: Path) -> None:
    hub.drips = True
    began = time.monotonic()
    with pytest.raises(UserError, match="the hub sent nothing for 1 seconds; try again later"):
        fetch(hub, tmp_path / "new", "--timeout", "1")
    assert time.monotonic() - began < 30 and listing(tmp_path) == []


def test_invalid_options_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for words, message in (
        (["--sha256", "abc"], "--sha256 takes 64 hexadecimal digits, not 'abc'"),
        (["--repo", ""], "--repo is empty"),
        (["--timeout", "0"], "--timeout must be positive, not 0"),
        (["--repo", "no/such/name"], "'no/such/name' is not the name of a repository"),
    ):
        with pytest.raises(UserError, match=message):
            run(["download", "--out", str(tmp_path / "new"), *words])
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "reachable",
    [pytest.param(True, id="a hub named by the environment"),
     pytest.param(False, id="no network", marks=pytest.mark.nightly)],
)  # fmt: skip
def test_download_as_a_command(hub: Hub, tmp_path: Path, reachable: bool) -> None:
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    if not reachable:
        settings["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "dpt", "download", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    if reachable:
        assert done.returncode == 0 and (tmp_path / "out/pytorch_model.bin").read_bytes() == CONTENT
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert (
            "HF_HUB_OFFLINE forbids fetching it: unset it, or fetch the file" in done.stderr
            and not (tmp_path / "out").exists()
        )
