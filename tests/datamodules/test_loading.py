"""The loader alone: order, sharding, resume, and random numbers per sample."""

import itertools
import multiprocessing
import random
import subprocess
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.datamodules.loading import ResumableDataLoader
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

NO_FORK_WARNING = "ignore:This DataLoader will create:UserWarning"


class Numbers(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return self.length


class RandomNumbers(Numbers):
    """Items that draw from all three global generators."""

    def __getitem__(self, index: int) -> Any:
        return index, random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002


def batches_of(loader: ResumableDataLoader, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def generator_states() -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2],
        torch.get_rng_state().tolist(),
    ]


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide() -> None:
    orders = {}
    for seed, epoch in itertools.product(range(3), range(3)):
        loader = ResumableDataLoader(Numbers(50), batch_size=4, seed=seed, shuffle=True)
        order = flat(batches_of(loader, epoch))
        assert sorted(order) == list(range(50))
        assert order == flat(batches_of(loader, epoch))
        orders[seed, epoch] = tuple(order)
    assert len(set(orders.values())) == 9


def test_every_sample_comes_first_equally_often() -> None:
    loader = ResumableDataLoader(Numbers(6), batch_size=6, shuffle=True)
    firsts = np.bincount([batches_of(loader, epoch)[0][0] for epoch in range(1200)], minlength=6)
    assert abs(firsts - 200).max() < 5 * np.sqrt(1200 * (1 / 6) * (5 / 6))


def test_without_shuffle_the_order_is_that_of_the_dataset() -> None:
    loader = ResumableDataLoader(Numbers(7), batch_size=3)
    assert batches_of(loader, 0) == batches_of(loader, 5) == [[0, 1, 2], [3, 4, 5], [6]]


@given(
    num_ranks=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    num_samples=st.integers(5, 70),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_ranks_share_the_order_of_one_rank(
    num_ranks: int, batch_size: int, num_samples: int, drop_last: bool, epoch: int
) -> None:
    if drop_last and num_samples < num_ranks * batch_size:
        num_samples = num_ranks * batch_size
    options: dict[str, Any] = {"shuffle": True, "drop_last": drop_last, "seed": 7}
    data = Numbers(num_samples)
    ranks = [
        batches_of(
            ResumableDataLoader(
                data, batch_size=batch_size, rank=rank, num_replicas=num_ranks, **options
            ),
            epoch,
        )
        for rank in range(num_ranks)
    ]
    together = batches_of(
        ResumableDataLoader(data, batch_size=batch_size * num_ranks, **options), epoch
    )

    assert len({len(batches) for batches in ranks}) == 1
    seen = flat([flat(batches) for batches in ranks])
    assert sorted(seen) == sorted(flat(together))
    for k in range(len(ranks[0])):
        assert all(len(batches[k]) == batch_size for batches in ranks) or k == len(ranks[0]) - 1
        if drop_last or k < len(ranks[0]) - 1:
            assert set(flat([batches[k] for batches in ranks])) == set(together[k])
    if not drop_last:
        assert sorted(seen) == list(range(num_samples))
        assert all(1 <= len(batches[-1]) <= batch_size + 1 for batches in ranks)


def test_length_is_asked_of_the_process_group_at_the_time_of_use(tmp_path: Any) -> None:
    loader = ResumableDataLoader(Numbers(10), batch_size=2)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert len(loader) == 5
        assert loader.state_dict()["num_ranks"] == 1
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_fresh_loader_goes_on_from_any_batch(
    num_workers: int, shuffle: bool, drop_last: bool
) -> None:
    options: dict[str, Any] = {
        "seed": 3,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "num_workers": num_workers,
    }
    first = ResumableDataLoader(Numbers(11), batch_size=3, **options)
    whole: list[list[int]] = []
    states = []
    for epoch in range(2):
        first.sampler.set_epoch(epoch)
        for batch in first:
            whole.append(batch.tolist())
            states.append(first.state_dict())
    for position in range(1, len(whole) + 1, num_workers + 1):
        state = states[position - 1]
        again = ResumableDataLoader(Numbers(11), batch_size=3, **options)
        again.load_state_dict(state)
        assert len(again) == len(first)
        begin = again.sampler.epoch
        rest = flat([batches_of(again, epoch) for epoch in range(begin, 2)])
        assert rest == whole[position:], position


def test_persistent_workers_keep_nothing_from_one_epoch_to_the_next() -> None:
    options: dict[str, Any] = {"seed": 1, "shuffle": True}
    want = ResumableDataLoader(Numbers(20), batch_size=3, **options)
    loader = ResumableDataLoader(
        Numbers(20), batch_size=3, num_workers=2, persistent_workers=True, **options
    )
    loader.load_state_dict({**want.state_dict(), "num_consumed": 4})
    assert batches_of(loader, 0) == batches_of(want, 0)[4:]
    loader.sampler.set_epoch(1)
    next(iter(loader))
    assert batches_of(loader, 1) == batches_of(want, 1)
    assert batches_of(loader, 2) == batches_of(want, 2)


def test_the_state_of_a_finished_epoch_leads_to_the_next_one() -> None:
    loader = ResumableDataLoader(Numbers(8), batch_size=4, shuffle=True)
    batches_of(loader, 5)
    state = loader.state_dict()
    assert (state["epoch"], state["num_consumed"], state["num_batches"]) == (5, 2, 2)
    again = ResumableDataLoader(Numbers(8), batch_size=4, shuffle=True)
    again.load_state_dict(state)
    assert again.sampler.epoch == 6
    assert [batch.tolist() for batch in again] == batches_of(loader, 6)


def test_the_epoch_may_be_set_between_iter_and_the_first_batch() -> None:
    for num_workers in (0, 1):
        loader = ResumableDataLoader(
            Numbers(9), batch_size=3, shuffle=True, num_workers=num_workers
        )
        iterator = iter(loader)
        loader.sampler.set_epoch(2)
        assert [batch.tolist() for batch in iterator] == batches_of(loader, 2)


def test_a_position_is_forgotten_once_used_or_left_behind() -> None:
    loader = ResumableDataLoader(Numbers(9), batch_size=3, shuffle=True)
    whole = batches_of(loader, 0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "num_consumed": 1})
    assert batches_of(loader, 0) == whole[1:]
    assert batches_of(loader, 0) == whole
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "num_consumed": 1})
    assert batches_of(loader, 1) == batches_of(loader, 1)
    assert len(batches_of(loader, 1)) == 3


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
def test_resume_with_another_number_of_ranks_and_the_same_batch_over_all(num_ranks: int) -> None:
    first = ResumableDataLoader(Numbers(48), batch_size=3, shuffle=True, rank=0, num_replicas=2)
    consumed = 24
    state = {**first.state_dict(), "num_consumed": consumed // 6}
    ranks = []
    for rank in range(num_ranks):
        again = ResumableDataLoader(
            Numbers(48),
            batch_size=6 // num_ranks,
            shuffle=True,
            rank=rank,
            num_replicas=num_ranks,
        )
        again.load_state_dict(state)
        ranks.append(flat(batches_of(again, 0)))
    whole = flat(batches_of(ResumableDataLoader(Numbers(48), batch_size=1, shuffle=True), 0))
    interleaved = flat([list(samples) for samples in zip(*ranks, strict=True)])
    assert interleaved == whole[consumed:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, r"16 batches of 3 .*, this run 12 of 4 \(use batch_size=3 on 1 rank"),
        (
            {"batch_size": 3, "num_replicas": 2, "rank": 0},
            r"16 batches of 3 .*, this run 8 of 6 \(use as many ranks as before on 2 rank",
        ),
    ],
)
def test_batches_of_another_size_are_refused_with_both_sizes(options: Any, message: str) -> None:
    state = {**ResumableDataLoader(Numbers(48), batch_size=3).state_dict(), "num_consumed": 4}
    with pytest.raises(ValueError, match=message):
        ResumableDataLoader(Numbers(48), **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=0, this run seed=1"),
        ({"shuffle": True}, "shuffle=0, this run shuffle=1"),
        ({"dataset": Numbers(11)}, "num_samples=10, this run num_samples=11"),
    ],
)
def test_another_order_is_refused_with_both_values(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"dataset": Numbers(10), "batch_size": 2}
    state = ResumableDataLoader(**options).state_dict()
    with pytest.raises(ValueError, match=message):
        ResumableDataLoader(**{**options, **change}).load_state_dict(state)


def test_a_checkpointed_state_loads_with_weights_only(tmp_path: Any) -> None:
    state = ResumableDataLoader(Numbers(10), batch_size=2, shuffle=True).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


@pytest.mark.parametrize(
    ("num_samples", "options"),
    [
        (0, {}),
        (3, {"batch_size": 4, "drop_last": True}),
        (3, {"rank": 0, "num_replicas": 4}),
    ],
)
def test_too_few_samples_are_an_error_that_counts_them(
    num_samples: int, options: dict[str, Any]
) -> None:
    loader = ResumableDataLoader(Numbers(num_samples), **options)
    with pytest.raises(ValueError, match=f"not one batch per rank: {num_samples} samples"):
        len(loader)


def test_foreign_samplers_and_negative_seeds_are_refused() -> None:
    sampler = SequentialSampler(Numbers(4))
    for foreign in ({"sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 2, False)}):
        with pytest.raises(ValueError, match="pass shuffle, not a sampler"):
            ResumableDataLoader(Numbers(4), **foreign)
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        ResumableDataLoader(Numbers(4), seed=-1)


def test_a_dataset_may_read_a_batch_at_once() -> None:
    class Batched(Numbers):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [100 * len(indices) + index for index in indices]

    assert batches_of(ResumableDataLoader(Batched(5), batch_size=2), 0) == [
        [200, 201],
        [202, 203],
        [104],
    ]


@pytest.mark.filterwarnings(NO_FORK_WARNING)
def test_random_numbers_of_a_sample_do_not_depend_on_the_workers() -> None:
    def draws(epoch: int = 0, seed: int = 5, **options: Any) -> dict[int, tuple[float, ...]]:
        loader = ResumableDataLoader(
            RandomNumbers(12), batch_size=3, seed=seed, randomness=True, shuffle=True, **options
        )
        for start in range(epoch + 1):
            loader.sampler.set_epoch(start)
            columns = [torch.cat(column).tolist() for column in zip(*loader, strict=True)]
            samples = dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True))
        return samples

    want = draws()
    assert len(want) == 12
    assert len({value for sample in want.values() for value in sample}) == 36
    for num_workers in (1, 2, 4):
        assert draws(num_workers=num_workers) == want
    later = draws(epoch=2)
    assert draws(epoch=2, num_workers=2, persistent_workers=True) == later
    assert draws(num_replicas=2, rank=1) == {i: want[i] for i in draws(num_replicas=2, rank=1)}
    for other in (later, draws(seed=6)):
        assert all(other[i] != want[i] for i in want)


@pytest.mark.filterwarnings(NO_FORK_WARNING)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("randomness", [False, True])
def test_the_global_generators_are_left_alone(num_workers: int, randomness: bool) -> None:
    data = RandomNumbers(8) if randomness else Numbers(8)
    before = generator_states()
    loader = ResumableDataLoader(
        data, batch_size=2, shuffle=True, num_workers=num_workers, randomness=randomness
    )
    for _ in loader:
        assert generator_states() == before


def test_an_error_in_a_sample_restores_the_generators() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> int:
            torch.rand(3)
            raise KeyError(index)

    before = generator_states()
    with pytest.raises(KeyError):
        next(iter(ResumableDataLoader(Broken(4), batch_size=2, randomness=True)))
    assert generator_states() == before


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_outlive_signals_to_all_processes_and_end_with_their_loader(context: str) -> None:
    """As a cluster sends them, or Ctrl-C; another process sends them here."""
    loader = ResumableDataLoader(
        Numbers(40), batch_size=2, num_workers=2, multiprocessing_context=context
    )
    batches = iter(loader)
    first = [next(batches).tolist() for _ in range(2)]  # one of each worker: both have started
    workers = [process.pid for process in multiprocessing.active_children()]
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["kill", f"-{name}", *map(str, workers)], check=True)
    time.sleep(0.5)
    assert flat([*first, *(batch.tolist() for batch in batches)]) == list(range(40))
    del batches
    assert not multiprocessing.active_children()


def test_a_worker_ends_when_its_parent_says_so() -> None:
    loader = ResumableDataLoader(Numbers(40), batch_size=2, num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=10)
    assert worker.exitcode == 0
