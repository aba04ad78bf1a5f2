"""The one data loader of the library: its order is a formula, so that a run resumes exactly.

A loader that draws its order from a running random generator cannot be resumed without replaying
it, and one whose workers carry random state gives other data for another number of workers. Here
nothing runs along:

- the order of the samples is a pure function of (seed, epoch);
- the random numbers of an augmentation are a pure function of (seed, epoch, sample index);
- hence the whole state of the loader is one number, the batches consumed in the epoch.

Ranks take the samples of that one order in turn, so that batch k of W ranks with B samples each
holds the samples of batch k of one rank with W * B. The number of workers changes only the speed.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

IndexArray = np.ndarray[tuple[int], np.dtype[np.int64]]


class ResumableDataLoader(DataLoader[Any]):
    """A map-style `DataLoader` with a reproducible order, exact resume and sharding over ranks.

    Lightning keeps `state_dict()` of the training loader in every checkpoint and calls `set_epoch`
    on its sampler. A plain loop does so by hand: `loader.sampler.set_epoch(epoch)` before each
    epoch; after `load_state_dict` it begins with epoch `loader.sampler.epoch`.

    The global random generators are never touched. Where ranks do not divide the dataset and
    `drop_last` is False, no sample is repeated or lost, and still every rank makes the same number
    of batches (with fully sharded models one batch more on one rank would wait for ever): the last
    batch of a rank may then hold `batch_size + 1` samples.

    Args:
        dataset: Map-style, with `__len__`. `__getitems__` is used if it has one: it is given the
            list of the indices of a batch, and what it returns goes to `collate_fn`.
        batch_size: Samples per rank and batch.
        seed: Seed of the order and of the augmentations, 0 or more.
        shuffle: Whether each epoch has a random order of its own, or all that of the dataset.
        drop_last: Whether to leave out samples that fill no batch on every rank (for training).
        randomness: Whether the dataset draws random numbers. Python's, numpy's and torch's global
            generators are then seeded by (seed, epoch, index) around each item and set back after
            it (0.1 ms per item), and `__getitems__` is not used.
        num_replicas: Ranks that share the dataset. By default all of the process group, asked for
            at the time of use. A DataModule passes `**(trainer.distributed_sampler_kwargs or {})`,
            which knows of ranks that must see the same data (tensor parallelism).
        rank: Place of this process among them, from 0.
        batch_sampler: For Lightning, which rebuilds loaders for `predict` and `overfit_batches`.
        sampler: Always None; the order is the loader's own.
        **kwargs: As for `torch.utils.data.DataLoader`.

    Raises:
        ValueError: A negative seed, a foreign sampler; from `len()` and iteration: there is not
            one batch for each rank.
    """

    sampler: "OrderSampler"

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        randomness: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        batch_sampler: Any = None,
        sampler: None = None,
        **kwargs: Any,
    ) -> None:
        order = getattr(batch_sampler, "sampler", None)
        is_ours = isinstance(order, OrderSampler) or isinstance(batch_sampler, EvenBatchSampler)
        if sampler is not None or (batch_sampler is not None and not is_ours):
            raise ValueError("ResumableDataLoader has its own order: pass shuffle, not a sampler")
        # Lightning looks these up by name if it has to rebuild the loader.
        self.seed, self.shuffle, self.randomness = seed, shuffle, randomness
        self.num_replicas, self.rank = num_replicas, rank
        if not isinstance(order, OrderSampler):
            if batch_sampler is not None:  # Trainer(overfit_batches=...): means "do not shuffle"
                batch_size, drop_last = batch_sampler.batch_size, batch_sampler.drop_last
            order = OrderSampler(dataset, seed, shuffle, randomness, num_replicas, rank)
            batch_sampler = EvenBatchSampler(order, batch_size, drop_last)
        if randomness and not isinstance(dataset, SeededItems):
            dataset = SeededItems(dataset, seed)
        # `DataLoader` draws a seed for its workers, by default from the global generator.
        kwargs.setdefault("generator", torch.Generator().manual_seed(seed))
        kwargs["worker_init_fn"] = partial(start_worker, kwargs.get("worker_init_fn"))
        super().__init__(dataset, batch_sampler=batch_sampler, **kwargs)
        # Given a batch sampler, torch names a sequential sampler here. Lightning would replace that
        # in a distributed run, and calls `set_epoch` on what it finds.
        self.__dict__["sampler"] = order
        self._batch_size = int(batch_sampler.batch_size)
        self._epoch = 0
        self._num_consumed = 0
        self._resuming = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of the sampler's epoch; after `load_state_dict` those that are left.

        As a generator it begins at the first `next()`. Lightning calls `iter()` before it has set
        the epoch, and not again where a run resumes at the end of an epoch.
        """
        go_on = self._resuming and self._epoch == self.sampler.epoch
        self.sampler.first_batch = self._num_consumed if go_on else 0
        self._epoch, self._num_consumed = self.sampler.epoch, self.sampler.first_batch
        self._resuming = False
        for batch in super().__iter__():
            self._num_consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the position, in batches consumed, and all that this number refers to."""
        return {
            "epoch": self._epoch,
            "num_consumed": self._num_consumed,
            "num_batches": len(self),
            "batch_size": self._batch_size,
            "num_ranks": self.sampler.shard()[1],
            **self._data_order(),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next iteration go on after the consumed batches.

        Args:
            state_dict: From `state_dict()`, also of another number of ranks if all ranks together
                have batches of the same size and number as before: Lightning counts batches.

        Raises:
            ValueError: The data, their order or their batches differ.
        """
        error = "cannot go on in the middle of the data: "
        for name, now in self._data_order().items():
            if state_dict[name] != now:
                raise ValueError(
                    f"{error}the checkpoint has {name}={state_dict[name]}, this run {name}={now} "
                    "(use the same data and seed, or load only the weights: --init_from)"
                )
        before, here = (
            (state["num_batches"], state["batch_size"] * state["num_ranks"])
            for state in (state_dict, self.state_dict())
        )
        if before != here:
            num_ranks = self.sampler.shard()[1]
            size, rest = divmod(before[1], num_ranks)
            fits = "as many ranks as before" if rest else f"batch_size={size}"
            raise ValueError(
                f"{error}the checkpoint has {before[0]} batches of {before[1]} samples over all "
                f"ranks, this run {here[0]} of {here[1]} (use {fits} on {num_ranks} rank(s), or "
                "load only the weights: --init_from)"
            )
        epoch, num_consumed = state_dict["epoch"], state_dict["num_consumed"]
        if num_consumed == state_dict["num_batches"]:
            epoch, num_consumed = epoch + 1, 0
        self.sampler.set_epoch(epoch)
        self._epoch, self._num_consumed, self._resuming = epoch, num_consumed, True

    def _data_order(self) -> dict[str, int]:
        return {
            "seed": self.sampler.seed,
            "shuffle": int(self.sampler.shuffle),
            "num_samples": len(cast(Sized, self.sampler.dataset)),
        }


class OrderSampler(DistributedSampler[Any]):
    """This rank's share of an order that is a pure function of (seed, epoch).

    A `DistributedSampler`, because that is what Lightning leaves in place.

    Args:
        dataset: What is sampled; only its length is used.
        seed: Seed of the order, 0 or more.
        shuffle: Whether the order is random.
        with_epoch: Whether to yield pairs (epoch, index), with which a worker can seed an item.
        num_replicas: Ranks that share the order; None asks `torch.distributed` at the time of use.
        rank: Place of this process among them.

    Attributes:
        epoch: Epoch whose order is yielded, from 0; set by `set_epoch`.
        first_batch: Batches of the epoch that an `EvenBatchSampler` leaves out.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int = 0,
        shuffle: bool = False,
        with_epoch: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a data order must be 0 or more, got {seed}")
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.with_epoch = with_epoch
        self.first_batch = 0
        self._shard = None if num_replicas is None or rank is None else (rank, num_replicas)

    def shard(self) -> tuple[int, int]:
        """Returns (rank, number of ranks)."""
        if self._shard is not None:
            return self._shard
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def indices(self) -> IndexArray:
        """Returns the sample indices of this rank in this epoch, in order, (num_samples,)."""
        num_samples = len(cast(Sized, self.dataset))
        if self.shuffle:
            # numpy promises to keep the raw words of a bit generator, not what it derives from
            # them. To sort by random words is a uniform permutation.
            sequence = np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))
            order = np.argsort(np.random.Philox(sequence).random_raw(num_samples), kind="stable")
        else:
            order = np.arange(num_samples)
        rank, num_ranks = self.shard()
        return cast(IndexArray, order[rank::num_ranks])

    def keys(self, indices: IndexArray) -> list[Any]:
        """Returns what the dataset is asked for: indices, or pairs (epoch, index)."""
        if self.with_epoch:
            return [(self.epoch, index) for index in indices.tolist()]
        return indices.tolist()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys(self.indices()))

    def __len__(self) -> int:
        rank, num_ranks = self.shard()
        return len(range(rank, len(cast(Sized, self.dataset)), num_ranks))


class EvenBatchSampler(BatchSampler):
    """Cuts an `OrderSampler` into batches, as many on every rank.

    The last batch takes what is left: at most one sample more than the others.
    """

    sampler: OrderSampler

    def __iter__(self) -> Iterator[list[Any]]:
        indices, size, num_batches = self.sampler.indices(), self.batch_size, len(self)
        for k in range(self.sampler.first_batch, num_batches):
            takes_rest = k == num_batches - 1 and not self.drop_last
            yield self.sampler.keys(indices[k * size : None if takes_rest else (k + 1) * size])

    def __len__(self) -> int:
        num_samples, num_ranks = len(cast(Sized, self.sampler.dataset)), self.sampler.shard()[1]
        share = num_samples // num_ranks  # of the rank that has least
        num_batches = share // self.batch_size if self.drop_last else -(-share // self.batch_size)
        if num_batches == 0:
            raise ValueError(
                f"not one batch per rank: {num_samples} samples for {num_ranks} rank(s) of batch "
                f"size {self.batch_size}, drop_last={self.drop_last} (use more data, a smaller "
                "batch or fewer ranks)"
            )
        return num_batches


class SeededItems(Dataset[Any]):
    """Items of a dataset by (epoch, index), read under random generators seeded by these.

    Args:
        dataset: The dataset whose items draw random numbers.
        seed: The third part of their seed.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        with seeded(np.random.SeedSequence(self.seed, spawn_key=key)):
            return self.dataset[key[1]]

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))


def start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """Keeps a worker alive when a signal goes to all processes of a run, as Ctrl-C or of a cluster.

    The run has to finish its step, for which it needs the data. SIGTERM ends the worker only if it
    comes from its parent, which ends its workers so.

    Args:
        then: The user's own `worker_init_fn`.
        worker: Its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if then is not None:
        then(worker)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's global CPU generators, and sets them back at the end."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    for_python, for_numpy, for_torch = sequence.generate_state(3, np.uint64).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy >> 32)  # noqa: NPY002 - the generator that augmentations draw from
    # Not `torch.manual_seed`, which seeds accelerators as well.
    torch.default_generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.set_rng_state(state[2])


def refuse_other_data(
    data: LightningDataModule, state_dict: Mapping[str, Any], what: str = "data"
) -> None:
    """Compares the hash of a checkpoint's data with that of this data, in `fit`.

    Args:
        data: Its `state_dict()["data"]` is the hash.
        state_dict: The checkpoint's.
        what: The data consist of.

    Raises:
        ValueError: The data differ, so that the run cannot go on where it stopped.
    """
    fitting = data.trainer is not None and data.trainer.state.fn == TrainerFn.FITTING
    then, here = state_dict["data"], data.state_dict()["data"]
    if fitting and then != here:
        raise ValueError(
            f"the checkpoint was trained with other {what} (SHA-256 {then[:12]}, here "
            f"{here[:12]}): use the data settings of its run, or load only the weights"
        )
