"""One worker for all tests of a module that leave it as they found it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest_db import PgServer
from tests.conftest_worker import Worker, launch, surely_end, worker_environment


@contextlib.contextmanager
def shared_worker(
    path: Path, server: PgServer, *options: str, within: Sequence[str] = (), **environ: str
) -> Iterator[Worker]:
    """A running worker on a database of its own; `environ` adds variables, `within` is that of `launch`."""
    server.start_server()
    url = server.new_database(server.contract_template())
    run_dir = Path(tempfile.mkdtemp(prefix="w2g-"))
    variables = worker_environment(path, run_dir, **{"DATABASE_URL": url, "WORKER_ID": "shared", **environ})
    started: list[Worker] = []
    try:
        started.append(launch(path / "shared", url, variables, *options, within=within))
        yield started[0]
    finally:
        surely_end(started)
        shutil.rmtree(run_dir, ignore_errors=True)
        server.start_server()
        server.drop_database(url)
