"""A claim is measured again when the code behind it changed, and not when it was reformatted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.claims import all_claims
from workbench.claims.code import code_digest

FILES = {
    "__init__.py": "",
    "claim.py": '''"""A claim."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from made_up.shown import Page
def measure(lab):
    """Docstring."""
    from .inner import deep
    return deep(lab) + 1
''',
    "inner.py": "import json\nfrom made_up import far\ndef deep(x): return far.twice(x)\n",
    "far.py": "def twice(x): return 2 * x\n",
    "shown.py": "class Page: pass\n",
    "other.py": "x = 1\n",
}


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The digest of a made-up claim whose files were changed; as they are without arguments."""
    package = tmp_path / "made_up"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def now(made_apart: tuple[str, ...] = (), **changed: str) -> str:
        for name, text in FILES.items():
            (package / name).write_text(changed.get(name.removesuffix(".py"), text))
        code_digest.cache_clear()
        for name in [m for m in sys.modules if m.startswith("made_up")]:
            del sys.modules[name]
        return code_digest("made_up.claim", own=("made_up",), made_apart=made_apart)

    return now


@pytest.mark.parametrize(
    "changed",
    [
        {"claim": FILES["claim.py"].replace("Docstring.", "Other words.").replace("    ", "        ")},
        {"far": "# a comment\n\n\ndef twice(x):\n    return (2 * x)\n"},
        {"shown": "class Page: size = 2\n"},
        {"other": "x = 2\n"},
    ],
)
def test_words_layout_types_and_code_that_is_not_called_change_nothing(
    digest: Callable[..., str], changed: dict[str, str]
) -> None:
    assert digest() == digest(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"claim": FILES["claim.py"].replace("+ 1", "+ 2")},
        {"inner": FILES["inner.py"].replace("twice(x)", "twice(x + 1)")},
        {"far": "def twice(x): return 3 * x\n"},
    ],
)
def test_a_change_of_what_is_called_changes_it_however_far_away(
    digest: Callable[..., str], changed: dict[str, str]
) -> None:
    assert digest() != digest(**changed)


def test_what_lies_behind_a_step_that_is_kept_apart_does_not_count(digest: Callable[..., str]) -> None:
    apart = ("made_up.inner",)
    assert digest(apart) == digest(apart, far="def twice(x): return 3 * x\n")
    assert digest(apart) != digest(apart, inner=FILES["inner.py"].replace("twice(x)", "twice(x + 1)"))


def test_every_claim_has_a_digest_and_files_of_claims_differ() -> None:
    modules = {c.measure.__module__ for c in all_claims()}
    assert len({code_digest(m) for m in modules}) == len(modules)
