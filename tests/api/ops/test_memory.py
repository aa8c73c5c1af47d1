from __future__ import annotations

import subprocess
import sys

import pytest

from api.ops.serve import MALLOC_SETTINGS

CODE = """
import gc, threading, time
import psutil
from api.ops.memory import trim_heap

def resident():
    return psutil.Process().memory_info().rss / 1e6

before = resident()
pieces = [bytes(3000) for _ in range(50_000)]
kept = pieces[::50]
del pieces
gc.collect()
scattered = resident() - before
ended = threading.Event()
thread = threading.Thread(target=trim_heap, args=[ended], kwargs={"every_s": 0.01})
thread.start()
until = time.monotonic() + 20
while resident() - before > scattered / 4 and time.monotonic() < until:
    time.sleep(0.05)
ended.set()
thread.join()
print(scattered, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_pages_between_others_are_given_back():
    """A fiftieth of what was taken is kept, all over the heap; freeing the rest gives nearly nothing back by itself."""
    done = subprocess.run([sys.executable, "-c", CODE], env=MALLOC_SETTINGS, capture_output=True, text=True, check=True)
    scattered, left = map(float, done.stdout.split())
    assert scattered > 100
    assert left < scattered / 4
