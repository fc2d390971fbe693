"""The installed documentation: found by verb, word and page, served on this machine alone, refused where absent."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae.errors import MissingError, UsageError
from workbench.cli import app as program
from workbench.cli import available
from workbench.cli.docs import docs
from workbench.markup.glossary import anchor
from workbench.serving import site

VERBS = tuple(available())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small site where the program looks for its own."""
    made = tmp_path / "_site"
    (made / "how-to").mkdir(parents=True)
    (made / "index.html").write_text("<h1>front</h1><script>var a = 1</script><script src='x.js'></script>")
    (made / "how-to" / "train.html").write_text("<h1>Train</h1>")
    (tmp_path / "secret.txt").write_text("not of the site")
    monkeypatch.setattr(site, "SITE", made)
    return made


def test_an_installation_without_the_site_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "SITE", tmp_path / "none")
    with pytest.raises(MissingError, match="make docs"):
        site.site_folder()
    done = CliRunner().invoke(program, ["docs", "--no-browser"])
    assert done.exit_code == 1 and "make docs" in done.output and len(done.output.strip().splitlines()) == 1
    assert site.read("index.html") is None


def test_a_verb_a_word_and_a_page_are_found(folder: Path) -> None:
    assert site.address("", VERBS) == "index.html" and site.address("compare", VERBS) == "reference/cli.html#compare"
    assert site.address("given  the token", VERBS) == "glossary.html#word-given-the-token"
    assert site.address("twin r", VERBS) == f"glossary.html#{anchor('twin r')}" and anchor("twin r") == "column-twin-r"
    assert site.address("how-to/train", VERBS) == site.address("how-to/train.html", VERBS) == "how-to/train.html"
    with pytest.raises(UsageError, match="compare"):
        site.address("compar", VERBS)
    with pytest.raises(UsageError, match="nothing in the documentation"):
        site.address("../secret", VERBS)


def test_nothing_outside_the_site_is_read(folder: Path) -> None:
    assert site.read("how-to/train.html") == (b"<h1>Train</h1>", "text/html")
    assert site.read("") == site.read("index.html")
    for path in ("../secret.txt", "/../secret.txt", "how-to/../../secret.txt", "missing.html", "how-to"):
        assert site.read(path) is None
    assert site.inline_scripts((folder / "index.html").read_text()) == ["var a = 1"]


def test_it_is_served_on_this_machine_alone(folder: Path) -> None:
    with site.server(0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            host, port = serving.server_address[:2]
            assert host == "127.0.0.1"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/how-to/train.html", timeout=10) as answer:
                assert answer.read() == b"<h1>Train</h1>"
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/../secret.txt", timeout=10)
        finally:
            serving.shutdown()
            thread.join()


def test_the_verb_names_folder_and_page_and_refuses_what_it_cannot_do(folder: Path) -> None:
    done = CliRunner().invoke(program, ["docs", "twin", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == {
        "site": str(folder),
        "page": "glossary.html#word-twin",
        "file": str(folder / "glossary.html"),
    }
    wrong = CliRunner().invoke(program, ["docs", "trian"])
    assert wrong.exit_code == 2 and "train" in wrong.output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = CliRunner().invoke(program, ["docs", "--port", str(taken.getsockname()[1])])
    assert busy.exit_code == 1 and "in use" in busy.output


def test_without_a_terminal_the_file_is_named_and_nothing_is_served(folder: Path) -> None:
    done = CliRunner().invoke(program, ["docs", "how-to/train"])  # would not come back if it served
    assert done.exit_code == 0 and done.stdout.strip() == str(folder / "how-to" / "train.html")
    assert "--port" in done.stderr


def test_a_pipe_behind_it_is_no_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def served(port: int) -> None:
        raise AssertionError(f"served on {port}")

    monkeypatch.setattr(site, "server", served)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    docs("how-to/train")
    assert capsys.readouterr().out.strip() == str(folder / "how-to" / "train.html")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(AssertionError, match="served"):
        docs("how-to/train")


def test_the_last_part_of_a_page_is_enough_where_one_page_has_it(folder: Path) -> None:
    assert site.address("train", ()) == "how-to/train.html"
    (folder / "tutorials").mkdir()
    (folder / "tutorials" / "train.html").write_text("<h1>Train</h1>")
    with pytest.raises(UsageError, match="2 pages are called 'train': how-to/train and tutorials/train"):
        site.address("train", ())
    assert site.address("train", VERBS) == "reference/cli.html#train"
