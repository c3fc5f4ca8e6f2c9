"""Damaged tables, recipes, plans and files of runs are read or refused with a sentence, whatever they hold."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.fuzz_inputs import VALUES, YAML_TEXTS, damaged_bytes, damaged_value, refuses
from finetune.data import DataIdentity
from finetune.data.table import load_table
from finetune.decide.choice import Choice
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.recipe import TableColumns, load_recipe, parse_assignment
from finetune.runs.live import read_rows, read_state

STORED = Path(__file__).parent / "stored"

SOME = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

TEXTS = st.text(st.characters(codec=None), max_size=40)
"""Texts of any characters, also of surrogates, which UTF-8 cannot encode."""

PLAIN = st.recursive(
    st.sampled_from(VALUES) | st.floats() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
"""What JSON can hold."""

TABLE = b"path,label,split\na/1.png,a,train\na/2.png,a,test\nb/1.png,b,train\n"


@SOME
@given(seed=st.integers(0, 2**32), ending=st.sampled_from([".csv", ".tsv", ".parquet"]))
def test_a_damaged_table_is_read_or_refused(tmp_path, seed, ending):
    path = tmp_path / f"table{ending}"
    path.write_bytes(damaged_bytes(TABLE, random.Random(seed)))
    refuses(lambda: load_table(path, TableColumns()))


@SOME
@given(content=PLAIN)
def test_a_recipe_of_anything_is_read_or_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(json.dumps({"data": "x", "a": content}).encode("utf-8", "backslashreplace"))
    assert refuses(lambda: load_recipe(path))


@pytest.mark.parametrize("number", range(len(YAML_TEXTS)))
def test_a_recipe_with_aliases_tags_or_other_kinds_of_keys_is_read_or_refused(tmp_path, number):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML_TEXTS[number])
    is_refused = refuses(lambda: load_recipe(path))
    assert is_refused or not any(sign in YAML_TEXTS[number] for sign in ("*", "!!"))


@SOME
@given(key=TEXTS, value=TEXTS | st.sampled_from(YAML_TEXTS))
def test_an_assignment_of_anything_is_read_or_refused(key, value):
    refuses(lambda: parse_assignment(f"{key}={value}"))


@SOME
@given(seed=st.integers(0, 2**32), kind=st.sampled_from([Plan, Evidence]))
def test_a_plan_and_evidence_with_one_wrong_value_are_read_or_refused(tmp_path, seed, kind):
    stored = json.loads((STORED / f"{kind.__name__.lower()}.json").read_text())
    text = json.dumps(damaged_value(stored, random.Random(seed)), ensure_ascii=False)
    (tmp_path / "value.json").write_bytes(text.encode("utf-8", "backslashreplace"))
    refuses(lambda: kind.load(tmp_path / "value.json"))


@SOME
@given(content=PLAIN, kind=st.sampled_from([Plan, Evidence, Choice, DataIdentity]))
def test_files_of_anything_are_refused(tmp_path, content, kind):
    for name in ("value.json", "state.json", "history.jsonl"):
        (tmp_path / name).write_bytes(json.dumps(content).encode() + b"\n")
    assert refuses(lambda: kind.load(tmp_path / "value.json"))
    assert refuses(lambda: read_state(tmp_path))
    refuses(lambda: read_rows(tmp_path))
