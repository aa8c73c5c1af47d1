from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.serving.queue import FairQueue, QueueClosed, QueueFull


@dataclass(frozen=True)
class Item:
    owner: str
    number: int


def drained(queue: FairQueue[Item]) -> list[str]:
    return [f"{item.owner}{item.number}" for item in (queue.get() for _ in range(len(queue)))]


def filled(text: str, limit: int = 99) -> FairQueue[Item]:
    queue = FairQueue[Item](limit)
    for number, owner in enumerate(text):
        queue.put(Item(owner, number))
    return queue


def test_owners_take_turns():
    assert drained(filled("aaabbc")) == ["a0", "b3", "c5", "a1", "b4", "a2"]


def test_the_line_is_bounded():
    queue = filled("ab", limit=2)
    with pytest.raises(QueueFull):
        queue.put(Item("c", 9))
    queue.get()
    queue.put(Item("c", 9))
    assert drained(queue) == ["b1", "c9"]


def test_what_is_taken_out_is_not_served():
    queue = filled("aab")
    assert queue.remove(Item("a", 0)) and not queue.remove(Item("a", 0)) and not queue.remove(Item("x", 0))
    assert drained(queue) == ["a1", "b2"]
    assert queue.peek() is None


def test_a_closed_line_gives_what_it_has_and_then_ends():
    queue = filled("a")
    queue.close()
    with pytest.raises(QueueClosed):
        queue.put(Item("b", 1))
    assert queue.get().owner == "a"
    with pytest.raises(QueueClosed):
        queue.get()


def test_waiting_ends_with_an_item():
    queue = FairQueue[Item](4)
    threading.Timer(0.05, queue.put, [Item("a", 1)]).start()
    assert queue.get() == Item("a", 1)


@given(st.text(alphabet="abcd", max_size=30), st.sampled_from("abcde"))
def test_what_is_ahead_is_what_comes_before(text: str, newcomer: str):
    queue = filled(text)
    ahead = {f"{item.owner}{item.number}" for item in queue.ahead_of(newcomer)}
    queue.put(Item(newcomer, 99))
    order = drained(queue)
    before = order[: order.index(f"{newcomer}99")]
    assert set(before) <= ahead and len(ahead) - len(before) <= 3, "at most one more of each other owner"


@given(st.text(alphabet="abcd", max_size=30))
def test_nothing_is_lost_and_each_keeps_their_order(text: str):
    order = drained(filled(text))
    assert sorted(order) == sorted(f"{owner}{number}" for number, owner in enumerate(text))
    for owner in set(text):
        numbers = [int(name[1:]) for name in order if name[0] == owner]
        assert numbers == sorted(numbers)
