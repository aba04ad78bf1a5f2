"""What ends a run from outside: a process that has gone, a data worker without memory.

Imports no torch.
"""

import errno
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from traceback import walk_tb

GO_ON = "--ckpt_path auto goes on from the last checkpoint"
GRACE_SECONDS = 10
_PEER_IS_GONE = (
    r"Connection (closed|reset) by peer|remote process exited|NCCL communicator was aborted|"
    r"ncclRemoteError|Broken pipe"
)
_PEER_IS_SILENT = r"Timed out waiting (\d+)ms|Watchdog caught collective operation timeout"
_WORKER_IS_GONE = r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal: \w+|exited)"


def explain_failure(error: BaseException) -> str | None:
    """One line for an error that is not this process's fault; None for any other.

    Args:
        error: What torch has raised.
    """
    message = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}: make some; what was saved before is intact, and {GO_ON}"
    killed = re.search(_WORKER_IS_GONE, message)
    if killed or _is_from_a_lost_worker(error):
        how = killed[1] if killed else "has ended"
        return (
            f"a data worker {how}; most often memory has run out: fewer data.num_workers, or a "
            f"smaller batch; {GO_ON}"
        )
    if not isinstance(error, RuntimeError):
        return None
    if re.search(_PEER_IS_SILENT, message):
        return (
            "another process of this run does not answer (a warning above names it; trainer."
            f"strategy.init_args.timeout says how long to wait); {GO_ON}"
        )
    if re.search(_PEER_IS_GONE, message):
        return f"another process of this run has ended, and its last words say why; {GO_ON}"
    return None


def _is_from_a_lost_worker(error: BaseException) -> bool:
    """Whether the connection to a data worker broke, before torch has noticed the worker's end."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return (
        isinstance(error, EOFError | OSError)
        and any(file.endswith("torch/utils/data/dataloader.py") for file in files)
        and files[-1].endswith("multiprocessing/connection.py")
    )


def end_on_failure(
    processes: Callable[[], Sequence[subprocess.Popen[bytes]]],
) -> Callable[[object, object, object], None]:
    """Ends other processes of a run when this one has failed; to be pushed on an `ExitStack`.

    Those that hang would stay behind; those that are about to say why they fail get some seconds to
    do so.

    Args:
        processes: Asked then.
    """

    def leave(kind: object, error: object, traceback: object) -> None:
        if kind is None:
            return
        end = time.monotonic() + GRACE_SECONDS
        for process in processes():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    return leave
