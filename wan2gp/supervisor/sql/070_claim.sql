-- Claim and heartbeat: the two calls that a worker makes all the time.

-- What p_claim_id holds now, as the claim answers it. "Is live" is put in a way that no index promises, so that a
-- planner without statistics cannot prefer the index on expiry and read all leases there are.
CREATE OR REPLACE FUNCTION public.wan2gp_claimed(p_claim_id text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN (
        SELECT jsonb_agg(jsonb_build_object(
                   'id', t.id, 'task_type', t.task_type,
                   'params', CASE WHEN jsonb_typeof(t.params) = 'string' THEN public.wan2gp_params(t.params) ELSE t.params END,
                   'attempt', l.attempt, 'max_attempts', t.max_attempts, 'token', l.token, 'lease_id', l.lease_id,
                   'user_id', t.user_id, 'project_id', t.project_id, 'created_at', t.created_at,
                   'failures', l.failures, 'losses', l.losses)
                   ORDER BY t.priority DESC, t.created_at, t.id)
          FROM public.task_leases l JOIN public.tasks t ON t.id = l.task_id
         WHERE l.claim_id = p_claim_id AND coalesce(l.token, '') <> '');
END
$fn$;

-- Gives a row that is locked to the worker, under a lease of its own. False when a trigger of others would not have it.
CREATE OR REPLACE FUNCTION public.wan2gp_lease_out(p_claim_id text, p_worker text, p_id uuid, p_lease_s float8)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_token text := replace(gen_random_uuid()::text, '-', '');
BEGIN
    WITH taken AS (
        UPDATE public.tasks t
           SET status = 'In Progress', worker_id = p_worker, error_message = NULL,
               attempts = least(greatest(coalesce(t.attempts, 0), 0), 1000000000) + 1,  -- whatever somebody wrote there
               generation_started_at = now(), generation_processed_at = NULL, updated_at = now()
         WHERE t.id = p_id
        RETURNING t.id, t.attempts
    ), logged AS (
        INSERT INTO public.task_events (task_id, name, worker_id, attempt)
        SELECT taken.id, 'claimed', p_worker, taken.attempts FROM taken
    )
    INSERT INTO public.task_leases AS l
        (task_id, worker_id, token, lease_id, claim_id, attempt, lease_s, claimed_at, expires_at)
    SELECT taken.id, p_worker, v_token, public.wan2gp_lease_id(v_token), p_claim_id, taken.attempts, p_lease_s,
           now(), now() + make_interval(secs => p_lease_s)
      FROM taken
    ON CONFLICT (task_id) DO UPDATE
       SET worker_id = excluded.worker_id, token = excluded.token, lease_id = excluded.lease_id,
           claim_id = excluded.claim_id, attempt = excluded.attempt, lease_s = excluded.lease_s,
           claimed_at = excluded.claimed_at, expires_at = excluded.expires_at,
           progress = NULL, phase = NULL, detail = NULL, parked_lease = NULL, completing = false,
           wait_until = NULL, wait_s = NULL;
    RETURN FOUND;
END
$fn$;

-- Claims one row of a type. True when there was one. The planner's other ideas are ruled out for the whole claim (see
-- the function's settings): a plan made while the table was tiny lives as long as the session.
CREATE OR REPLACE FUNCTION public.wan2gp_claim_one(p_claim_id text, p_worker text, p_type text, p_lease_s float8)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid;
BEGIN
    SELECT t.id INTO v_id FROM public.tasks t
     WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NULL AND t.task_type = p_type
     ORDER BY t.priority DESC, t.created_at, t.id
     LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND AND public.wan2gp_lease_out(p_claim_id, p_worker, v_id, p_lease_s);
END
$fn$;

-- Whether a row asks for the model that is loaded: by the name in its params, else by what its type stands for. NULL as
-- the loaded model: any will do. To read a name in params of megabytes would cost more than it brings: they are not warm.
CREATE OR REPLACE FUNCTION public.wan2gp_is_warm(p_params jsonb, p_known text, p_loaded text) RETURNS boolean
LANGUAGE sql STABLE AS $fn$
    SELECT p_loaded IS NULL OR CASE
        WHEN pg_column_size(p_params) <= 32768
        THEN coalesce(coalesce(nullif(public.wan2gp_params(p_params) ->> 'model', ''), p_known) = p_loaded, false)
        ELSE false END
$fn$;

-- Claims a row for which nothing need be loaded, when the first row of p_type, whose turn it is, would have something
-- loaded for it: one of the same priority, the oldest first. False when there is none, or the turn is to be kept.
-- p_prefer: [{types: {<type>: <the model that it stands for>, …}, model: <what is loaded>, others: [<type>, …]}, …]; a
-- group is of types that share a place to load to, and no row of a type outside is ever passed.
CREATE OR REPLACE FUNCTION public.wan2gp_claim_warm(
    p_claim_id text, p_worker text, p_lease_s float8, p_prefer jsonb, p_types text[], p_type text
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_group jsonb;
    v_priority int;
    v_params jsonb;
    v_id uuid;
BEGIN
    SELECT g.value INTO v_group
      FROM jsonb_array_elements(CASE WHEN jsonb_typeof(p_prefer) = 'array' THEN p_prefer ELSE '[]' END) AS g
     WHERE jsonb_typeof(g.value -> 'types') = 'object' AND (g.value -> 'types' ? p_type OR g.value -> 'others' ? p_type)
     LIMIT 1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT t.priority, t.params INTO v_priority, v_params FROM public.tasks t
     WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NULL AND t.task_type = p_type
     ORDER BY t.priority DESC, t.created_at, t.id LIMIT 1;
    IF NOT FOUND OR v_group -> 'types' ? p_type
                    AND public.wan2gp_is_warm(v_params, v_group -> 'types' ->> p_type, v_group ->> 'model') THEN
        RETURN false;
    END IF;
    FOR v_id IN
        SELECT h.id FROM jsonb_each_text(v_group -> 'types') AS w(task_type, known)
          CROSS JOIN LATERAL (
            SELECT t.id, t.created_at, t.params FROM public.tasks t
             WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NULL
               AND t.task_type = w.task_type AND t.priority = v_priority
             ORDER BY t.priority DESC, t.created_at, t.id LIMIT 32) AS h
         WHERE w.task_type = ANY (p_types) AND public.wan2gp_is_warm(h.params, w.known, v_group ->> 'model')
         ORDER BY h.created_at, h.id LIMIT 8
    LOOP
        PERFORM FROM public.tasks t
          WHERE t.id = v_id AND t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NULL
            FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND AND public.wan2gp_lease_out(p_claim_id, p_worker, v_id, p_lease_s) THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$fn$;

-- Answers {tasks: [...], next_due_s}. The same p_claim_id gives the same rows for as long as they are held.
-- With p_prefer (see wan2gp_claim_warm) it also says how many of them went before an older one: passed, which a repeat of
-- the claim does not know any more. The functions of an earlier contract must go: beside them, a call without p_prefer
-- would be ambiguous.
DROP FUNCTION IF EXISTS public.wan2gp_claim(text, text, text[], int, float8);
DROP FUNCTION IF EXISTS public.wan2gp_claim_bare(text, text, text[], int, float8);
CREATE OR REPLACE FUNCTION public.wan2gp_claim(
    p_claim_id text, p_worker text, p_types text[], p_limit int, p_lease_s float8, p_prefer jsonb DEFAULT NULL
) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_tasks jsonb;
    v_type text;
    v_count int := 0;
    v_passed int := 0;
    v_found boolean;
    v_due timestamptz;
    v_patience text := current_setting('lock_timeout');
BEGIN
    -- A repeat may overtake the call that it repeats; it waits here until that one is committed.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_claim_id, 727102));
    -- A claim that a crash of the server forgets was never made, and the fence refuses its work: no disk is waited for.
    PERFORM set_config('synchronous_commit', 'off', true);
    v_tasks := public.wan2gp_claimed(p_claim_id);
    IF v_tasks IS NOT NULL THEN
        RETURN jsonb_build_object('tasks', v_tasks, 'next_due_s', NULL);
    END IF;
    IF public.wan2gp_contact(p_worker, p_lease_s, true) THEN
        BEGIN
            PERFORM set_config('lock_timeout', '1s', true);
            PERFORM public.wan2gp_keep_house(p_worker);
            PERFORM set_config('lock_timeout', v_patience, true);
        EXCEPTION WHEN OTHERS THEN  -- whatever is wrong there, claiming goes on
            RAISE WARNING 'cannot keep house: %', SQLERRM;
        END;
    END IF;
    IF EXISTS (SELECT FROM public.tasks t WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after <= now()) THEN
        UPDATE public.tasks t SET run_after = NULL
         WHERE t.id IN (SELECT d.id FROM public.tasks d
                         WHERE d.status = 'Queued' AND d.open_dependencies = 0 AND d.run_after <= now()
                         ORDER BY d.run_after LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED);
    END IF;

    WHILE v_count < p_limit LOOP
        v_found := false;
        IF cardinality(p_types) = 1 AND p_prefer IS NULL THEN
            v_found := public.wan2gp_claim_one(p_claim_id, p_worker, p_types[1], p_lease_s);
        ELSE
            -- The first row of each type, unlocked, gives the order of the types; the claim itself locks only what it takes.
            FOR v_type IN
                SELECT w.task_type FROM (SELECT DISTINCT u.task_type FROM unnest(p_types) AS u(task_type)) AS w
                  CROSS JOIN LATERAL (
                    SELECT t.priority, t.created_at FROM public.tasks t
                     WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NULL
                       AND t.task_type = w.task_type
                     ORDER BY t.priority DESC, t.created_at, t.id LIMIT 1) AS head
                 ORDER BY head.priority DESC, head.created_at
            LOOP
                IF p_prefer IS NOT NULL THEN
                    v_found := public.wan2gp_claim_warm(p_claim_id, p_worker, p_lease_s, p_prefer, p_types, v_type);
                    v_passed := v_passed + v_found::int;
                    EXIT WHEN v_found;
                END IF;
                v_found := public.wan2gp_claim_one(p_claim_id, p_worker, v_type, p_lease_s);
                EXIT WHEN v_found;
            END LOOP;
        END IF;
        EXIT WHEN NOT v_found;
        v_count := v_count + 1;
    END LOOP;

    IF v_count < p_limit THEN
        SELECT t.run_after INTO v_due FROM public.tasks t
         WHERE t.status = 'Queued' AND t.open_dependencies = 0 AND t.run_after IS NOT NULL
           AND t.run_after < 'infinity'  -- from which no time can be taken
         ORDER BY t.run_after LIMIT 1;
    END IF;
    RETURN jsonb_build_object(
        'tasks', CASE WHEN v_count = 0 THEN '[]' ELSE public.wan2gp_claimed(p_claim_id) END,
        'next_due_s', CASE WHEN v_due IS NOT NULL THEN greatest(extract(epoch FROM v_due - clock_timestamp()), 0) END,
        'passed', CASE WHEN p_prefer IS NOT NULL THEN v_passed END);
END
$fn$;

-- The same claim for a caller that cannot hold what some row has in its params: they are left out of the answer, which
-- says instead how many bytes they are as text.
CREATE OR REPLACE FUNCTION public.wan2gp_claim_bare(
    p_claim_id text, p_worker text, p_types text[], p_limit int, p_lease_s float8, p_prefer jsonb DEFAULT NULL
) RETURNS jsonb LANGUAGE sql VOLATILE AS $fn$
    SELECT jsonb_set(claim.reply, '{tasks}', coalesce(
               (SELECT jsonb_agg(t.value - 'params' || jsonb_build_object('params_bytes', octet_length(t.value ->> 'params'))
                                 ORDER BY t.n)
                  FROM jsonb_array_elements(claim.reply -> 'tasks') WITH ORDINALITY AS t(value, n)), '[]'))
      FROM public.wan2gp_claim(p_claim_id, p_worker, p_types, p_limit, p_lease_s, p_prefer) AS claim(reply)
$fn$;

-- The worker's row, as a pod scaler reads it: the time, and metadata of which only our own keys change. A worker that was
-- being born is active now; whoever is 'terminating', 'error' or 'terminated' stays so, since that is the scaler's word.
-- Whatever a foreign trigger thinks of that row, the leases are renewed all the same.
-- True, and nothing is written, when the row is another instance's: two workers of one id would take back each other's
-- tasks. The condition is a part of the write, so that of two who come at once only one gets it.
DROP FUNCTION IF EXISTS public.wan2gp_be_seen(text, jsonb);  -- of an earlier contract
CREATE OR REPLACE FUNCTION public.wan2gp_seen_as(p_worker text, p_lease_s float8, p_metadata jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_said jsonb := CASE WHEN jsonb_typeof(p_metadata) = 'object' THEN p_metadata - 'takeover' ELSE '{}' END;
    v_takeover boolean := coalesce(p_metadata -> 'takeover' = 'true', false);
BEGIN
    IF v_takeover THEN
        NOTIFY wan2gp_tasks;  -- who is superseded shall hear of it before its next beat is due
        IF EXISTS (SELECT FROM public.workers w
                    WHERE w.id = p_worker AND public.wan2gp_is_another(w.metadata, w.last_heartbeat, p_lease_s, p_metadata)) THEN
            UPDATE public.worker_contacts c SET taken_over_at = now()
             WHERE c.worker_id IN (
                SELECT x.worker_id FROM public.worker_contacts x WHERE x.worker_id = p_worker FOR UPDATE SKIP LOCKED);
        END IF;
    END IF;
    UPDATE public.workers w
       SET last_heartbeat = now(), updated_at = now(),
           metadata = CASE WHEN jsonb_typeof(w.metadata) = 'object' THEN w.metadata || v_said ELSE v_said END,
           status = CASE WHEN w.status IS NULL OR w.status::text IN ('inactive', 'spawning', 'crashed') THEN 'active'
                         ELSE w.status END
     WHERE w.id IN (SELECT x.id FROM public.workers x WHERE x.id = p_worker FOR NO KEY UPDATE SKIP LOCKED)
       AND (v_takeover OR NOT public.wan2gp_is_another(w.metadata, w.last_heartbeat, p_lease_s, p_metadata));
    IF FOUND THEN
        RETURN false;
    END IF;
    IF NOT EXISTS (SELECT FROM public.workers w WHERE w.id = p_worker) THEN
        INSERT INTO public.workers (id, instance_type, status, last_heartbeat, metadata)
            VALUES (p_worker, 'external', 'active', now(), v_said) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NOT v_takeover AND EXISTS (
        SELECT FROM public.workers w
         WHERE w.id = p_worker AND public.wan2gp_is_another(w.metadata, w.last_heartbeat, p_lease_s, p_metadata));
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'cannot write the row of the worker %: %', p_worker, SQLERRM;
    RETURN false;
END
$fn$;

-- Whether a worker's row is that of another living instance than the one that says p_metadata: one that was heard of within
-- a lease and has not said that it stopped. An instance is a data directory, so a worker that starts again is the same.
CREATE OR REPLACE FUNCTION public.wan2gp_is_another(
    p_theirs jsonb, p_heard_at timestamptz, p_lease_s float8, p_ours jsonb
) RETURNS boolean LANGUAGE sql STABLE AS $fn$
    SELECT coalesce(p_theirs ->> 'instance' <> p_ours ->> 'instance'
                    AND p_theirs ->> 'state' IS DISTINCT FROM 'stopped'
                    AND p_heard_at BETWEEN now() - make_interval(secs => p_lease_s)
                                       AND now() + make_interval(secs => p_lease_s), false)
$fn$;

-- Renews leases, stores progress, writes the worker's row; waits for no lock. Answers {cancelled: [...], lost: [...],
-- superseded}. superseded: the worker's id is another instance's now, and nothing was renewed.
CREATE OR REPLACE FUNCTION public.wan2gp_heartbeat(
    p_worker text, p_leases jsonb, p_lease_s float8, p_metadata jsonb DEFAULT '{}'
) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_renewed uuid[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF public.wan2gp_seen_as(p_worker, p_lease_s, p_metadata) THEN
        RETURN jsonb_build_object('cancelled', '[]'::jsonb, 'lost', '[]'::jsonb, 'superseded', true);
    END IF;
    PERFORM public.wan2gp_contact(p_worker, p_lease_s, false);

    -- A lease that is locked is being ended at this moment: the next beat tells. Waiting here would let all the others expire.
    WITH beats AS (
        SELECT public.wan2gp_uuid(b.task_id) AS task_id, b.token, b.progress, b.phase, b.detail
          FROM jsonb_to_recordset(p_leases) AS b(task_id text, token text, progress float8, phase text, detail text)
    ), held AS MATERIALIZED (
        SELECT l.task_id, b.progress, b.phase, b.detail, l.progress AS was, l.phase AS phase_was
          FROM beats b JOIN public.task_leases l ON l.task_id = b.task_id AND l.token = b.token
           FOR UPDATE OF l SKIP LOCKED
    ), logged AS (
        INSERT INTO public.task_events (task_id, name, worker_id, detail)
        SELECT h.task_id, 'progress', p_worker, jsonb_strip_nulls(jsonb_build_object(
                   'phase', h.phase, 'progress', h.progress, 'detail', h.detail))
          FROM held h
         WHERE h.phase IS DISTINCT FROM h.phase_was AND h.phase IS NOT NULL
            OR floor(h.progress * 4) > floor(coalesce(h.was, 0) * 4)
    ), renewed AS (
        UPDATE public.task_leases l
           SET expires_at = now() + make_interval(secs => p_lease_s), lease_s = p_lease_s,
               progress = coalesce(h.progress, l.progress), phase = coalesce(h.phase, l.phase), detail = h.detail
          FROM held h WHERE l.task_id = h.task_id
        RETURNING l.task_id
    )
    SELECT array_agg(renewed.task_id) INTO v_renewed FROM renewed;
    UPDATE public.tasks t SET updated_at = now()
     WHERE t.id IN (SELECT s.id FROM public.tasks s WHERE s.id = ANY (v_renewed) AND s.status = 'In Progress'
                       FOR NO KEY UPDATE SKIP LOCKED);

    RETURN (
        SELECT jsonb_build_object(
            'superseded', false,
            'cancelled', coalesce(jsonb_agg(b.task_id) FILTER (WHERE l.task_id IS NOT NULL AND t.status = 'Cancelled'), '[]'),
            'lost', coalesce(jsonb_agg(b.task_id) FILTER (
                WHERE l.task_id IS NULL OR t.id IS NULL
                   OR t.status NOT IN ('In Progress', 'Cancelled') AND NOT (t.status = 'Complete' AND l.completing)), '[]'))
          FROM jsonb_to_recordset(p_leases) AS b(task_id text, token text)
          LEFT JOIN public.task_leases l ON l.task_id = public.wan2gp_uuid(b.task_id) AND l.token = b.token
          LEFT JOIN public.tasks t ON t.id = l.task_id);
END
$fn$;
