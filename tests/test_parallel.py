"""Parallel tasks: same results as in one process, one-sentence errors, and no processes left running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from autodrag.errors import AutodragError
from autodrag.parallel import TASKS_EACH, Engine, number_of_jobs, run_tasks


def open_worker(folder: Path) -> Callable[[int], tuple[int, int, int]]:
    """A worker that returns (task squared, process id, number of torch threads). Each process creates one file."""
    import torch

    (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()

    def work(task: int) -> tuple[int, int, int]:
        if task == 13:
            raise AutodragError("task 13 cannot be done; choose another")
        if task == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return task * task, os.getpid(), torch.get_num_threads()

    return work


def test_one_job_runs_in_this_process_and_in_order(tmp_path: Path) -> None:
    results = list(run_tasks(partial(open_worker, tmp_path), range(4), jobs=1))
    assert [square for square, _, _ in results] == [0, 1, 4, 9]
    assert {process for _, process, _ in results} == {os.getpid()}


def test_two_jobs_run_every_task_once_in_two_processes(tmp_path: Path) -> None:
    results = list(run_tasks(partial(open_worker, tmp_path), range(12), jobs=2))
    assert sorted(square for square, _, _ in results) == [task * task for task in range(12)]
    processes = {process for _, process, _ in results}
    assert len(processes) == 2 and os.getpid() not in processes
    assert {threads for _, _, threads in results} == {1}
    assert len(list(tmp_path.iterdir())) == 2, "every process builds its worker once"
    assert not [process for process in processes if is_running(process)]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked here")
def test_other_processes_do_not_get_ctrl_c() -> None:
    results = list(run_tasks(open_mask_worker, range(4), jobs=2))
    assert results == [True] * 4
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def open_mask_worker() -> Callable[[int], bool]:
    """A worker that returns whether its process blocks Ctrl-C."""
    return lambda task: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_worker_error_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"^task 13 cannot be done; choose another$"):
        list(run_tasks(partial(open_worker, tmp_path), range(10, 30), jobs=2))


def test_killed_process_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"the system stopped a worker process, .*use fewer processes with --jobs"):
        list(run_tasks(partial(open_worker, tmp_path), [14, 1, 2], jobs=2))


def test_stopping_early_ends_the_processes(tmp_path: Path) -> None:
    """Closing the generator, as Ctrl-C does, stops the worker processes."""
    results = run_tasks(partial(open_worker, tmp_path), range(20, 1000), jobs=2)
    _, process, _ = next(results)
    assert isinstance(results, Iterator) and is_running(process)
    results.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 20
    while is_running(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(process)


def is_running(process: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_number_of_jobs() -> None:
    assert number_of_jobs(None, 1000, gpu=True) == 1
    assert 1 <= number_of_jobs(None, 10**6, gpu=False) <= (os.cpu_count() or 1)
    assert number_of_jobs(None, TASKS_EACH - 1, gpu=False) == 1  # not worth a second process
    assert number_of_jobs(8, 3, gpu=False) == 3 and number_of_jobs(8, 0, gpu=False) == 1
    with pytest.raises(AutodragError, match="--jobs 0: expected at least 1"):
        number_of_jobs(0, 5, gpu=False)


def test_ray_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(AutodragError, match=r"--engine ray needs the package ray; .*autodrag\[ray\]"):
        number_of_jobs(2, 5, gpu=False, engine="ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two nodes with one CPU each, on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_a_cluster_of_two_nodes(cluster: None, tmp_path: Path) -> None:
    engine: Engine = "ray"
    jobs = number_of_jobs(None, 12, gpu=False, engine=engine)
    assert jobs == 2
    results = list(run_tasks(partial(open_worker, tmp_path), range(12), jobs=jobs, engine=engine))
    assert sorted(square for square, _, _ in results) == [task * task for task in range(12)]
    assert len({process for _, process, _ in results}) == 2 and {threads for _, _, threads in results} == {1}
    with pytest.raises(AutodragError, match=r"^task 13 cannot be done; choose another$"):
        list(run_tasks(partial(open_worker, tmp_path), [12, 13], jobs=2, engine=engine))
