import subprocess
import sys
from concurrent.futures import Future

import pytest

from helpers import ROOT
from vitexplain.parallel import HAS_SERVER, in_order

ASK_A_WORKER = """
import os, sys
sys.path.insert(0, {root!r})
from concurrent.futures import ProcessPoolExecutor
from vitexplain.parallel import begin
before = dict(os.environ)
context = begin()
assert dict(os.environ) == before
with ProcessPoolExecutor(1, context) as pool:
    print(pool.submit(eval, "'vitexplain.runs.workers' in __import__('sys').modules").result())
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SERVER, reason="workers are spawned here")
def test_workers_start_with_everything_loaded(tmp_path):
    """Also where the command is run from another folder."""
    code = ASK_A_WORKER.format(root=str(ROOT))
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.stdout == "True\n", asked.stderr


def pairs(count, submitted):
    for number in range(count):
        submitted.append(number)
        yield number, Future()


def test_some_are_worked_on_meanwhile():
    submitted = []
    given = in_order(pairs(9, submitted), ahead=3)
    assert next(given)[0] == 0
    assert submitted == [0, 1, 2, 3]
    assert [number for number, _ in given] == list(range(1, 9))


def test_what_is_done_need_not_wait_for_others():
    first, second, last = Future(), Future(), Future()
    first.set_result(None)
    last.set_result(None)
    taken = []

    def submit():
        for number, future in enumerate([first, second, None, last]):
            taken.append(number)
            yield number, future

    given = in_order(submit(), ahead=9, prompt=True)
    assert (next(given), taken) == ((0, first), [0])
    assert [number for number, _ in given] == [1, 2, 3]  # in order: the second holds them up
    assert taken == [0, 1, 2, 3]
