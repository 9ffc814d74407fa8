"""The heap whose entries can be removed."""

import random
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from luma_poll._tasks.heap import Heap

operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 5)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
        st.tuples(st.just("pop"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(operations)
def test_a_heap_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    """Whatever is pushed, removed (also twice) and popped, in any order."""
    heap: Heap[int] = Heap()
    entries: list[Any] = []
    model: list[tuple[int, int]] = []  # key and item, in the order in which they came
    for number, (step, value) in enumerate(steps):
        if step == "push":
            entries.append((heap.push(value, number), value, number))
            model.append((value, number))
        elif step == "remove" and entries:
            entry, key, item = entries[value % len(entries)]
            heap.remove(entry)
            model = [each for each in model if each != (key, item)]
        elif step == "pop":
            popped = list(heap.pop_up_to(value))
            assert popped == [item for key, item in sorted(model) if key <= value]
            model = [each for each in model if each[0] > value]
        assert heap.first() == (min(model)[1] if model else None)
        assert sorted(heap) == sorted(item for _, item in model)
        assert len(heap) == len(model)


def test_removed_entries_take_no_memory() -> None:
    """Thousands come and leave behind one that stays."""
    heap: Heap[int] = Heap()
    heap.push(-1, -1)
    for number in range(5000):
        heap.remove(heap.push(random.random(), number))
    assert len(heap._heap) < 5
    assert heap.first() == -1
