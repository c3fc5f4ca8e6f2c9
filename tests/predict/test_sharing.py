"""Two processes that predict together, as a launcher starts them."""

import io

import pandas as pd
import pytest
from conftest import run_two_processes

from finetune.cli import main

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from finetune.cli import main
from finetune.predict import rows

rows.CHUNK = 4
main(sys.argv[1:])
"""


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_two_processes_write_the_bytes_of_one(trained, write_run, image_folder, monkeypatch, tmp_path, ending):
    monkeypatch.chdir(tmp_path)
    run = write_run(trained(flips=True), tmp_path / "run")
    image_folder(tmp_path / "images", {"a": 9, "b": 8})
    (tmp_path / "images" / "a" / "bad.png").write_bytes(b"no image")
    (tmp_path / "script.py").write_text(SCRIPT)
    run_two_processes(tmp_path / "script.py", "predict", run, "images", "--output", f"two.{ending}")
    monkeypatch.setattr("finetune.predict.rows.CHUNK", 4)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), "images", "--output", f"one.{ending}"])
    assert ended.value.code == 3
    assert (tmp_path / f"two.{ending}").read_bytes() == (tmp_path / f"one.{ending}").read_bytes()
    assert not (tmp_path / f"two.{ending}.part").exists()


def test_two_processes_share_the_paths_from_standard_input_and_embed_them(
    trained, write_run, image_folder, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    run = write_run(trained(), tmp_path / "run")
    paths = sorted(map(str, image_folder(tmp_path / "images", {"a": 6, "b": 7}).rglob("*.*")))
    listed = "\n".join(paths)
    (tmp_path / "script.py").write_text(
        SCRIPT.replace("import sys", f"import io, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO({listed.encode()!r}))")
    )
    run_two_processes(tmp_path / "script.py", "embed", run, "-", "--output", "two.parquet")
    monkeypatch.setattr("finetune.predict.rows.CHUNK", 4)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    with pytest.raises(SystemExit):
        main(["embed", str(run), "-", "--output", "one.parquet"])
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert pd.read_parquet(tmp_path / "two.parquet")["path"].tolist() == paths
