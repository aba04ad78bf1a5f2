import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tenfold.callbacks.late_flags import LateFlags


def test_one_process_gets_its_flags_at_the_next_call() -> None:
    flags = LateFlags()
    sent = [[0, 0], [1, 0], [0, 1], [0, 0]]
    got = [flags.exchange(torch.tensor(values, dtype=torch.uint8)) for values in sent]
    assert got == [[False, False], [False, False], [True, False], [False, True]]


def exchange(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    flags = LateFlags()
    got = [flags.exchange(torch.tensor([step == rank + 1], dtype=torch.uint8)) for step in range(5)]
    torch.save(got, f"{out}.{rank}")
    dist.destroy_process_group()


def test_all_ranks_get_the_same_answer_at_the_same_call(tmp_path) -> None:
    """The flag of rank 0 is up at call 1, that of rank 1 at call 2."""
    mp.spawn(exchange, (f"{tmp_path}/store", f"{tmp_path}/got"), nprocs=2)
    for rank in range(2):
        got = torch.load(tmp_path / f"got.{rank}", weights_only=True)
        assert got == [[False], [False], [True], [True], [False]]
