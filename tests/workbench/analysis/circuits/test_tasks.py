"""Prompt sets: aligned, single-match, reproducible, extendable by a TOML file, and clear about what cannot be
expressed.
"""

import numpy as np
import pytest

from sae.errors import ConfigError, MissingError, UsageError
from workbench.analysis.circuits.tasks import bundled_tasks, make_prompts, read_task
from workbench.config import data_dir
from workbench.models.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


@pytest.mark.parametrize("match", [1, 4])
def test_induction_prompts_have_one_match_and_differ_at_b_alone(match: int) -> None:
    task = read_task("induction").model_copy(update={"match": match})
    p = make_prompts(task, 50, vocab_size=80, length=40)
    rows, A, B = np.arange(50), p.marks["A"], p.marks["B"]
    assert (B == A + 1).all() and (A < 20).all() and (p.clean[:, 0] == 0).all()
    assert (p.clean[rows, B] == p.answer).all() and (p.corrupt[rows, B] == p.wrong).all()
    assert ((p.clean != p.corrupt).sum(1) == 1).all()
    for k in range(match):
        assert (p.clean[:, -1 - k] == p.clean[rows, A - k]).all()
    assert all(len(set(row[: 40 - match])) == 40 - match for row in p.clean)
    assert all(len(set(row)) == 40 for row in p.control)
    assert not (p.wrong[:, None] == p.clean).any()
    again = make_prompts(task, 50, vocab_size=80, length=40)
    assert (again.clean == p.clean).all() and (
        make_prompts(task, 50, vocab_size=80, length=40, seed=1).clean != p.clean
    ).any()


def test_bundled_text_tasks_align_in_the_bundled_tokenizer(tokenizer) -> None:
    assert {"induction", "agreement", "ioi"} <= set(bundled_tasks())
    p = make_prompts(read_task("agreement"), 16, vocab_size=512, tokenizer=tokenizer)
    text = tokenizer.batch_decode(p.clean)
    assert len(p) == 16 and all(t.startswith("<|bos|>The ") for t in text) and len(set(text)) > 12
    assert (p.answer != p.wrong).all()
    rows = np.arange(16)
    assert (p.clean[rows, p.marks["attractor"]] == p.corrupt[rows, p.marks["attractor"]]).all()
    assert (p.clean != p.corrupt).any(1).all()
    q = make_prompts(read_task("ioi"), 16, vocab_size=512, tokenizer=tokenizer)
    for row, at in zip(q.clean, q.marks["again"], strict=True):  # the subject's name occurs twice and ends at the mark
        name = tokenizer.decode(row[: at + 1]).split(" ")[-1]
        assert tokenizer.decode(row).count(name) == 2


def test_labels_name_positions() -> None:
    p = make_prompts(read_task("induction"), 5, vocab_size=80, length=20)
    assert (p.position("B-1") == p.marks["A"]).all() and (p.position("last") == 19).all()
    assert (p.position("last+1") == -1).all()
    with pytest.raises(UsageError, match=r"'C'.*A, B, last"):
        p.position("C")
    with pytest.raises(UsageError, match=r"B\+x"):
        p.position("B+x")


def test_a_users_own_task(tmp_path, tokenizer) -> None:
    path = tmp_path / "capitals.toml"
    path.write_text(
        'name = "capitals"\nabout = "own"\nkind = "pairs"\n'
        + "".join(
            f'[[pairs]]\nclean = "def f{i}(a):"\ncorrupt = "def f{i}(b):"\nanswer = " a"\nwrong = " b"\n'
            for i in range(8)
        )
    )
    p = make_prompts(read_task(path), 64, vocab_size=512, tokenizer=tokenizer)
    assert len(p) >= 8 and p.task == "capitals"
    path.write_text(path.read_text() + 'answr = " c"\n')
    with pytest.raises(ConfigError, match="answer"):
        read_task(path)


def test_what_cannot_be_expressed_is_said(tokenizer) -> None:
    with pytest.raises(MissingError, match="induction"):
        read_task("inductoin")
    with pytest.raises(UsageError, match="no tokenizer"):
        make_prompts(read_task("ioi"), 8, vocab_size=50)
    with pytest.raises(UsageError, match="64 distinct tokens"):
        make_prompts(read_task("induction"), 8, vocab_size=50)
    same = read_task("agreement").model_copy(update={"wrong": " is"})
    with pytest.raises(UsageError, match="only 0 of one length"):
        make_prompts(same, 8, vocab_size=512, tokenizer=tokenizer)


def test_mirrored_prompts_are_balanced_so_that_a_fixed_answer_scores_one_half():
    from workbench.models.load import load_tokenizer

    prompts = make_prompts(read_task("agreement"), 40, vocab_size=1024, tokenizer=load_tokenizer("mini-pythia"))
    assert len(prompts) == 40
    kinds, counts = np.unique(prompts.answer, return_counts=True)
    assert len(kinds) == 2 and counts.tolist() == [20, 20]
    assert set(map(tuple, np.stack([prompts.answer, prompts.wrong], 1))) == {tuple(kinds), tuple(kinds[::-1])}
