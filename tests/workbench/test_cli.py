"""The command line: help for every verb, exit codes, one JSON document, no heavy import."""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from sae.errors import UsageError, UserError
from workbench.cli import VERBS, app, available

runner = CliRunner()


def test_every_verb_of_the_table_exists():
    assert available() == list(VERBS)


@pytest.mark.parametrize("verb", available())
def test_help_teaches(verb):
    result = runner.invoke(app, [verb, "--help"])
    assert result.exit_code == 0 and "--json" in result.output and len(result.output) > 300


def test_what_takes_long_on_the_way_is_shown_and_what_is_short_is_not(capsys, monkeypatch):
    """Every verb shows steps that nobody hands a bar to, such as cutting text; see workbench.run.long_step."""
    from workbench.cli import common
    from workbench.run import long_step

    @common.verb
    def patient(seconds, json_output=False, debug=False):
        with long_step("cutting text", 2, " characters") as shown:
            for _ in range(2):
                time.sleep(seconds / 2)
                shown.update()

    monkeypatch.setattr(common, "_deep_bar", functools.partial(common.bar, delay=0.2))
    patient(0.0)
    assert capsys.readouterr().err == ""
    patient(0.5)
    assert "cutting text: 100%" in capsys.readouterr().err
    with long_step("cutting text", 1) as shown:  # outside a verb nobody is told
        time.sleep(0.3)
        shown.update()
    assert capsys.readouterr().err == ""


def test_every_verb_prints_its_errors_as_documents_too():
    """By one decorator, which every verb has."""
    for command in app.registered_commands:
        inner = inspect.unwrap(command.callback)
        assert inner is not command.callback and "json_output" in inspect.signature(inner).parameters, command.name


@pytest.mark.parametrize("verb", available())
def test_what_no_verb_takes_is_a_document_too(verb):
    result = runner.invoke(app, [verb, "--json", "--no-such-option"])
    assert result.exit_code == 2 and "No such option" in result.stderr
    document = json.loads(result.stdout)
    assert document["exit_code"] == 2 and document["error"].startswith("No such option: --no-such-option")
    assert runner.invoke(app, [verb, "--no-such-option"]).stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--json"], "Missing argument"),
        (["inf", "--json"], "No such command 'inf'"),
        (["docs", "--port", "x", "--json"], "Invalid value for '--port'"),
        (["--nope", "info", "--json"], "No such option: --nope"),
    ],
)
def test_every_misuse_is_one_document(words, said):
    result = runner.invoke(app, words)
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit_code"] == 2
    assert document["error"].startswith(said) and "\n" not in document["error"]


def test_a_word_after_two_dashes_asks_for_nothing():
    assert runner.invoke(app, ["info", "--nope", "--", "--json"]).stdout == ""


STOPPED = "interrupted; run the same command again to go on where it stopped."


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such file"), 1, "no such file"),
        (UsageError("no such verb"), 2, "no such verb"),
        (KeyboardInterrupt(), 130, STOPPED),
    ],
)
def test_an_error_is_one_line_and_with_json_one_document(capsys, error, code, line):
    from workbench.cli import common

    @common.verb
    def failing(json_output=False, debug=False):
        print("what a library prints")
        raise error

    for asked in (False, True):
        with pytest.raises(typer.Exit) as ended:
            failing(json_output=asked)
        out, err = capsys.readouterr()
        assert ended.value.exit_code == code and line in err
        assert not asked or json.loads(out) == {"error": line, "exit_code": code}


def test_misuse_is_told_from_other_errors_of_typer():
    from workbench.cli import _Misuse

    assert _Misuse.__name__ == "UsageError" and issubclass(typer.BadParameter, _Misuse)


@pytest.mark.parametrize(("error", "line"), [(KeyError("x"), "KeyError: 'x'"), (AssertionError(), "AssertionError")])
def test_a_fault_of_the_program_keeps_its_traceback_and_is_a_document_too(capsys, error, line):
    from workbench.cli import common

    @common.verb
    def failing(json_output=False, debug=False):
        raise error

    for asked in (False, True):
        with pytest.raises(type(error)) as ended:
            failing(json_output=asked)
        out, _ = capsys.readouterr()
        assert ended.value is error
        assert json.loads(out) == {"error": line, "exit_code": 1} if asked else out == ""

    @common.verb
    def ending(json_output=False, debug=False):
        raise typer.Exit(143)

    with pytest.raises(typer.Exit) as ended:
        ending(json_output=True)
    assert ended.value.exit_code == 143 and capsys.readouterr().out == ""


def test_misuse_exits_2():
    assert runner.invoke(app, ["inf"]).exit_code == 2
    assert runner.invoke(app, ["info", "--nope"]).exit_code == 2


def test_info_shows_estimates_and_says_nothing_where_nothing_is(tmp_path):
    from workbench.workspace import Workspace

    numbers = {"ev": {"value": 0.625, "low": 0.5, "high": 0.75, "n": 9}, "missing": {}}
    with Workspace(tmp_path / "ws").create("evaluations", "d", command="workbench evaluate d", numbers=numbers):
        pass
    lines = runner.invoke(app, ["info", str(tmp_path / "ws")]).output.splitlines()
    assert lines[1].split()[2:5] == ["explained", "variance", "L0"] and lines[2].split()[2:4] == ["0.625", "–"]


def test_info_on_an_empty_and_a_missing_workspace(tmp_path):
    from workbench.workspace import Workspace

    Workspace(tmp_path / "ws")
    result = runner.invoke(app, ["info", str(tmp_path / "ws"), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout) == {"workspace": "ws"}
    assert "workbench demo" in runner.invoke(app, ["info", str(tmp_path / "ws")]).output
    missing = runner.invoke(app, ["info", str(tmp_path / "none"), "--json"])
    assert missing.exit_code == 1 and "does not exist" in missing.stderr
    document = json.loads(missing.stdout)
    assert document["exit_code"] == 1 and f"error: {document['error']}" in " ".join(missing.stderr.split())


def test_importing_workbench_is_cheap():
    code = (
        "import sys, workbench, workbench.cli; print([m for m in ('torch', 'h5py', 'streamlit', 'transformers',"
        " 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_recipe_not_found_names_nearest():
    from sae.errors import MissingError
    from workbench.config import find_recipe

    with pytest.raises(MissingError, match="mini-train"):
        find_recipe("mini-trian")


def test_a_model_is_offered_a_recipe_of_its_own_or_none():
    from workbench.config import bundled_recipe

    assert bundled_recipe("evolve", "mini-pythia") == "mini-evolve"
    assert bundled_recipe("evolve", "smollm2-135m") is None and bundled_recipe("evolve", "mini-mamba") is None
