"""Every page as axe-core sees it, light and dark: no rule broken, serious or minor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ui.browsing import Visit
from tests.ui.test_ui_journeys import LINKS

axe = pytest.importorskip("axe_playwright_python", reason="pip install -e .[dev] brings axe-core")
pytestmark = pytest.mark.browser
RUN = """async () => {
  const found = await axe.run(document, { resultTypes: ['violations'] })
  const where = (n) => n.target.join(' ') + ' | ' + n.html.slice(0, 160)
  return found.violations.map(v => [v.id, v.impact, v.nodes.map(where)])
}"""


def violations(page: Any) -> list[Any]:
    """What axe-core objects to: rule, impact, where."""
    page.evaluate((Path(str(axe.__file__)).parent / "axe.min.js").read_text(encoding="utf-8"))
    found: list[Any] = page.evaluate(RUN)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize("stem", LINKS)
def test_axe_finds_nothing(browser: Any, site: str, stem: str, scheme: str) -> None:
    tab = Visit(browser, site, scheme)
    try:
        found = violations(tab.open(LINKS[stem][0]))
        assert not found, "\n".join(f"{i} ({impact})\n  " + "\n  ".join(at[:5]) for i, impact, at in found)
    finally:
        tab.context.close()


def test_axe_itself_runs_and_sees_a_fault(visit: Visit) -> None:
    """One page in every run of the tests, and a fault put into it by hand."""
    page = visit.open("about")
    assert violations(page) == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<main><img src=\"data:,\"></main>')")
    assert "image-alt" in [v[0] for v in violations(page)]
