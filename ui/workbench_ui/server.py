"""The web application: Streamlit's own, behind a door that keeps every page from loading or running anything foreign.

``streamlit run server.py`` finds ``app`` here. ``/_stcore/health`` stays Streamlit's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from asyncio import BaseProtocol, BaseTransport
from functools import cache
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from workbench.serving.site import inline_scripts
from workbench_ui.documentation import PREFIX, answer
from workbench_ui.kit.pages import PAGES

PATHS = frozenset({"/", *(f"/{page.stem}" for page in PAGES)})
STREAMLIT = ("/_stcore/", "/static/", "/media/", "/component/", "/_component/", "/app/")  # answered by Streamlit itself
# Where the server is, said beforehand: else the script looks for it under every page's own address first, which costs a
# round trip and logs two errors.
ROOT = "window.__streamlit = {BACKEND_BASE_URL: location.origin, MAIN_PAGE_BASE_URL: location.origin}"
NOWHERE = Path(__file__).with_name("nowhere.html").read_text(encoding="utf-8")


# What pages are made of, by Streamlit's names of its scripts and fonts. Its own start page asks for each only when the
# first such element arrives, one wave of requests after the other; asked for at once they come while the page is made.
EARLY_SCRIPTS = (
    "Html",
    "Selectbox",
    "NumberInput",
    "Button",
    "DownloadButton",
    "TextInput",
    "ButtonGroup",
    "Checkbox",
    "BidiComponent",
)
EARLY_FONTS = ("MaterialSymbols-Rounded", "SourceCodeVF-Upright")
# What draws charts: five megabytes, which take the browser longer than all the rest of a page. A page with charts asks
# for it at once; on the others it is read once they rest, so that it is there when the reader goes on to such a page.
CHARTS = ("PlotlyChart",)
# A page that draws one itself; charts of its sections (``views/``) wait until the reader comes near or unfolds them.
_DRAWS = re.compile(r"\b(?:plotly_)?chart\(")
_FILES = Path(__file__).parent / "app_pages"
WITH_CHARTS = frozenset(
    f"/{page.stem}" for page in PAGES if _DRAWS.search((_FILES / f"{page.stem}.py").read_text(encoding="utf-8"))
)
AHEAD = """addEventListener('load', () => {
  let quiet = 0
  const look = setInterval(() => {
    const busy = !document.querySelector('.wb-foot') || document.querySelector('[data-test-script-state=running]')
    quiet = busy ? 0 : quiet + 1
    if (quiet < 4) return
    clearInterval(look)
    for (const name of NAMES) import(`/static/js/${name}`).catch(() => {})
  }, 250)
})"""
ASSETS = {".js": "application/javascript", ".css": "text/css", ".woff2": "font/woff2", ".ttf": "font/ttf"}
LARGEST_ASSET = 1 << 19  # bytes
FOREVER = "public, immutable, max-age=31536000"  # as Streamlit says of them: their names hold their digests
_IMPORT = re.compile(r"""(?:from|import)\s*["']\./([\w.-]+\.js)["']""")


@cache
def start_page(charts: bool = False) -> bytes:
    """Streamlit's start page under the program's own title, told where its server is and what it will need, at once or
    later; of a page with ``charts`` what draws them is needed at once.
    """
    static = Path(st.__file__).parent / "static"
    page = (static / "index.html").read_text(encoding="utf-8")
    page = page.replace("<title>Streamlit</title>", "<title>Interpretability Workbench</title>")
    early = "".join(
        f"    {link}\n" for link in early_links(static, charts) if link.split('href="')[1].split('"')[0] not in page
    )
    page = page.replace("</head>", f"{early}  </head>", 1)
    names = [path.name for name in CHARTS for path in sorted((static / "static" / "js").glob(f"{name}.*.js"))]
    scripts = f"<script>{ROOT}</script>\n    <script>{AHEAD.replace('NAMES', json.dumps(names))}</script>"
    return page.replace("<head>", f"<head>\n    {scripts}", 1).encode()


def early_links(static: Path, charts: bool = False) -> list[str]:
    """Links that make the browser ask for :data:`EARLY_SCRIPTS` (and :data:`CHARTS`), all they import, and
    :data:`EARLY_FONTS`, after what Streamlit's start page itself names; a name that this Streamlit does not have is
    left out.
    """
    js, media = static / "static" / "js", static / "static" / "media"
    found: dict[str, None] = {}
    wanted = (*EARLY_SCRIPTS, *(CHARTS if charts else ()))
    waiting = [path.name for name in wanted for path in sorted(js.glob(f"{name}.*.js"))]
    while waiting:
        name = waiting.pop(0)
        if name not in found and (js / name).is_file():
            found[name] = None
            waiting += _IMPORT.findall((js / name).read_text(encoding="utf-8"))
    fonts = [path.name for name in EARLY_FONTS for path in sorted(media.glob(f"{name}.*woff2"))]
    late = 'crossorigin fetchpriority="low" />'
    return [
        *(f'<link rel="preload" href="./static/media/{name}" as="font" type="font/woff2" {late}' for name in fonts),
        *(f'<link rel="modulepreload" href="./static/js/{name}" {late}' for name in found),
    ]


def asset(path: str) -> Response | None:
    """One of Streamlit's own scripts, styles and fonts, from memory; None where Streamlit is to answer.

    A new tab asks for a hundred of them, and looking each up on the disk keeps the server from the page. What is large
    stays there: it is asked for once, since a name never stands for other content.
    """
    file = _assets().get(path)
    return None if file is None else _held(file)


@cache
def _assets() -> dict[str, Path]:
    """Address -> file."""
    static = Path(st.__file__).parent / "static" / "static"
    small = (p for p in static.rglob("*") if p.suffix in ASSETS and p.stat().st_size <= LARGEST_ASSET)
    return {f"/static/{p.relative_to(static).as_posix()}": p for p in small}


@cache
def _held(file: Path) -> Response:
    return Response(file.read_bytes(), media_type=ASSETS[file.suffix], headers={"cache-control": FOREVER})


def inline_script_hashes(page: str) -> str:
    """CSP sources for the inline scripts of a page, so that no other inline script may run."""
    scripts = inline_scripts(page)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)


SCRIPTS = "script-src 'self' blob: "
# 'unsafe-eval' is Streamlit's own need (its bundle compiles vega expressions); inline scripts stay blocked.
POLICY = "; ".join(
    (
        "default-src 'self'",
        f"{SCRIPTS}'unsafe-eval' {inline_script_hashes(start_page().decode())}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' ws://127.0.0.1:* ws://localhost:*",
        "worker-src 'self' blob:",
        "frame-src 'self' blob: data:",
        "frame-ancestors 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Door:
    """Pure ASGI middleware before Streamlit: adds :data:`HEADERS` to every HTTP response, refuses request lines beyond
    16 kB, answers the pages' addresses with :func:`start_page`, and unknown addresses with a page that says so.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        shown = _own_answer(scope)
        streamlits = scope["path"] in PATHS or scope["path"].startswith(STREAMLIT)
        headers = HEADERS if streamlits or not shown else _headers_of(shown)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in headers}
                kept = [h for h in message.get("headers", []) if h[0].lower() not in ours]
                message = {**message, "headers": [*kept, *headers]}
            await send(message)

        await (shown or self.app)(scope, receive, with_headers)


def _headers_of(shown: Response) -> tuple[tuple[bytes, bytes], ...]:
    """:data:`HEADERS` for a page of this program: its inline scripts may run, nothing is compiled from text."""
    text = bytes(shown.body).decode("utf-8", "replace") if shown.media_type == "text/html" else ""
    scripts = f"{SCRIPTS}{inline_script_hashes(text)}".rstrip()
    policy = "; ".join(scripts if part.startswith(SCRIPTS) else part for part in POLICY.split("; "))
    return ((b"content-security-policy", policy.encode()), *HEADERS[1:])


def _own_answer(scope: Scope) -> Response | None:
    """What this program answers by itself; None where Streamlit does."""
    path: str = scope["path"]
    if len(scope.get("query_string", b"")) + len(scope.get("raw_path") or b"") > 16_384:
        return PlainTextResponse("This address is too long. Open the start page and go on from there.", 414)
    if scope["method"] in ("GET", "HEAD") and path.startswith(PREFIX):
        return answer(path.removeprefix(PREFIX)) or HTMLResponse(NOWHERE, 404)
    if scope["method"] == "GET" and (found := asset(path)):
        return found
    if scope["method"] not in ("GET", "HEAD") or path.startswith(STREAMLIT) or "." in path.rpartition("/")[2]:
        return None
    if path in PATHS:
        return Response(start_page(path in WITH_CHARTS), media_type="text/html", headers={"cache-control": "no-cache"})
    if path.rstrip("/") in PATHS:
        query = scope.get("query_string", b"").decode("latin-1")
        return RedirectResponse(f"{path.rstrip('/')}?{query}" if query else path.rstrip("/"))
    return HTMLResponse(NOWHERE, 404)


def read_ahead() -> None:
    """Import what figures are made of before anybody asks for one: half a second of the first page with charts."""
    import plotly.graph_objects as go

    from workbench.exporting.figures import figure_kinds

    figure_kinds()
    go.Figure(
        [go.Scatter(error_x={}, line={}, marker={}), go.Heatmap(colorbar={})], {"xaxis": {}, "legend": {}}
    ).to_json()


def send_at_once() -> None:
    """Let no answer wait for the browser's word that it has the one before.

    The system holds back a second small packet until the first is acknowledged (Nagle), which a browser puts off by 40
    ms: on every request of a kept connection, head and body being two packets, and between the messages of a page that
    is made. asyncio turns that off, but not for the socket that Streamlit opens, which does not say it is TCP
    (``proto`` 0).
    """
    made = AutoHTTPProtocol.connection_made

    def connection_made(self: BaseProtocol, transport: BaseTransport) -> None:
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made(self, transport)

    AutoHTTPProtocol.connection_made = connection_made  # type: ignore[method-assign]


read_ahead()
send_at_once()
app = st.App(Path(__file__).with_name("app.py"), middleware=[Middleware(Door)])
