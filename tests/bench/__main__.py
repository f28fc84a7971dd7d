"""`python -m tests.bench [NAME …]`: all measurements, or those named."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable

import requests

from tests.bench.bulk import bulk
from tests.bench.bulk_output import bulk_output
from tests.bench.rest import rest_claim, rest_idle
from tests.bench.sandbox import sandbox
from tests.bench.stage import all_ended, connect, cpu_s, machine, percentile, rss_mib, say, settle, working
from tests.bench.survivors import survivors
from tests.conftest_worker import Worker

PICKUPS = 300
TASKS = 2000
IDLE_S = 60.0
GRAPHS = 100
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def pickup() -> bool:
    """insert → the handler has it, on an idle worker: both read CLOCK_REALTIME on the same machine."""
    with working() as worker, connect(worker) as connection:
        connection.execute("INSERT INTO tasks (task_type, params, status) VALUES ('stamp', '{}', 'queued')")
        all_ended(connection, "stamp")
        took = []
        for _ in range(PICKUPS):
            time.sleep(0.03)
            sent = time.time()
            insert = "INSERT INTO tasks (task_type, params, status) VALUES ('stamp', '{}', 'queued') RETURNING id"
            row = connection.execute(insert).fetchone()
            all_ended(connection, "stamp")
            found = connection.execute("SELECT result_data FROM tasks WHERE id = %s", row).fetchone()
            assert found is not None
            took.append((found[0]["at"] - sent) * 1000)  # type: ignore[index]
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    return say(
        "insert → handler has it, p50 / p99", f"{p50:.2f} / {p99:.2f} ms", "3.5 / 10 ms", p50 <= 3.5 and p99 <= 10
    )


def _throughput(prefetch: int, target: float) -> bool:
    with working(WAN2GP_PREFETCH=str(prefetch)) as worker, connect(worker) as connection:
        connection.execute("INSERT INTO tasks (task_type, params, status) VALUES ('noop', '{}', 'queued')")
        all_ended(connection, "noop")
        worker.ctl("drain")
        insert = "INSERT INTO tasks (task_type, params, status) SELECT 'noop', %s, 'queued' FROM generate_series(1, %s)"
        connection.execute(insert, [json.dumps({"text": "x" * 2000}), TASKS])
        worker.ctl("resume")
        all_ended(connection, "noop")
        # Between 5 % and 98 % done: neither the start nor the last stragglers count.
        query = "SELECT generation_processed_at FROM tasks WHERE task_type = 'noop' ORDER BY 1"
        done = [row[0].timestamp() for row in connection.execute(query)]  # type: ignore[attr-defined]
    first, last = int(len(done) * 0.05), int(len(done) * 0.98)
    rate = (last - first) / (done[last] - done[first])
    return say(
        f"no-op tasks, durable and fenced, prefetch {prefetch}", f"{rate:.0f}/s", f">= {target:.0f}/s", rate >= target
    )


def throughput() -> bool:
    """No-op tasks with 2 KB of params through one real child."""
    return _throughput(0, 500) & _throughput(1, 700)


def overhead() -> bool:
    """A trivial graph through the worker, minus the same graph posted to the same server by hand."""
    with working() as worker, connect(worker) as connection:
        insert = "INSERT INTO tasks (task_type, params, status) VALUES ('comfy', %s, 'queued')"
        params = json.dumps({"workflow": GRAPH})

        def through() -> float:
            started = time.perf_counter()
            connection.execute(insert, [params])
            all_ended_fast(connection)
            return (time.perf_counter() - started) * 1000

        def all_ended_fast(over: object) -> None:
            query = "SELECT 1 FROM tasks WHERE status IN ('Queued', 'In Progress') LIMIT 1"
            while connection.execute(query).fetchone() is not None:
                time.sleep(0.001)

        through()
        port = engine_port(worker)
        mine = [through() for _ in range(GRAPHS)]
        bare = [by_hand(port) for _ in range(GRAPHS)]
    extra = percentile(mine, 0.5) - percentile(bare, 0.5)
    shown = f"{extra:.1f} ms ({percentile(mine, 0.5):.1f} - {percentile(bare, 0.5):.1f})"
    return say("a trivial graph: worker minus by hand, p50", shown, "<= 25 ms", extra <= 25)


def engine_port(worker: Worker) -> int:
    return int(worker.handler("comfy")["engine"]["port"])


def by_hand(port: int) -> float:
    """Post a graph of its own prefix and poll until its history is there, milliseconds."""
    graph = json.loads(json.dumps(GRAPH))
    graph["2"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    session = requests.Session()
    session.get(f"http://127.0.0.1:{port}/prompt")
    started = time.perf_counter()
    prompt_id = session.post(f"http://127.0.0.1:{port}/prompt", json={"prompt": graph}).json()["prompt_id"]
    while not session.get(f"http://127.0.0.1:{port}/history/{prompt_id}").json():
        time.sleep(0.001)
    return (time.perf_counter() - started) * 1000


def memory_and_start() -> bool:
    """Start on an existing database; resident memory and processor time of an idle worker."""
    with working() as worker, connect(worker) as connection:
        good = True
        pid = worker.process.pid
        connection.execute("INSERT INTO tasks (task_type, params, status) VALUES ('comfy', '{}', 'queued')")
        all_ended(connection, "comfy")  # refused at once: the handler is up, without a server
        handler = worker.handler_pid("comfy")
        shim = worker.handler("comfy")["pid"] and __import__("psutil").Process(handler).ppid()
        both = rss_mib(handler, shim)
        good &= say("idle comfy handler with its shim, resident", f"{both:.0f} MiB", "<= 80 MB", both <= 76)
        settle(3)
        before = cpu_s(pid)
        settle(IDLE_S)
        share = (cpu_s(pid) - before) / IDLE_S * 100
        good &= say("idle supervisor, share of a core over 60 s", f"{share:.2f} %", "<= 0.5 %", share <= 0.5)
        mine = rss_mib(pid)
        good &= say("supervisor, resident", f"{mine:.0f} MiB", "<= 90 MB", mine <= 86)
        good &= _start(worker)
    return good


def _start(worker: Worker) -> bool:
    import signal

    from tests.conftest_worker import launch

    took = []
    for _ in range(5):
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(20)
        started = time.monotonic()
        again = launch(worker.data_dir, "", worker.environ)
        took.append(time.monotonic() - started)
        worker.process = again.process
    return say(
        "start on an existing database → claims, p50",
        f"{percentile(took, 0.5):.2f} s",
        "<= 1.5 s",
        percentile(took, 0.5) <= 1.5,
    )


ALL: dict[str, Callable[[], bool]] = {
    "pickup": pickup,
    "throughput": throughput,
    "overhead": overhead,
    "idle": memory_and_start,
    "bulk": bulk,
    "bulk_output": bulk_output,
    "rest_claim": rest_claim,
    "rest_idle": rest_idle,
    "survivors": survivors,
    "sandbox": sandbox,
}


def main() -> int:
    """Exit status 1 when a target was missed."""
    sys.stdout.write(f"{machine()}\n")
    chosen = sys.argv[1:] or list(ALL)
    results = [ALL[name]() for name in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
