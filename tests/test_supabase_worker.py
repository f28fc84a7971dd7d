"""A whole worker on a Supabase project: rows by REST or SQL, results in Storage, and the project going away meanwhile."""

from __future__ import annotations

from urllib.request import urlopen

from tests.conftest_worker import Worker
from tests.supabase_stack import Stack


def test_a_row_becomes_an_object_in_the_bucket_whose_path_names_the_attempt(
    supabase_worker: Worker, supabase_stack: Stack
) -> None:
    task_id = supabase_worker.insert("maker", {"files": {"a.txt": "one", "b.txt": "two"}})
    row = supabase_worker.ended(task_id)
    assert row["status"] == "Complete", row
    (lease_id,) = [e["lease_id"] for e in supabase_worker.sql("SELECT lease_id FROM task_leases")]
    prefix = f"{task_id}/1-{lease_id[:8]}"
    assert sorted(supabase_stack.storage.paths("image_uploads")) == [f"{prefix}/a.txt", f"{prefix}/b.txt"]
    made = row["result_data"]["artifacts"]
    assert [urlopen(one["url"]).read() for one in made] == [b"one", b"two"]
    assert row["output_location"] == made[0]["url"] and "path" not in made[0]
    assert supabase_worker.spool_is_empty()
