"""Where tasks run: in processes of this machine, or on a Ray cluster."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .extras import require
from .steps import Stats, Work

Done = Callable[[int, Stats], None]


class Executor(ABC):
    """Runs tasks. No choice here changes a result: all give each task the same threads.

    Its public attributes are its arguments. `close` ends what it has started.
    """

    @abstractmethod
    def run(self, work: Work, tasks: Sequence[int], done: Done) -> None:
        """Runs tasks in any order.

        Args:
            work: Does a task, in another process.
            tasks: Their numbers.
            done: Called with the number and result of each.

        Raises:
            ValueError: A task found that something is wrong, or its process was killed.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the processes."""


class LocalExecutor(Executor):
    """Processes of this machine.

    Args:
        num_processes: How many; None: one per core.
        threads: Of each; other numbers than 1 may change the last bits of embeddings.
    """

    def __init__(self, num_processes: int | None = None, threads: int = 1) -> None:
        if (num_processes is not None and num_processes < 1) or threads < 1:
            raise ValueError(
                f"executor: num_processes and threads must be 1 or more, got {num_processes} and "
                f"{threads}"
            )
        self.num_processes = num_processes
        self.threads = threads
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Work, tasks: Sequence[int], done: Done) -> None:
        """See `Executor`."""
        if self._pool is None:
            number = self.num_processes or len(os.sched_getaffinity(0))
            # Not forked: a copy of a process with threads of its own may wait forever.
            context = multiprocessing.get_context("spawn")
            with _environment(self.threads):
                self._pool = ProcessPoolExecutor(
                    number, context, initializer=_start_worker, initargs=(os.getpid(),)
                )
        pickled = pickle.dumps(work)
        try:
            with _environment(self.threads):  # processes start when there is work for them
                futures = {self._pool.submit(_run_task, pickled, task): task for task in tasks}
                for future in as_completed(futures):
                    done(futures[future], future.result())
        except BrokenProcessPool as error:
            self._pool = None
            raise ValueError(
                "a worker process was killed, most often because memory has run out: the same "
                "command goes on; fewer --executor.num_processes need less memory"
            ) from error
        except UserError as error:
            self.close()
            raise ValueError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `Executor`."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class RayExecutor(Executor):
    """A Ray cluster, by Ray Data; all its machines share the folders of the pipeline.

    Args:
        address: Of the cluster: "auto" finds the one of this machine, as in a SLURM job that has
            started it; None starts one in this process.
        num_workers: Processes that run tasks; None: one per core of the cluster, or per GPU for
            steps with a network where there are GPUs.
        gpus_per_worker: Of steps with a network; 0.5 lets two share one.
        threads: As of `LocalExecutor`.
    """

    def __init__(
        self,
        address: str | None = None,
        num_workers: int | None = None,
        gpus_per_worker: float = 0.0,
        threads: int = 1,
    ) -> None:
        if (num_workers is not None and num_workers < 1) or threads < 1 or gpus_per_worker < 0:
            raise ValueError(
                "executor: num_workers and threads must be 1 or more and gpus_per_worker 0 or "
                f"more, got {num_workers}, {threads} and {gpus_per_worker}"
            )
        self.address = address
        self.num_workers = num_workers
        self.gpus_per_worker = gpus_per_worker
        self.threads = threads
        self._ray: Any = None

    def run(self, work: Work, tasks: Sequence[int], done: Done) -> None:
        """See `Executor`."""
        ray = self._start()
        gpus = self.gpus_per_worker if work.needs_model else 0.0
        have = ray.cluster_resources()
        possible = have.get("GPU", 0) / gpus if gpus else have.get("CPU", 1) / self.threads
        options = {
            "concurrency": min(self.num_workers or max(1, int(possible)), len(tasks)),
            "num_cpus": self.threads,
            "num_gpus": gpus or None,
        }
        # A block per task: what one worker takes at a time.
        items = [{"task": task} for task in tasks]
        data = ray.data.from_items(items, override_num_blocks=len(tasks))
        pickled = pickle.dumps(work)
        if work.needs_model:  # a process keeps the network for all tasks that come to it
            data = data.map(_RayWorker, fn_constructor_args=(pickled,), **options)
        else:  # processes that are there take the next task, whatever step it is of
            data = data.map(_run_row, fn_args=(pickled,), **options)
        try:
            for row in data.iter_rows():
                done(row["task"], Stats(**pickle.loads(row["stats"])))
        except ray.exceptions.RayError as error:
            cause = _first_cause(error)
            if isinstance(cause, UserError):
                raise ValueError(str(cause)) from error
            raise

    def close(self) -> None:
        """See `Executor`."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None

    def _start(self) -> Any:
        if self._ray is None:
            ray = require("ray", "ray")
            require("ray.data", "ray[data]")
            started = ray.is_initialized()
            if not started:
                try:
                    ray.init(
                        address=self.address,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="warning",
                        runtime_env={"env_vars": _thread_variables(self.threads)},
                    )
                except ConnectionError as error:
                    raise ValueError(
                        f"executor: no Ray cluster at address {self.address!r}: start one by "
                        "`ray start --head`, or leave the address out"
                    ) from error
                self._ray = ray
            ray.data.DataContext.get_current().enable_progress_bars = False
            return ray
        return self._ray


def _run_row(row: dict[str, Any], pickled: bytes) -> dict[str, Any]:
    stats = _run_task(pickled, int(row["task"]))
    return {"task": int(row["task"]), "stats": pickle.dumps(vars(stats))}


class _RayWorker:
    """Keeps a work, and so its network, for all tasks that come to this process."""

    def __init__(self, pickled: bytes) -> None:
        self.work: Work = pickle.loads(pickled)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        stats = _do(self.work, int(row["task"]))
        return {"task": int(row["task"]), "stats": pickle.dumps(vars(stats))}


def _first_cause(error: BaseException) -> BaseException:
    """The error in a worker that Ray has wrapped."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return error


def _thread_variables(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


class _environment:  # noqa: N801 - reads as a statement
    """Environment variables of processes that start inside the block."""

    def __init__(self, threads: int) -> None:
        self.variables = _thread_variables(threads)

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_kept: tuple[bytes, Work] | None = None  # of a worker process: the work of its last task


def _run_task(pickled: bytes, task: int) -> Stats:
    global _kept
    if _kept is None or _kept[0] != pickled:
        _kept = (pickled, pickle.loads(pickled))
    return _do(_kept[1], task)


class UserError(ValueError):
    """What this package told users on purpose, in a worker."""


def _do(work: Work, task: int) -> Stats:
    """Does a task; marks errors that were raised on purpose, which elsewhere can no longer be seen.

    Raises:
        UserError: A ValueError was raised in this package.
    """
    try:
        return work(task)
    except ValueError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames[-1].f_globals.get("__name__", "").startswith(__name__.partition(".")[0]):
            raise UserError(str(error)) from error
        raise


def _start_worker(parent: int) -> None:
    """Leaves Ctrl-C to the parent, and ends when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
