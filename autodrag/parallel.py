"""Independent tasks in parallel processes: joblib (loky) on one machine, Ray on a cluster.

A worker is a function of a task. Each process calls `make_worker` once and then passes its tasks to the worker.
Results arrive in order of completion, so a result must identify its task. Torch uses one thread per process, because
on small images a second process is faster than a second thread.

`make_worker`, tasks and results are pickled (functions with cloudpickle). They must not contain tensors on a device: a
worker loads its own networks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar, get_args

from autodrag.errors import AutodragError

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker = Callable[[Task], Result]
Engine = Literal["joblib", "ray"]

TASKS_EACH = 4
"""Minimum number of tasks per process, because starting a process takes seconds."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--jobs` and `--engine`."""
    parser.add_argument(
        "--jobs",
        type=int,
        help="number of processes (default: one per CPU core; one on a GPU; with ray, all CPUs or GPUs of the cluster)",
    )
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        default="joblib",
        help="joblib: processes on this machine (default); ray: a Ray cluster whose machines share the checkpoint and "
        "output folders",
    )


def run_tasks(
    make_worker: Callable[[], Worker[Task, Result]],
    tasks: Iterable[Task],
    *,
    jobs: int,
    engine: Engine = "joblib",
    gpu: bool = False,
) -> Iterator[Result]:
    """Yield the results of the tasks in order of completion. With one joblib job, tasks run in this process, in order.

    If the caller stops early (exception or Ctrl-C), the worker processes are stopped too.

    Args:
        jobs: number of processes.
        gpu: reserve one GPU for each Ray process.

    Raises:
        AutodragError: a worker raised it, or the system stopped a process.
    """
    if engine == "ray":
        return _run_on_ray(make_worker, tasks, jobs, gpu)
    if jobs == 1:
        return map(make_worker(), tasks)
    return _run_on_joblib(make_worker, tasks, jobs)


def number_of_jobs(requested: int | None, tasks: int, *, gpu: bool, engine: Engine = "joblib") -> int:
    """Number of processes for a number of tasks; `requested` is the value of `--jobs`.

    Raises:
        AutodragError: `requested` is below 1, or Ray is not installed.
    """
    if requested is not None and requested < 1:
        raise AutodragError(f"--jobs {requested}: expected at least 1")
    if engine == "ray":
        resources = _connect().cluster_resources()
        available = int(resources.get("GPU" if gpu else "CPU", 1))
        return max(1, min(requested or available, tasks))
    if requested is not None:
        return max(1, min(requested, tasks))
    return 1 if gpu else max(1, min(_cores(), tasks // TASKS_EACH))


def _cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# --- joblib ---------------------------------------------------------------------------------------

_built: dict[str, Worker[Any, Any]] = {}
"""In a joblib process: the worker of the current run, under the key of the run."""


def _run_task(key: str, make_worker: Callable[[], Worker[Task, Result]], task: Task) -> Result:
    """Run a task in a joblib process."""
    if key not in _built:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process stops this one
        _use_one_thread()
        _built.clear()
        _built[key] = make_worker()
    result: Result = _built[key](task)
    return result


@contextlib.contextmanager
def _ctrl_c_for_the_parent_only() -> Iterator[None]:
    """Processes started inside never get Ctrl-C, not even while they import; the parent gets it at the end.

    A process inherits the set of blocked signals of the thread that starts it. Python's tracker of semaphores unblocks
    Ctrl-C when it starts, so it starts first.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_on_joblib(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], jobs: int
) -> Iterator[Result]:
    import joblib
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    key = secrets.token_hex(8)
    results: Any = None
    finished = False
    try:
        with _ctrl_c_for_the_parent_only(), joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            pool = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
            results = pool(joblib.delayed(_run_task)(key, make_worker, task) for task in tasks)
        for result in results:  # noqa: UP028 (the generator is closed below, without joblib's warning)
            yield result
        finished = True
    except BrokenProcessPool as error:  # the process could not report a reason
        raise AutodragError(
            "the system stopped a worker process, probably because memory ran out; use fewer processes with --jobs"
        ) from error
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # joblib warns about unread results
            if results is not None:
                results.close()
        get_reusable_executor().shutdown(wait=True, kill_workers=not finished)


# --- Ray ------------------------------------------------------------------------------------------


def _connect() -> Any:
    """The package ray, connected to the running cluster, or else to a new cluster on this machine."""
    try:
        import ray
    except ImportError as error:
        raise AutodragError("--engine ray needs the package ray; install it: pip install 'autodrag[ray]'") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default
        ray.init(log_to_driver=False)
    return ray


class RayProcess:
    """Ray actor that holds a worker."""

    def __init__(self, make_worker: Callable[[], Worker[Any, Any]]) -> None:
        _use_one_thread()
        self.worker = make_worker()

    def run(self, task: Any) -> Any:
        """Run a task."""
        return self.worker(task)


def _run_on_ray(
    make_worker: Callable[[], Worker[Task, Result]], tasks: Iterable[Task], jobs: int, gpu: bool
) -> Iterator[Result]:
    ray = _connect()
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    remote = ray.remote(num_cpus=1, num_gpus=int(gpu))(RayProcess)
    actors = [remote.remote(make_worker) for _ in range(jobs)]
    try:
        pool: Any = ActorPool(actors)
        yield from pool.map_unordered(lambda actor, task: actor.run.remote(task), tasks)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, AutodragError) else error) from None
    except RayActorError as error:
        cause = getattr(error, "cause", None)  # exception of the actor's constructor
        if isinstance(cause, AutodragError):
            raise cause from None
        raise AutodragError(f"a process of the Ray cluster has stopped: {error}") from error
    finally:
        for actor in actors:
            ray.kill(actor)
