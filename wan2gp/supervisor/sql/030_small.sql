-- Small functions that the others are made of. None of them is granted to anybody.

-- The status as the table spells it, whatever the case; an unknown one is refused with the valid ones named.
CREATE OR REPLACE FUNCTION public.wan2gp_fold(p_status text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $fn$
DECLARE
    v_plain text := lower(regexp_replace(btrim(p_status), '[\s_-]+', ' ', 'g'));
    v_status text := CASE v_plain
        WHEN 'queued' THEN 'Queued'
        WHEN 'in progress' THEN 'In Progress'
        WHEN 'complete' THEN 'Complete'
        WHEN 'failed' THEN 'Failed'
        WHEN 'cancelled' THEN 'Cancelled'
        WHEN 'canceled' THEN 'Cancelled'
    END;
BEGIN
    IF v_status IS NULL THEN
        RAISE EXCEPTION 'cannot set the status %: it is not one of Queued, In Progress, Complete, Failed, Cancelled',
            coalesce(quote_literal(p_status), 'NULL')
            USING ERRCODE = 'check_violation', HINT = 'Upper and lower case do not matter.';
    END IF;
    RETURN v_status;
END
$fn$;

-- A task id given as text; null when it cannot be one, so that a mistyped id is "no such task" and not an error.
CREATE OR REPLACE FUNCTION public.wan2gp_uuid(p_text text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $fn$
    SELECT CASE WHEN p_text ~* '^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$' THEN p_text::uuid END
$fn$;

-- params as the handlers read them: a JSON string holding JSON is what it holds.
CREATE OR REPLACE FUNCTION public.wan2gp_params(p_params jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $fn$
BEGIN
    IF jsonb_typeof(p_params) IS DISTINCT FROM 'string' THEN
        RETURN p_params;
    END IF;
    BEGIN
        RETURN (p_params #>> '{}')::jsonb;
    EXCEPTION WHEN data_exception OR statement_too_complex OR program_limit_exceeded THEN
        RETURN p_params;
    END;
END
$fn$;

-- The public name of the lease that a token proves; it tells nothing of the token. One follows from the other so that
-- whoever comes with an old token can be told what became of its files.
CREATE OR REPLACE FUNCTION public.wan2gp_lease_id(p_token text) RETURNS text LANGUAGE sql STABLE AS $fn$
    SELECT left(encode(sha256(convert_to(p_token, 'UTF8')), 'hex'), 32)
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_note(
    p_task uuid, p_name text, p_detail jsonb, p_worker text DEFAULT NULL, p_attempt int DEFAULT NULL
) RETURNS void LANGUAGE sql VOLATILE AS $fn$
    INSERT INTO public.task_events (task_id, name, detail, worker_id, attempt)
    VALUES (p_task, p_name, coalesce(jsonb_strip_nulls(p_detail), '{}'), p_worker, p_attempt)
$fn$;

-- Registers the worker's contact; waits for nobody, for a beat that waits lets leases expire. True when it is time for
-- the worker's housekeeping (about every eighth of a lease); only a claim asks for that, by p_house.
-- A silence of two thirds of a lease breaks the contact: an outage long enough to let another worker's lease run out
-- (renewed every third of a lease at least) has then broken the contact of all who suffered it. So does a clock that was
-- set forward, under which all leases run out at once; and one that was set back, since nobody knows then for how long
-- there was silence: a stamp from the future would else be taken for contact, or for housekeeping done, for all that time.
CREATE OR REPLACE FUNCTION public.wan2gp_contact(p_worker text, p_lease_s float8, p_house boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_old public.worker_contacts;
    v_tick interval := make_interval(secs => p_lease_s / 8);
    v_latest timestamptz := clock_timestamp() + v_tick;  -- no stamp of an honest clock is later
    v_due boolean;
BEGIN
    SELECT * INTO v_old FROM public.worker_contacts c WHERE c.worker_id = p_worker;
    IF NOT FOUND THEN
        INSERT INTO public.worker_contacts (worker_id, lease_s) VALUES (p_worker, p_lease_s)
            ON CONFLICT (worker_id) DO NOTHING;
        RETURN false;
    END IF;
    v_due := p_house AND coalesce(v_old.rescued_at NOT BETWEEN now() - v_tick AND v_latest, true);
    IF v_old.last_seen BETWEEN now() - v_tick AND v_latest AND v_old.lease_s = p_lease_s AND NOT v_due THEN
        RETURN false;
    END IF;
    PERFORM FROM public.worker_contacts c WHERE c.worker_id = p_worker FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE public.worker_contacts c
       SET since = CASE WHEN c.last_seen BETWEEN now() - make_interval(secs => p_lease_s * 2 / 3) AND v_latest
                         AND c.since <= v_latest THEN c.since ELSE now() END,
           last_seen = CASE WHEN c.last_seen <= v_latest THEN greatest(c.last_seen, now()) ELSE now() END,
           lease_s = p_lease_s,
           rescued_at = CASE WHEN v_due THEN now() ELSE c.rescued_at END
     WHERE c.worker_id = p_worker;
    RETURN v_due;
END
$fn$;

-- For how long both this worker's contact and the server have been unbroken, in seconds. A server that has started in the
-- future tells nothing but that its clock was set back since: that broke the contact, which then counts alone.
CREATE OR REPLACE FUNCTION public.wan2gp_quiet_s(p_worker text) RETURNS float8 LANGUAGE sql STABLE AS $fn$
    SELECT extract(epoch FROM now() - greatest(c.since, CASE WHEN pg_postmaster_start_time() <= clock_timestamp()
                                                             THEN pg_postmaster_start_time() END))::float8
      FROM public.worker_contacts c WHERE c.worker_id = p_worker
$fn$;

-- Stamps from the future, which the database's clock leaves when it is set back (by hand, by NTP, by a fail-over to a
-- machine that lags). No lease of ours ends later than its length from now, and no pause that we ordered either: one that
-- does is counted from now on, else a dead worker's task, or one that was to wait for a second, would stay where it is for
-- as long as the clock went back. A living worker's next beat renews its lease anyway. What somebody set as the time of a
-- row is what he meant, and stays. The clock is asked, not the transaction: what others have just written is not later.
CREATE OR REPLACE FUNCTION public.wan2gp_mend_stamps() RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_ids uuid[];
BEGIN
    UPDATE public.task_leases l SET expires_at = clock_timestamp() + make_interval(secs => l.lease_s)
     WHERE l.task_id IN (SELECT m.task_id FROM public.task_leases m
                          WHERE m.token IS NOT NULL AND m.expires_at > clock_timestamp() + make_interval(secs => m.lease_s)
                            FOR UPDATE SKIP LOCKED);
    v_ids := ARRAY(SELECT l.task_id FROM public.task_leases l
                    WHERE l.wait_until IS NOT NULL AND l.wait_until > clock_timestamp() + make_interval(secs => l.wait_s)
                    LIMIT 1000);
    IF cardinality(v_ids) > 0 THEN
        UPDATE public.tasks t SET run_after = clock_timestamp() + make_interval(secs => l.wait_s)
          FROM public.task_leases l
         WHERE t.id IN (SELECT s.id FROM public.tasks s WHERE s.id = ANY (v_ids) FOR NO KEY UPDATE SKIP LOCKED)
           AND l.task_id = t.id AND t.status = 'Queued' AND t.run_after = l.wait_until;
        UPDATE public.task_leases l SET wait_until = t.run_after
          FROM public.tasks t
         WHERE l.task_id = ANY (v_ids) AND t.id = l.task_id AND t.run_after < l.wait_until;
    END IF;
    UPDATE public.task_dependencies d SET missing_since = now()
     WHERE d.missing_since IS NOT NULL AND d.missing_since > clock_timestamp();
END
$fn$;

-- Locks the parents of these tasks from the root down, then the tasks: everybody locks families in this order.
CREATE OR REPLACE FUNCTION public.wan2gp_lock_family(p_ids uuid[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
BEGIN
    IF NOT EXISTS (SELECT FROM public.task_children c WHERE c.child_id = ANY (p_ids)) THEN
        IF cardinality(p_ids) > 1 THEN
            PERFORM FROM public.tasks t WHERE t.id = ANY (p_ids) ORDER BY t.id FOR NO KEY UPDATE;
        END IF;
        RETURN;
    END IF;
    PERFORM FROM public.tasks t
      JOIN (WITH RECURSIVE up(origin, id, height) AS (
                SELECT u.id, u.id, 0 FROM unnest(p_ids) AS u(id)
                UNION ALL
                SELECT up.origin, c.parent_id, up.height + 1
                  FROM up JOIN public.task_children c ON c.child_id = up.id WHERE up.height < 100
            ), tall AS (SELECT up.origin, max(up.height) AS top FROM up GROUP BY up.origin)
            SELECT up.id, min(tall.top - up.height) AS depth FROM up JOIN tall USING (origin) GROUP BY up.id
           ) AS family ON family.id = t.id
     ORDER BY family.depth, t.id FOR NO KEY UPDATE OF t;
END
$fn$;
