"""A Supabase project on this machine: a database, the real PostgREST, Storage and functions behind one address."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import TracebackType
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
from psycopg import sql

from tests.edge_functions import EdgeFunctions
from tests.postgrest import Postgrest
from tests.storage_stand_in import StorageStandIn
from tests.supabase_front import Front
from tests.supabase_keys import ProjectKeys

PATIENCE_S = 30.0
_markers = itertools.count(1)


class Stack:
    """``database`` is the superuser's URL, of a database made by ``host_as_supabase``. Enter it in the main thread.

    What a client needs: ``url`` and one of ``key`` (an opaque secret key), ``jwt_key`` (the same rights as a JWT),
    ``anon_key`` (nearly no rights) and ``pat`` (a user's personal access token, which only the functions know).
    """

    def __init__(self, database_url: str, directory: Path) -> None:
        self.database = database_url
        self.keys = ProjectKeys()
        self.key, self.jwt_key = self.keys.secret, self.keys.service_jwt
        self.anon_key, self.pat = self.keys.publishable, self.keys.personal_token
        self.front = Front(self.keys)
        self.url = self.front.url
        self.postgrest = Postgrest(database_url, self.keys.jwt_secret, directory)
        self.storage = StorageStandIn(self.keys.is_service, directory / "storage")
        self.functions = EdgeFunctions(database_url, self.keys.holder, self.storage, lambda: self.url)

    def __enter__(self) -> Stack:
        try:
            self.postgrest.start()
            self.front.start()
            self.front.serve_rest(self.postgrest.address)
            self.front.serve("/storage/v1/", self.storage)
            self.front.serve("/functions/v1/", self.functions)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to repeat."""
        self.front.close()
        self.postgrest.stop()

    def reload_schema(self) -> None:
        """Returns once PostgREST knows every table and function that the database has now."""
        marker = f"stack_marker_{next(_markers)}"
        name = sql.Identifier(marker)
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE FUNCTION {}() RETURNS int LANGUAGE sql AS 'SELECT 1'").format(name))
            connection.execute("NOTIFY pgrst, 'reload schema'")
            deadline = time.monotonic() + PATIENCE_S
            while not self._knows(marker):
                assert time.monotonic() < deadline, "PostgREST does not reload its picture of the schema"
                time.sleep(0.01)
            connection.execute(sql.SQL("DROP FUNCTION {}()").format(name))

    def _knows(self, function: str) -> bool:
        """Asked behind the front, where no fault and no record is."""
        address = f"{self.postgrest.address}/rpc/{function}"
        try:
            with urlopen(Request(address, headers={"Authorization": f"Bearer {self.jwt_key}"}), timeout=5):
                return True
        except HTTPError as error:
            error.close()
            return False
