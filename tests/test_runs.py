"""The run folder: what damage its files survive, and what is left of them where something new cannot be written."""

import pytest

from indm import runs

NO_LINES = {
    "deep": b"[" * 100_000,
    "long number": b'{"step": 5, "from": ' + b"1" * 5000 + b"}",
    "long step": b'{"step": ' + b"1" * 5000 + b"}",
    "text for a count": b'{"step": 5, "rollback": "x"}',
    "nothing for a count": b'{"step": 5, "rollback": null}',
    "half a step": b'{"step": 5.5}',
}


@pytest.mark.parametrize("damage", NO_LINES.values(), ids=NO_LINES)
def test_what_cannot_be_a_line_of_the_metrics_is_left_out(tmp_path, damage):
    """Whatever it is: a run with such a line in its log must be able to go on."""
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 4, "rollback": 1}\n' + damage + b'\n{"step": 9}\n')
    assert runs.read_metrics(tmp_path) == [{"step": 4, "rollback": 1}, {"step": 9}]
