"""The web application: Streamlit's own, behind headers that keep every page from loading or running anything foreign.

``streamlit run ui/server.py`` finds ``app`` here. ``/_stcore/health`` stays Streamlit's own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def inline_script_hashes() -> str:
    """CSP sources for the inline scripts of Streamlit's own start page, so that no other inline script may run."""
    page = (Path(st.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)


# 'unsafe-eval' is Streamlit's own need (its bundle compiles vega expressions); inline scripts stay blocked.
POLICY = "; ".join(
    (
        "default-src 'self'",
        f"script-src 'self' blob: 'unsafe-eval' {inline_script_hashes()}",
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


class SecurityHeaders:
    """Pure ASGI middleware: adds :data:`HEADERS` to every HTTP response, and refuses request lines beyond 16 kB."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in HEADERS}
                kept = [h for h in message.get("headers", []) if h[0].lower() not in ours]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        if scope["type"] == "http" and len(scope.get("query_string", b"")) + len(scope.get("raw_path") or b"") > 16_384:
            await with_headers(
                {
                    "type": "http.response.start",
                    "status": 414,
                    "headers": [(b"content-type", b"text/plain; charset=utf-8")],
                }
            )
            await with_headers(
                {
                    "type": "http.response.body",
                    "body": b"This address is too long. Open the start page and go on from there.",
                }
            )
            return
        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


app = st.App(Path(__file__).with_name("app.py"), middleware=[Middleware(SecurityHeaders)])
