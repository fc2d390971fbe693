"""Labels: rules on planted latents, and a language model played by a local endpoint that misbehaves in every way it
can.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sae.errors import UsageError
from sae.files import write_json
from workbench.analysis.explain import language_model, prompts, run
from workbench.analysis.explain.endpoint import Endpoint, EndpointConfig, EndpointError
from workbench.analysis.explain.labels import NotALabel, check_label
from workbench.analysis.explain.rules import label_by_rule, say_rule
from workbench.analysis.explain.surface import SURFACE, surface
from workbench.analysis.latents.encoded import from_rows
from workbench.dictionaries.reference import DictionaryRef
from workbench.provenance import Input, write_manifest
from workbench.results.records import explanation_folders
from workbench.workspace import Workspace

VOCAB = ["<bos>", "def", " self", "(", ")", "\n", "    ", '"', "Big", "42", " cat", "ing", "#", ",", " dog", " tree"]
N_SEQ, CTX = 240, 50


@pytest.fixture(scope="module")
def codes():
    """Latents: 0 two tokens, 1 a previous token, 2 a pair, 3 a token inside brackets, 4 repeated pairs, 5 noise, 6
    rare, 7 digits weakly everywhere, 8 a next token.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(1, len(VOCAB), (N_SEQ, CTX))
    before = np.concatenate([np.zeros((N_SEQ, 1), int), ids[:, :-1]], axis=1)
    seq, pos = np.repeat(np.arange(N_SEQ), CTX), np.tile(np.arange(1, CTX + 1), N_SEQ)
    marks = surface(ids.reshape(-1), seq, pos, VOCAB)
    shaped = {k: v.reshape(N_SEQ, CTX) for k, v in marks.items()}
    dense = np.zeros((N_SEQ, CTX, 9), np.float32)
    dense[..., 0] = 5 * np.isin(ids, [2, 10])
    dense[..., 1] = 3 * (before == 1)
    dense[..., 2] = 4 * ((before == 3) & (ids == 10))
    dense[..., 3] = 2 * ((ids == 14) & shaped["in_bracket"])
    dense[..., 4] = 2 * shaped["repeat_pair"]
    dense[..., 5] = (rng.random(ids.shape) < 0.05) * rng.random(ids.shape)
    dense[0, 4, 6] = 1
    dense[:, :-1, 8] = 3 * (ids[:, 1:] == 13)
    dense[..., 7] = np.where(ids == 9, 8.0, 0.5)
    flat = dense.reshape(-1, 9)
    return from_rows(9, ids.reshape(-1), seq, pos, flat, np.tile(np.arange(9), (len(flat), 1)))


def test_rules_find_what_was_planted(codes):
    t = label_by_rule(codes, VOCAB).set_index("latent")
    assert t.loc[0, "label"] in ("“␣self” or “␣cat”", "“␣cat” or “␣self”")
    assert t.loc[1, "label"] == "after “def”"
    assert t.loc[2, "label"] == "“␣cat” after “(”"
    assert t.loc[3, "label"] == "“␣dog”, inside brackets"
    assert t.loc[4, "label"] == f"any token {SURFACE['repeat_pair']}"
    assert t.loc[7, "label"] == "“42”", "weak firings everywhere do not hide what it fires strongly on"
    assert t.loc[8, "label"] == "before “,”"
    assert (t.loc[[0, 1, 2, 3, 4, 7, 8], ["precision", "recall"]] == 1).all().all()
    assert t.loc[[5, 6], "label"].isna().all() and t.loc[5, "f1"] < 0.3 and np.isnan(t.loc[6, "f1"])
    assert all(len(str(x).split()) <= 25 for x in t["best_rule"].dropna())


def test_rules_are_said_with_spaces_shown_and_the_edge_named():
    pairs = np.array([3 * 17 + 10, 16 * 17 + 5])
    assert say_rule("pair", (0, 1), "", VOCAB, pairs) == "“␣cat” after “(” or “↵” after the edge of the text"
    assert say_rule("next", (13,), "in_string", VOCAB, pairs) == "before “,”, inside a string"


def test_rule_numbers_are_counts_on_the_odd_sequences(codes):
    t = label_by_rule(codes, VOCAB).set_index("latent")
    odd = codes.seq % 2 == 1
    holds = odd & np.isin(codes.ids, [9])
    rows, _ = codes.of(7)
    assert t.loc[7, "n_rule"] == holds.sum() == t.loc[7, "n_strong"]
    assert t.loc[7, "n_fired"] == odd[rows].sum() and t.loc[7, "n_tokens"] == odd.sum()
    noise_rows, noise_values = codes.of(5)
    strong = noise_rows[(noise_values >= 0.25 * noise_values.max()) & odd[noise_rows]]
    assert t.loc[5, "n_strong"] == len(strong)


def test_a_rule_that_only_fits_by_chance_does_not_survive_the_other_half():
    """Two hundred random latents: choosing the best of thousands of rules looks good on one half; the
    table must not.
    """
    rng = np.random.default_rng(1)
    ids, seq, pos = rng.integers(1, 16, 1000), np.repeat(np.arange(20), 50), np.tile(np.arange(1, 51), 20)
    dense = (rng.random((1000, 200)) < 0.04).astype(np.float32)
    t = label_by_rule(from_rows(200, ids, seq, pos, dense, np.tile(np.arange(200), (1000, 1))), VOCAB)
    assert t["label"].isna().mean() > 0.98 and t["f1"].median() < 0.2


def test_surface_reads_text_causally():
    text = [1, 3, 10, 3, 2, 4, 7, 10, 7, 5, 6, 6, 9, 12, 10, 5, 1, 3]  # def( cat( self)" cat"⏎····42# cat⏎def(
    ids, n = np.array(text), len(text)
    got = surface(ids, np.zeros(n, int), np.arange(1, n + 1), VOCAB)
    where = {k: np.flatnonzero(v).tolist() for k, v in got.items()}
    assert where["in_bracket"] == list(range(2, 18)) and where["in_deep_bracket"] == [4, 5]
    assert where["in_string"] == [7, 8] and where["in_comment"] == [14, 15]
    assert where["line_start"] == [12, 16] and where["indent_8"] == [12, 13, 14, 15]
    assert where["repeat_pair"] == [17] and where["digit"] == [12] and where["early"] == list(range(8))
    for cut in range(1, n):
        part = surface(ids[:cut], np.zeros(cut, int), np.arange(1, cut + 1), VOCAB)
        assert all((part[k] == got[k][:cut]).all() for k in got), "a later token changed an earlier property"


@pytest.mark.parametrize(
    "answer, why",
    [
        ("", "empty"),
        ("a\nb", "2 lines"),
        ("word " * 26, "26 words"),
        ("x" * 301, "at most 25"),
        ("tab\there", "control"),
    ],
)
def test_what_is_no_label_is_refused(answer, why):
    with pytest.raises(NotALabel, match=why):
        check_label(answer)
    assert check_label('  "the word cat"\n') == "the word cat"


def test_answers_are_read_strictly():
    assert (
        prompts.read_detection("1, 3", 4) == {0, 2}
        and prompts.read_detection("None.", 4) == set()
        and prompts.read_detection("[2]", 4) == {1}
    )
    for bad in ("5", "0", "I think 1", "", "1-3"):
        with pytest.raises(prompts.UnreadableAnswer):
            prompts.read_detection(bad, 4)
    assert prompts.read_ratings("4, 2") == (4, 2)
    for bad in ("6,1", "4", "four, two"):
        with pytest.raises(prompts.UnreadableAnswer):
            prompts.read_ratings(bad)


class Server:
    """An endpoint that answers like a model that sees only the words: explains by the commonest marked token, detects
    by it.
    """

    def __init__(self):
        self.seen, self.fail, self.explain_with = [], [], None
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.seen.append((self.path, self.headers.get("Authorization"), body))
                status, headers = owner.fail.pop(0) if owner.fail else (200, {})
                reply = {
                    "model": "fake-1",
                    "choices": [{"message": {"content": owner.answer(body["messages"][-1]["content"])}}],
                }
                data = json.dumps(reply | {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()
                self.send_response(status)
                for k, v in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(k, v)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, question):
        if "What makes the unit active" in question:
            marked = re.findall(r"«(.*?)\|", question)
            return self.explain_with or max(sorted(set(marked)), key=marked.count)
        if "Rate the unit" in question:
            return "4,1"
        word = re.search(r"described as: (.*)", question)[1].strip()
        hits = [m[1] for m in re.finditer(r"^(\d+)\. (.*)$", question, re.M) if word in m[2]]
        return ", ".join(hits) or "none"


@pytest.fixture
def server():
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


def endpoint(server, **options):
    waits = []
    config = EndpointConfig(
        base_url=server.url, model="fake", requests_per_minute=6000, key_env="TEST_EXPLAIN_KEY", **options
    )
    return Endpoint(config, sleep=waits.append), waits


def reference():
    return DictionaryRef("toy", None, {}, Input(kind="dictionaries", id="toy", digest="0" * 64))


def ask(workspace, codes, server, latents, **options):
    materials = language_model.gather(codes, VOCAB, latents, window=6)
    completer, _ = endpoint(server, **options)
    return (
        run.explain_by_model(workspace, reference(), codes, materials, completer, recipe={"latents": latents}),
        materials,
    )


def test_materials_keep_the_halves_apart_and_zeros_are_zeros(codes):
    (m,) = language_model.gather(codes, VOCAB, [2], window=6)
    assert len(m.shown) == 12 and len(m.positives) == len(m.zeros) == 10
    assert all(max(e.levels) > 0 for e in m.shown + m.positives) and max(max(e.levels) for e in m.shown) == 10
    assert all(max(e.levels) == 0 and e.value == 0 for e in m.zeros)
    assert language_model.gather(codes, VOCAB, [6]) == [], "one firing cannot be explained and scored"
    assert not language_model.gather(codes, VOCAB, [7], window=6)[0].zeros, (
        "a latent that always fires has no true zeros"
    )


def test_labels_are_scored_on_held_out_text_and_everything_is_kept(codes, server, tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.setenv("TEST_EXPLAIN_KEY", "secret-key")
    workspace = Workspace(tmp_path)
    item, _ = ask(workspace, codes, server, [0, 2, 5])
    table = pd.read_parquet(item.path / "labels.parquet").set_index("latent")
    assert table.loc[2, "label"] == " cat".strip() or table.loc[2, "label"] == "cat"
    assert table.loc[2, "detection_recall"] == 1 and table.loc[2, "n_positive"] == table.loc[2, "n_zero"] == 10
    assert table.loc[2, "label_score"] == pytest.approx((1 + (1 - _share_of_zeros_with(codes, 2, "cat"))) / 2)
    assert (table["monosemanticity"] == 4).all() and (table["complexity"] == 1).all()
    assert server.seen[0][0] == "/v1/chat/completions" and server.seen[0][1] == "Bearer secret-key"
    answers = [json.loads(line) for line in (item.path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 9 and all(
        a["messages"] and a["answer"] and a["model"] == "fake-1" and a["tokens_in"] == 7 for a in answers
    )
    assert not any("secret-key" in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    before = len(server.seen)
    again, _ = ask(workspace, codes, server, [0, 2, 5])
    assert again.digest == item.digest and len(server.seen) == before, "complete results are reused"


def _share_of_zeros_with(codes, latent, word):
    (m,) = language_model.gather(codes, VOCAB, [latent], window=6)
    return np.mean([word in repr(e.plain()) for e in m.zeros])


def test_an_interrupted_run_asks_nothing_twice(codes, server, tmp_path):
    workspace = Workspace(tmp_path)
    server.fail = [(200, {})] * 4 + [(400, {})]
    with pytest.raises(EndpointError, match=r"refused the request \(HTTP 400"):
        ask(workspace, codes, server, [0, 2])
    assert not workspace.complete("explanations", "toy.fake")
    answers = tmp_path / "explanations" / "toy.fake" / "answers.jsonl"
    assert len(answers.read_text().splitlines()) == 4
    with open(answers, "ab") as f:
        f.write(b'{"key": "torn')  # a crash in the middle of a line
    asked = len(server.seen)
    item, _ = ask(workspace, codes, server, [0, 2])
    assert len(server.seen) - asked == 2 and len(answers.read_text().splitlines()) == 6
    fresh, _ = ask(Workspace(tmp_path / "other"), codes, server, [0, 2])
    assert (item.path / "labels.parquet").read_bytes() == (fresh.path / "labels.parquet").read_bytes()


def test_trains_of_thought_are_refused_and_not_scored(codes, server, tmp_path):
    import pandas as pd

    server.explain_with = "Let me think.\nThe user wants"
    item, _ = ask(Workspace(tmp_path), codes, server, [0])
    row = pd.read_parquet(item.path / "labels.parquet").iloc[0]
    assert pd.isna(row["label"]) and "2 lines" in row["refused"] and np.isnan(row["label_score"])
    assert item.manifest.numbers["n_refused"] == 1 and item.manifest.numbers["mean_score"] is None


def test_busy_endpoints_are_waited_for_as_long_as_they_say(codes, server):
    completer, waits = endpoint(server, retries=3)
    server.fail = [(429, {"Retry-After": "7"}), (503, {})]
    assert completer.complete([{"role": "user", "content": "Rate the unit"}], max_tokens=5).text == "4,1"
    assert 7 in waits and 2.0 in waits and len(server.seen) == 3
    server.fail = [(500, {})] * 9
    with pytest.raises(EndpointError, match="after 4 attempts"):
        completer.complete([{"role": "user", "content": "x"}], max_tokens=5)
    dead = Endpoint(EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=1), sleep=lambda s: None)
    with pytest.raises(EndpointError, match="did not answer after 2 attempts"):
        dead.complete([{"role": "user", "content": "x"}], max_tokens=5)


def test_requests_keep_their_distance(server):
    now = [0.0]
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    completer = Endpoint(
        EndpointConfig(base_url=server.url, model="m", requests_per_minute=30), clock=lambda: now[0], sleep=sleep
    )
    for _ in range(3):
        completer.complete([{"role": "user", "content": "Rate the unit"}], max_tokens=5)
    assert waits == [2.0, 2.0]


def test_the_estimate_bounds_what_is_asked(codes, server):
    materials = language_model.gather(codes, VOCAB, [0, 2, 3], window=6)
    config = EndpointConfig(base_url=server.url, model="fake", usd_per_million_in=1.0, usd_per_million_out=2.0)
    cost = run.cost_of(materials, config)
    assert (
        cost.requests == 9
        and cost.minutes == 9 / 60
        and cost.usd == pytest.approx((cost.tokens_in + 2 * cost.tokens_out) / 1e6)
    )
    completer, _ = endpoint(server)
    for m in materials:
        for kind, messages in language_model.questions(m):
            completer.complete(messages, max_tokens=prompts.MAX_TOKENS[kind])
    characters = sum(len(m["content"]) for _, _, body in server.seen for m in body["messages"])
    assert cost.tokens_in >= characters / 4
    assert run.cost_of(materials, config.model_copy(update={"usd_per_million_in": None})).usd is None


def test_an_endpoint_that_talks_nonsense_is_quoted(server, monkeypatch):
    completer, _ = endpoint(server)
    monkeypatch.setattr(server, "answer", lambda q: None)
    with pytest.raises(EndpointError, match="no chat completion"):
        completer.complete([{"role": "user", "content": "x"}], max_tokens=5)


def test_latents_that_do_not_exist_are_named(codes):
    with pytest.raises(UsageError, match=r"latent 99 .*0–8"):
        run.choose_latents(codes, [1, 99], 5, 0)
    assert run.choose_latents(codes, None, 3, 0) == run.choose_latents(codes, None, 3, 0)


def test_labels_reach_the_records_by_key(tmp_path):
    import pandas as pd

    from workbench.results.records import _with_labels

    folder = tmp_path / "latents" / "d"
    folder.mkdir(parents=True)
    for name, rows in {
        "rules": [(0, "rule zero", 0.9), (2, "rule two", 0.8)],
        "a-model": [(2, "model two", 0.7)],
    }.items():
        place = tmp_path / "explanations" / f"d.{name}"
        place.mkdir(parents=True)
        labels = pd.DataFrame(rows[::-1], columns=["latent", "label", "label_score"])
        labels.to_parquet(place / "labels.parquet")
        write_manifest(place, "explanations", place.name, metadata={"dictionary": "d", "explainer": name})
    other = tmp_path / "explanations" / "d.x.rules"  # of the dictionary "d.x", not of "d"
    other.mkdir()
    write_manifest(other, "explanations", other.name, metadata={"dictionary": "d.x", "explainer": "rules"})
    half_done = tmp_path / "explanations" / "d.half"
    half_done.mkdir()
    write_json(half_done / "labels.json", {})
    assert [p.name for p in explanation_folders(folder)] == ["d.rules", "d.a-model"]
    table = _with_labels(pd.DataFrame({"latent": [2, 1, 0]}), folder)
    assert table["label"].tolist()[0] == "model two" and pd.isna(table["label"][1]) and table["label"][2] == "rule zero"
    assert table["label_source"].tolist()[0] == "a-model" and table["label_score"].tolist()[0] == 0.7
