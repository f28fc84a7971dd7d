"""What a hosted database has before anybody's first migration: PostgREST's roles, their rights, its watch on DDL."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Roles belong to the cluster, so whoever comes at the same time waits, and at the same database.
_ROLES = """
DO $roles$
BEGIN
    PERFORM pg_advisory_xact_lock(727102, 2);
    PERFORM FROM pg_roles LIMIT 1;
    IF to_regrole('anon') IS NULL THEN CREATE ROLE anon; END IF;
    IF to_regrole('authenticated') IS NULL THEN CREATE ROLE authenticated; END IF;
    IF to_regrole('service_role') IS NULL THEN CREATE ROLE service_role; END IF;
    IF to_regrole('authenticator') IS NULL THEN CREATE ROLE authenticator; END IF;
    ALTER ROLE anon NOLOGIN NOINHERIT;
    ALTER ROLE authenticated NOLOGIN NOINHERIT;
    ALTER ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
    ALTER ROLE authenticator LOGIN NOINHERIT PASSWORD {password};
    GRANT anon, authenticated, service_role TO authenticator;
    ALTER ROLE anon SET statement_timeout = '3s';
    ALTER ROLE authenticated SET statement_timeout = '8s';
    ALTER ROLE authenticator SET statement_timeout = '8s';
    ALTER ROLE authenticator SET lock_timeout = '8s';
END
$roles$
"""

# New objects are everybody's: hosted databases open them by default, and leave the rest to row level security.
_RIGHTS = """
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
CREATE SCHEMA IF NOT EXISTS extensions;
GRANT USAGE ON SCHEMA extensions TO anon, authenticated, service_role;
CREATE OR REPLACE FUNCTION extensions.pgrst_ddl_watch() RETURNS event_trigger LANGUAGE plpgsql
    AS $watch$ BEGIN NOTIFY pgrst, 'reload schema'; END $watch$;
CREATE SCHEMA IF NOT EXISTS auth;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
CREATE OR REPLACE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE
    AS $uid$ SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $uid$;
DROP EVENT TRIGGER IF EXISTS pgrst_ddl_watch;
DROP EVENT TRIGGER IF EXISTS pgrst_drop_watch;
CREATE EVENT TRIGGER pgrst_ddl_watch ON ddl_command_end EXECUTE FUNCTION extensions.pgrst_ddl_watch();
CREATE EVENT TRIGGER pgrst_drop_watch ON sql_drop EXECUTE FUNCTION extensions.pgrst_ddl_watch();
"""


def host_as_supabase(url: str) -> None:
    """Make the database behind ``url`` (a superuser's) one as a hosted project begins with. Safe to repeat."""
    ensure_roles(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_RIGHTS)


def ensure_roles(url: str) -> None:
    """The cluster's part of it alone."""
    statement = sql.SQL(_ROLES).format(password=sql.Literal(_password(url)))
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as connection:
        connection.execute(statement)


def authenticator_url(url: str) -> str:
    """As whom PostgREST logs in: the same database, with the fewest rights."""
    parts = conninfo_to_dict(url)
    place = "&".join(f"{name}={quote(str(parts[name]), safe='')}" for name in ("host", "port") if parts.get(name))
    return f"postgresql://authenticator:{_password(url)}@/{quote(str(parts['dbname']))}?{place}"


def _password(url: str) -> str:
    """One that is known wherever the superuser's is, so that everybody who ensures the roles sets the same."""
    return hashlib.sha256(f"authenticator {conninfo_to_dict(url).get('password')}".encode()).hexdigest()
