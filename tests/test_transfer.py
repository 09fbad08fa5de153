"""Copies arrive as they were sent, no more than fit are on their way, and a thread's failure is everybody's."""

import threading
import time

import numpy as np
import pytest
import torch

from pipeline.transfer import HostCopies, Stopwatch, in_background, prefetched

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_copies_arrive_as_they_were_sent_whatever_is_computed_since(device):
    copies, sent = HostCopies(device, depth=3), []
    for number in range(12):
        values = torch.full((1000, 10), float(number), device=device)
        sent.append(copies.send({"values": values, "ids": torch.arange(5, device=device) + number}))
        values.mul_(1)  # on the current stream, behind the copy
        if len(sent) == 3:
            arrays = sent.pop(0)()
            assert (arrays["values"] == number - 2).all()
            assert np.array_equal(arrays["ids"], np.arange(5) + number - 2)


@pytest.mark.parametrize("device", DEVICES)
def test_sending_waits_while_all_buffers_are_taken(device):
    copies = HostCopies(device, depth=2)
    first = copies.send({"a": torch.zeros(3, device=device)})
    copies.send({"a": torch.ones(3, device=device)})
    third = threading.Thread(target=lambda: copies.send({"a": torch.ones(3, device=device)}), daemon=True)
    third.start()
    third.join(0.05)
    assert third.is_alive(), "nothing has been taken yet"
    assert (first()["a"] == 0).all()
    third.join(10)
    assert not third.is_alive()


@pytest.mark.parametrize("device", DEVICES)
def test_a_stopwatch_adds_up(device):
    watch = Stopwatch(device)
    assert watch.seconds == 0
    for _ in range(2):
        with watch:
            time.sleep(0.002) if device == CPU else torch.randn(2000, 2000, device=device) @ torch.randn(
                2000, 2000, device=device
            )
    assert watch.seconds > 0


def test_items_made_in_the_background_come_in_order_one_ahead():
    made = []

    def make():
        for number in range(5):
            made.append(number)
            yield number

    seen = []
    for item in in_background(make()):
        seen.append(item)
        time.sleep(0.01)
        assert len(made) <= item + 3, "one is used, one waits, one is being made"
    assert seen == list(range(5))


def test_what_making_an_item_raised_is_raised_where_it_is_used():
    def make():
        yield 1
        raise KeyError("no such row")

    items = in_background(make())
    assert next(items) == 1
    with pytest.raises(KeyError, match="no such row"):
        next(items)


def test_a_user_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    items = in_background(iter(range(1000)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def test_a_cpu_has_no_thread_to_spare():
    items = iter([1, 2])
    assert prefetched(items, CPU) is items
