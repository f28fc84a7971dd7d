"""Has a URL fetched and tells the size; `params["other"]` is fetched instead where given as a list of characters."""

from __future__ import annotations

from wan2gp.handlers.api import Handler, Job
from wan2gp.protocol import Outcome, Source, Succeeded


class Vice(Handler):
    def run(self, job: Job) -> Outcome:
        url = "".join(job.params["other"]) if "other" in job.params else job.params["url"]
        files = job.fetch({"thing": Source(url, job.params.get("kind", "any"))})
        return Succeeded((), data={"bytes": files["thing"].stat().st_size, "name": files["thing"].name})
