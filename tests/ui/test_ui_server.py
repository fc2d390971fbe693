"""The server process: headers, loopback, hosts, ports, and an end within five seconds."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from sae.errors import UsageError, UserError
from tests.ui.conftest import APP
from tests.ui.serving import ROOT, free_port, start, wait_until_up
from workbench.cli.ui import check_port, streamlit_command
from workbench.workspace import Workspace
from workbench_ui.kit.pages import PAGES


@pytest.fixture(scope="module")
def server(full: Workspace) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A running server; a user's environment tries to open it to the world and must not succeed."""
    port = free_port()
    process = start(full.root, port, STREAMLIT_SERVER_ADDRESS="0.0.0.0", STREAMLIT_BROWSER_GATHER_USAGE_STATS="true")
    try:
        wait_until_up(port, process)
        yield port, process
    finally:
        process.kill()
        process.wait(10)


def test_one_process_that_listens_on_loopback_only(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    process = server[1]
    me = psutil.Process(process.pid)
    assert me.children(recursive=True) == []
    assert [c.laddr.ip for c in me.net_connections("tcp") if c.status == "LISTEN"] == ["127.0.0.1"]


def test_headers_of_every_response(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    port, _ = server
    for path in ("/", "/latent?d=x", "/_stcore/health", "/static/nothing"):
        try:
            headers = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).headers
        except urllib.error.HTTPError as e:
            headers = e.headers
        policy = headers["content-security-policy"]
        assert (
            "default-src 'self'" in policy
            and "object-src 'none'" in policy
            and "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_the_documentation_is_beside_the_pages(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    """What words, columns and badges link to; its own scripts alone may run, and nothing outside it is read."""
    port, _ = server
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/docs/glossary.html", timeout=10) as answer:
        text, policy = answer.read().decode(), answer.headers["content-security-policy"]
    scripts = policy.split("script-src")[1].split(";")[0]
    assert 'id="word-twin"' in text and "'unsafe" not in scripts and "default-src 'self'" in policy
    for path in ("/docs/../server.py", "/docs/%2e%2e/config.py", "/docs/nothing.css"):
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
        assert e.value.code == 404


def test_very_long_address_is_refused_politely(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    port, _ = server
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/latent?d={'x' * 30_000}", timeout=10)
    assert e.value.code == 414 and b"too long" in e.value.read()


def test_rebound_host_gets_no_session(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    """A page of evil.example whose name was pointed at 127.0.0.1 asks for the WebSocket."""
    port, _ = server

    def handshake(host: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            s.sendall(
                f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade:"
                " websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key:"
                " dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: streamlit\r\n\r\n".encode()
            )
            return s.recv(100).split(b"\r\n")[0]

    assert b"403" in handshake(f"evil.example:{port}")
    assert b"101" in handshake(f"127.0.0.1:{port}")


def test_sigterm_ends_it_within_five_seconds(full: Workspace) -> None:
    port = free_port()
    process = start(full.root, port)
    try:
        wait_until_up(port, process)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(5)
        assert time.monotonic() - began < 5
    finally:
        process.kill()


def test_port_in_use_is_one_line_that_names_a_free_one(full: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(full.root, taken.getsockname()[1])
        said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    assert (
        said.startswith("error: port ")
        and "is in use" in said
        and "--port " in said.split("try")[1]
        and said.count("\n") == 1
    )


def test_newer_workspace_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "workspace.json").write_text(json.dumps({"schema": 7}))
    process = start(tmp_path / "ws", free_port())
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1 and said.count("\n") == 1 and "schema 7" in said and "Upgrade" in said


def test_ports_that_cannot_be_meant() -> None:
    for port in (0, -1, 70_000):
        with pytest.raises(UsageError):
            check_port(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError) as e:
            check_port(taken.getsockname()[1])
        assert e.value.exit_code == 1


def test_browser_only_from_a_terminal() -> None:
    assert "--server.headless=true" in streamlit_command(8501, open_browser=False)
    assert "--server.headless=false" in streamlit_command(8501, open_browser=True)
    assert "--server.address=127.0.0.1" in streamlit_command(8501, open_browser=True)


def test_pages_import_without_torch() -> None:
    code = (
        "import sys, workbench_ui.kit.data, workbench_ui.views.latent_table, workbench.markup.latent,"
        " workbench_ui.kit.context_bar, workbench_ui.server, workbench.cli.ui; sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ui")])}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=False).returncode == 0


def test_small_scripts_come_from_memory_as_streamlit_sends_them(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    import streamlit

    from workbench_ui.server import LARGEST_ASSET, asset

    port, _ = server
    static = Path(streamlit.__file__).parent / "static" / "static"
    sizes = {p: p.stat().st_size for p in (static / "js").glob("*.js")}
    small, large = min(sizes, key=lambda p: sizes[p]), max(sizes, key=lambda p: sizes[p])
    assert sizes[large] > LARGEST_ASSET and asset(f"/static/js/{large.name}") is None
    for path in ("/static/js/nothing.js", "/static/../index.html", "/static/js/../index.html", "/"):
        assert asset(path) is None, path
    for file in (small, large):  # one from memory, one from Streamlit: the same but for dates and marks
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/static/js/{file.name}", timeout=30) as answer:
            assert answer.read() == file.read_bytes()
            assert answer.headers.get_content_type() == "application/javascript"
            assert set(answer.headers["cache-control"].split(", ")) == {"public", "immutable", "max-age=31536000"}
            assert "'unsafe-eval'" in answer.headers["content-security-policy"]


def test_an_answer_on_a_kept_connection_waits_for_nothing(server: tuple[int, subprocess.Popen[bytes]]) -> None:
    """Head and body go at once: held back until the head is acknowledged (Nagle), each would take 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", server[0], timeout=10)
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        connection.request("GET", "/_stcore/health")
        assert connection.getresponse().read() == b"ok"
        seconds.append(time.perf_counter() - began)
    connection.close()
    assert min(seconds[20:]) < 0.02  # the first ones a system acknowledges at once


def test_what_draws_charts_is_asked_for_by_the_pages_that_draw_at_once(
    full: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(full.root))
    from workbench_ui.server import WITH_CHARTS

    drawing = set()
    for page in PAGES:
        at = AppTest.from_file(str(APP), default_timeout=60).run()
        if page.stem != "overview":
            at = at.switch_page(f"app_pages/{page.stem}.py").run()
        if at.get("plotly_chart"):
            drawing.add(f"/{page.stem}")
    assert drawing >= {"/mppc", "/training", "/induction", "/states", "/map"}
    assert drawing <= WITH_CHARTS
    assert WITH_CHARTS.isdisjoint({"/overview", "/latents", "/latent", "/lists", "/export", "/about"})
