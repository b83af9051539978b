"""A table of records: what is written comes back, a row is made once, and several processes may
write.
"""

import multiprocessing

import numpy as np
import pytest

from research.records import Records

RECORD = {
    "setting": {"train.lr": 1e-3, "flow": "coupling"}, "nelbo": [1.5, None], "words": "1", "none": None, "empty": "",
    "curve": {"10": {"0.9": 2.0}}, "text": 'a "b", c\nd', "nelbo_nats": [83.1234, -80.25], "nll_nats": [1e-3],
}  # fmt: skip


def test_what_is_written_comes_back(tmp_path):
    table = Records(tmp_path / "table.csv")
    table.at(data="digits", seed=2).add(RECORD)
    table.at(data="digits", seed=1).add({"nelbo": [1.0, 0.1]})
    one, two = table.at(data="digits").rows()
    assert one == {"data": "digits", "seed": 1, "nelbo": [1.0, 0.1]}, (
        "what a row lacks is not in it"
    )
    for column in ("nelbo_nats", "nll_nats"):
        np.testing.assert_allclose(two.pop(column), RECORD[column], rtol=1e-6)
    assert two == {"data": "digits", "seed": 2} | {
        k: v for k, v in RECORD.items() if not k.endswith("_nats")
    }
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4, (
        "a line a row, but for the one break of a text"
    )


def test_a_row_is_made_once_and_found_by_any_of_its_columns(tmp_path):
    table, made = Records(tmp_path / "table.csv"), []

    def make():
        made.append(len(made))
        return {"valid": len(made), "setting": {"b": 2, "a": 1}}

    cell = table.at(side="indm", setting={"a": 1, "b": 2})
    assert cell.kept(make) == cell.kept(make) and made == [0]
    assert table.at(side="linear").rows() == [] == table.at(width=3).rows()
    assert [row["valid"] for row in table.at(side="indm").rows()] == [1]
    cell.add({"valid": 7})
    assert table.rows() == [{"side": "indm", "setting": {"a": 1, "b": 2}, "valid": 7}]
    with pytest.raises(ValueError, match="JSON"):
        cell.add({"valid": float("nan")})


def add(path, seed):
    for part in range(5):
        Records(path).at(seed=seed, part=part).add({"test_bits": [seed + part / 10]})


def test_processes_that_write_into_one_table_lose_nothing(tmp_path):
    path, context = tmp_path / "table.csv", multiprocessing.get_context("fork")
    writers = [context.Process(target=add, args=(path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = Records(path).rows()
    assert [(row["seed"], row["part"]) for row in rows] == [
        (seed, part) for seed in range(3) for part in range(5)
    ]
    np.testing.assert_allclose(
        [row["test_bits"][0] for row in rows], [s + p / 10 for s in range(3) for p in range(5)]
    )
