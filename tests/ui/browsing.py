"""A tab of a real Chromium over the pages: it waits for them to rest, records what went wrong, and measures what can be
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.ui.serving import free_port, start, wait_until_up
from workbench.workspace import Workspace

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 60_000  # milliseconds; a busy machine must not decide
BUSY = "[data-test-script-state=running], [data-stale=true], [data-testid=stSkeleton]"

CONTRAST = """() => {
  const parse = (s) => { const m = s.match(/[\\d.]+/g).map(Number); const k = s.startsWith('color(srgb') ? 255 : 1
    return [m[0] * k, m[1] * k, m[2] * k, m.length > 3 ? m[3] : 1] }
  const lum = (c) => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2] }
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat([1])
  const roots = [document.body, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot).filter(Boolean)]
  const texts = (root) => { const w = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), out = []; while (w.nextNode()) out.push(w.currentNode); return out }
  const found = []
  for (const node of roots.flatMap(texts)) {
    const e = node.parentElement, text = node.textContent.trim()
    if (!e || !text || ['STYLE', 'SCRIPT', 'TITLE', 'CANVAS'].includes(e.tagName) || e.closest('canvas, [disabled], [aria-disabled=true], [data-testid=stIconMaterial], [data-testid=stSliderThumbValue]')) continue
    const box = e.getBoundingClientRect(), style = getComputedStyle(e)
    if (box.width < 2 || box.height < 2 || style.visibility === 'hidden' || +style.opacity === 0) continue
    const chain = []
    for (let n = e; n; n = n.parentElement || n.getRootNode().host) chain.unshift(parse(getComputedStyle(n).backgroundColor))
    const back = chain.reduce((under, c) => over(c, under), [255, 255, 255, 1])
    const ink = over(parse(style.color), back)
    const [a, b] = [lum(ink), lum(back)].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize)
    if (ratio < 4.5 || size < 12) found.push(`${text.slice(0, 30)} | ${e.tagName}.${e.className} | ${size}px ${ratio.toFixed(2)}`)
  }
  return [...new Set(found)]
}"""


# fragments of coloured tokens that lie outside of their row
OUTSIDE = """() => [...document.querySelectorAll('.ctx b')].flatMap(b => {
  const row = b.parentElement.getBoundingClientRect()
  return [...b.getClientRects()].filter(r => r.left < row.left - 2 || r.right > row.right + 2).map(() => b.textContent) })"""
# page: the heading of a deep link into it, and what of the link must still be there afterwards


def serve(workspace: Workspace) -> Iterator[str]:
    port = free_port()
    process = start(workspace.root, port)
    try:
        wait_until_up(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


class Visit:
    """A tab that records what went wrong in it."""

    def __init__(self, browser: Any, site: str, scheme: str = "light", width: int = 1440):
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 950})
        self.page, self.site, self.troubles = self.context.new_page(), site, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda e: self.troubles.append(f"page error: {e}"))
        self.page.on(
            "console", lambda m: self.troubles.append(m.text) if m.type == "error" and "404" not in m.text else None
        )
        self.sent: list[int] = []
        self.page.on("websocket", lambda ws: ws.on("framesent", lambda frame: self.sent.append(len(frame))))
        self.page.on("request", self._request)
        self.page.on("dialog", lambda d: self.troubles.append(f"dialog: {d.message}"))

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.site, self.site.replace("http", "ws"), "data:", "blob:")):
            self.troubles.append(f"foreign request: {request.url}")

    def open(self, path: str = "") -> Any:
        self.page.goto(f"{self.site}/{path}")
        self.page.wait_for_selector(".wb-foot")
        self.settle()
        return self.page

    def until(self, act: Callable[[], None], seen: Callable[[float], object], tries: int = 4) -> None:
        """Do something until it has been seen: a chart that is drawn anew at that moment does not hear it.

        ``seen`` takes milliseconds.
        """
        from playwright.sync_api import TimeoutError as Unseen

        for left in reversed(range(tries)):
            self.settle()
            act()
            try:
                seen(PATIENCE if not left else PATIENCE / 4)
                return
            except Unseen:
                if not left:
                    raise

    def settle(self, quiet: float = 0.4) -> None:
        """Wait until the page has neither worked nor changed its address for ``quiet`` seconds together."""
        self.page.evaluate("() => { window.__quiet = null }")
        self.page.wait_for_function(
            """([busy, quiet]) => {
              const now = document.querySelector(busy) ? null : location.href
              if (!window.__quiet || now === null || window.__quiet.href !== now) window.__quiet = {href: now, since: performance.now()}
              return now !== null && performance.now() - window.__quiet.since > 1000 * quiet
            }""",
            arg=[BUSY, quiet],
            polling=50,
            timeout=PATIENCE,
        )


def heading(page: Any, text: str) -> None:
    page.wait_for_function("t => document.querySelector('.wb-title h1')?.textContent === t", arg=text, timeout=PATIENCE)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))
