-- The end of leases. Every way a lease can end goes through wan2gp_settle.

-- Ends one lease. The caller has locked the family. Answers {accepted, status, repeated}, and kept when it is refused.
CREATE OR REPLACE FUNCTION public.wan2gp_settle(
    p_task uuid, p_token text, p_verb text, p_output text, p_error text, p_result jsonb, p_cause jsonb, p_retry_in_s float8
) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_lease public.task_leases;
    v_old public.tasks.status%TYPE;
    v_new public.tasks.status%TYPE;
    v_max int;
    v_name text;
    v_error text := p_error;
    v_after timestamptz;
    v_history jsonb;
    v_final boolean;
BEGIN
    SELECT t.status, t.max_attempts INTO v_old, v_max FROM public.tasks t WHERE t.id = p_task FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN public.wan2gp_refused(p_task, p_token);
    END IF;
    -- No lock on the lease: whoever changes its token holds the task's row, as we do now.
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = p_task;
    IF v_lease.token IS NULL OR p_token IS NULL OR v_lease.token <> p_token THEN
        IF v_lease.token IS NULL AND v_lease.last_token = p_token AND p_verb = 'complete'
           AND (v_lease.last_verb, v_old::text) IN (('withhold', 'Failed'), ('completing', 'Complete')) THEN
            RETURN public.wan2gp_settle_late(v_lease, v_old::text, p_output, p_result, p_cause);
        END IF;
        IF v_lease.last_token = p_token AND v_lease.last_verb = p_verb THEN
            RETURN jsonb_build_object('accepted', true, 'status', v_old, 'repeated', true);
        END IF;
        RETURN public.wan2gp_refused(p_task, p_token);
    END IF;
    IF v_lease.completing AND v_old = 'Complete' THEN
        IF p_verb = 'complete' THEN
            RETURN public.wan2gp_settle_late(v_lease, v_old::text, p_output, p_result, p_cause);
        END IF;
        -- Its worker is not heard of, or says otherwise: the row is Complete all the same, and what it still owes stays
        -- welcome.
        UPDATE public.task_leases l
           SET token = NULL, last_token = p_token, last_verb = 'completing', completing = false
         WHERE l.task_id = p_task;
        PERFORM public.wan2gp_note(p_task, 'completed', jsonb_build_object('verb', p_verb, 'cause', p_cause),
            v_lease.worker_id, v_lease.attempt);
        RETURN public.wan2gp_refused(p_task, p_token);
    END IF;
    v_history := v_lease.history;
    IF p_verb <> 'complete' OR p_cause IS NOT NULL THEN
        v_history := CASE WHEN jsonb_array_length(v_history) >= 20 THEN v_history - 1 ELSE v_history END
            || jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
                'attempt', v_lease.attempt, 'verb', p_verb, 'worker', v_lease.worker_id, 'lease', v_lease.lease_id,
                'started_at', v_lease.claimed_at, 'ended_at', now(), 'error_message', p_error))
                || coalesce(p_cause, '{}'));
    END IF;
    IF v_old <> 'In Progress' THEN
        -- It was cancelled, or somebody else moved the row. Only the news that a cancelled task has stopped is welcome.
        v_final := v_old = 'Cancelled' AND p_verb = 'cancel';
        UPDATE public.task_leases l
           SET token = NULL, last_token = p_token, last_verb = CASE WHEN v_final THEN p_verb ELSE 'refused' END,
               history = v_history, completing = false
         WHERE l.task_id = p_task;
        PERFORM public.wan2gp_note(p_task, CASE WHEN v_final THEN 'stopped' ELSE 'refused' END,
            jsonb_build_object('verb', p_verb, 'cause', p_cause), v_lease.worker_id, v_lease.attempt);
        IF NOT v_final THEN
            RETURN public.wan2gp_refused(p_task, p_token);
        END IF;
        RETURN jsonb_build_object('accepted', true, 'status', v_old, 'repeated', false);
    END IF;

    v_new := 'Queued';
    IF p_verb = 'complete' THEN
        v_new := 'Complete';
        v_name := 'completed';
        v_error := NULL;
    ELSIF p_verb = 'fail' THEN
        v_new := 'Failed';
        v_name := 'failed';
        v_lease.failures := v_lease.failures + 1;
    ELSIF p_verb = 'withhold' THEN
        v_new := 'Failed';  -- no failure of the task's own: its work is done
        v_name := 'withheld';
    ELSIF p_verb = 'cancel' THEN
        v_new := 'Cancelled';  -- its trigger writes the event
    ELSIF p_verb = 'retry' THEN
        v_lease.failures := v_lease.failures + 1;
        v_name := 'retried';
        IF v_lease.failures >= v_max THEN
            v_new := 'Failed';
            v_name := 'failed';
        END IF;
    ELSIF p_verb = 'loss' THEN
        v_lease.losses := v_lease.losses + 1;
        v_name := 'retried';
        IF v_lease.losses >= 2 THEN
            v_new := 'Failed';
            v_name := 'failed';
            v_error := left(CASE WHEN p_cause ->> 'kind' = 'lease_forgotten'
                                 THEN 'task.poisoned: again and again it was claimed and its worker never knew of it'
                                 ELSE 'task.poisoned: its process died twice under this task' END
                || coalesce('; the last time: ' || nullif(p_error, ''), ''), 2000);
        END IF;
    ELSIF p_verb = 'release' THEN
        v_lease.interruptions := v_lease.interruptions + 1;
        v_name := 'released';
    ELSE
        RAISE EXCEPTION 'cannot end a lease with the verb %: it is not one of complete, fail, withhold, retry, loss, release, cancel',
            coalesce(quote_literal(p_verb), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_final := v_new <> 'Queued';
    IF NOT v_final AND p_retry_in_s > 0 THEN
        v_after := now() + make_interval(secs => p_retry_in_s);
    END IF;

    -- The lease first: the triggers of the row then see that it has ended by our own hand.
    UPDATE public.task_leases l
       SET token = NULL, last_token = p_token, last_verb = p_verb, history = v_history, failures = v_lease.failures,
           losses = v_lease.losses, interruptions = v_lease.interruptions, completing = false,
           wait_until = v_after, wait_s = CASE WHEN v_after IS NOT NULL THEN p_retry_in_s END
     WHERE l.task_id = p_task;
    UPDATE public.tasks t
       SET status = v_new,
           worker_id = CASE WHEN v_final THEN t.worker_id END,
           attempts = CASE WHEN p_verb = 'release' THEN greatest(t.attempts - 1, 0) ELSE t.attempts END,
           error_message = v_error,
           output_location = CASE WHEN p_verb = 'complete' THEN p_output ELSE t.output_location END,
           result_data = CASE WHEN v_final THEN coalesce(p_result, '{}')
               || CASE WHEN v_history = '[]' THEN '{}' ELSE jsonb_build_object('attempts', v_history) END
               ELSE t.result_data END,
           run_after = v_after,
           generation_started_at = CASE WHEN v_final THEN t.generation_started_at END,
           generation_processed_at = CASE WHEN v_final THEN now() END,
           updated_at = now()
     WHERE t.id = p_task;
    IF v_name IS NOT NULL THEN
        INSERT INTO public.task_events (task_id, name, worker_id, attempt, detail)
        VALUES (p_task, v_name, v_lease.worker_id, v_lease.attempt, jsonb_strip_nulls(jsonb_build_object(
            'error_message', v_error, 'cause', p_cause, 'retry_in_s', p_retry_in_s)));
    END IF;
    RETURN jsonb_build_object('accepted', true, 'status', v_new, 'repeated', false);
END
$fn$;

-- The answer to a settlement that is refused: {accepted, status, repeated, kept}. kept: what was published under this
-- token's lease is what the row shows, or what a generation of the app names, so that it must not be deleted. Such a file
-- has the first eight characters of the lease's id in its path; what complete_task showed under this lease is its own even
-- when that tells no lease.
CREATE OR REPLACE FUNCTION public.wan2gp_refused(p_task uuid, p_token text) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_row public.tasks;
    v_lease public.task_leases;
    v_mark text;
    v_kept boolean;
BEGIN
    SELECT * INTO v_row FROM public.tasks t WHERE t.id = p_task;
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = p_task;
    v_kept := coalesce(v_row.status::text = 'Complete' AND v_lease.token IS NULL
        AND v_lease.last_token = p_token AND v_lease.last_verb = 'completing'
        AND coalesce(v_row.output_location, '') !~ (p_task || '/[0-9]+-[0-9a-f]{8}/'), false);
    FOREACH v_mark IN ARRAY ARRAY[  -- a lease that was claimed under an earlier contract has an id of its own
        public.wan2gp_lease_id(p_token),
        CASE WHEN coalesce(v_lease.token, v_lease.last_token) = p_token THEN v_lease.lease_id END]
    LOOP
        v_mark := left(v_mark, 8);
        CONTINUE WHEN v_kept OR v_mark IS NULL;
        v_kept := coalesce(v_row.status::text = 'Complete' AND (
                      position(v_mark IN coalesce(v_row.output_location, '')) > 0
                      OR position(v_mark IN coalesce(v_row.result_data ->> 'artifacts', '')) > 0), false)
                  OR public.wan2gp_generated(p_task, v_row.project_id, coalesce(v_row.created_at, '-infinity'), v_mark, false);
    END LOOP;
    RETURN jsonb_build_object('accepted', false, 'status', v_row.status, 'repeated', false, 'kept', v_kept);
END
$fn$;

-- The completion of a row that has ended already: Failed because its files could not be published and now are, or
-- Complete by the predecessor's function under a lease that was marked for it. What that function wrote (where the result
-- is, when it was done) stays; what only we know is added.
CREATE OR REPLACE FUNCTION public.wan2gp_settle_late(
    p_lease public.task_leases, p_was text, p_output text, p_result jsonb, p_cause jsonb
) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_known jsonb := coalesce(p_result, '{}')
        || CASE WHEN p_lease.history = '[]' THEN '{}' ELSE jsonb_build_object('attempts', p_lease.history) END;
BEGIN
    UPDATE public.task_leases l
       SET token = NULL, last_token = coalesce(p_lease.token, p_lease.last_token), last_verb = 'complete', completing = false
     WHERE l.task_id = p_lease.task_id;
    IF p_was = 'Failed' THEN
        UPDATE public.tasks t
           SET status = 'Complete', error_message = NULL, output_location = p_output, result_data = v_known,
               generation_processed_at = coalesce(t.generation_processed_at, now()), updated_at = now()
         WHERE t.id = p_lease.task_id;
    ELSE
        -- Not a word of the status: foreign triggers on it have seen this row complete once.
        UPDATE public.tasks t
           SET output_location = coalesce(t.output_location, p_output), error_message = NULL, updated_at = now(),
               result_data = CASE WHEN jsonb_typeof(t.result_data) = 'object' THEN t.result_data ELSE '{}' END || v_known,
               generation_processed_at = coalesce(t.generation_processed_at, now())
         WHERE t.id = p_lease.task_id;
        PERFORM public.wan2gp_hand_up(p_lease.task_id, coalesce(p_result, '{}'));
    END IF;
    IF p_lease.last_verb IS DISTINCT FROM 'completing' OR p_lease.token IS NOT NULL THEN  -- else it was said already
        PERFORM public.wan2gp_note(p_lease.task_id, 'completed', jsonb_build_object('from', p_was, 'cause', p_cause),
            p_lease.worker_id, p_lease.attempt);
    END IF;
    RETURN jsonb_build_object('accepted', true, 'status', 'Complete', 'repeated', false);
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_finish(
    p_task_id text, p_token text, p_verb text, p_output_location text DEFAULT NULL, p_error_message text DEFAULT NULL,
    p_result_data jsonb DEFAULT NULL, p_cause jsonb DEFAULT NULL, p_retry_in_s float8 DEFAULT NULL
) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := public.wan2gp_uuid(p_task_id);
BEGIN
    PERFORM public.wan2gp_lock_family(ARRAY[v_id]);
    RETURN public.wan2gp_settle(v_id, p_token, p_verb, p_output_location, p_error_message, p_result_data, p_cause, p_retry_in_s);
END
$fn$;

-- One settlement as an object: the fields of wan2gp_finish without their p_.
CREATE OR REPLACE FUNCTION public.wan2gp_settle_object(p_one jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
BEGIN
    RETURN public.wan2gp_settle(
        public.wan2gp_uuid(p_one ->> 'task_id'), p_one ->> 'token', p_one ->> 'verb', p_one ->> 'output_location',
        p_one ->> 'error_message', nullif(p_one -> 'result_data', 'null'), nullif(p_one -> 'cause', 'null'),
        (p_one ->> 'retry_in_s')::float8);
END
$fn$;

-- The same, when something in the database will not have it (a foreign trigger, a constraint): the task fails with that
-- reason, so that its owner reads it; when even that is refused, the lease is left to expire. Trouble that passes by
-- itself (locks, deadlocks, a server that stops) is raised, for the caller to come again.
CREATE OR REPLACE FUNCTION public.wan2gp_settle_guarded(p_one jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_why text;
    v_id uuid := public.wan2gp_uuid(p_one ->> 'task_id');
BEGIN
    BEGIN
        RETURN public.wan2gp_settle_object(p_one);
    EXCEPTION WHEN OTHERS THEN
        IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58') THEN
            RAISE;
        END IF;
        v_why := SQLERRM;
    END;
    BEGIN
        PERFORM public.wan2gp_settle(
            v_id, p_one ->> 'token', 'fail', NULL,
            left('queue.refused: the database refused to store the outcome: ' || v_why, 2000), NULL,
            jsonb_build_object('kind', 'refused', 'verb', p_one -> 'verb'), NULL);
    EXCEPTION WHEN OTHERS THEN
        IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58') THEN
            RAISE;
        END IF;
    END;
    RETURN public.wan2gp_refused(v_id, p_one ->> 'token') || jsonb_build_object('error', v_why);
END
$fn$;

-- Several settlements in one transaction, answered in order. One that cannot be stored holds up none of the others.
CREATE OR REPLACE FUNCTION public.wan2gp_finish_many(p_settlements jsonb) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_one jsonb;
    v_replies jsonb := '[]';
BEGIN
    PERFORM public.wan2gp_lock_family(ARRAY(
        SELECT DISTINCT public.wan2gp_uuid(s.value ->> 'task_id') FROM jsonb_array_elements(p_settlements) AS s(value)));
    BEGIN
        FOR v_one IN SELECT s.value FROM jsonb_array_elements(p_settlements) WITH ORDINALITY AS s(value, n) ORDER BY s.n LOOP
            v_replies := v_replies || public.wan2gp_settle_object(v_one);
        END LOOP;
        RETURN v_replies;
    EXCEPTION WHEN OTHERS THEN
        IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58') THEN
            RAISE;
        END IF;
        v_replies := '[]';
    END;
    FOR v_one IN SELECT s.value FROM jsonb_array_elements(p_settlements) WITH ORDINALITY AS s(value, n) ORDER BY s.n LOOP
        v_replies := v_replies || public.wan2gp_settle_guarded(v_one);
    END LOOP;
    RETURN v_replies;
END
$fn$;

-- Ends one lease that nobody keeps, by the verb loss or release, without waiting for anybody who holds the row. True when
-- it did.
DROP FUNCTION IF EXISTS public.wan2gp_lose(uuid, text, text, jsonb);  -- of an earlier contract
CREATE OR REPLACE FUNCTION public.wan2gp_lose(p_task uuid, p_token text, p_verb text, p_error text, p_cause jsonb)
RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_family uuid[];
    v_locked int;
BEGIN
    WITH RECURSIVE up(id) AS (
        SELECT p_task UNION SELECT c.parent_id FROM up JOIN public.task_children c ON c.child_id = up.id)
    SELECT array_agg(t.id) INTO v_family FROM up JOIN public.tasks t ON t.id = up.id;
    SELECT count(*) INTO v_locked FROM (
        SELECT FROM public.tasks t WHERE t.id = ANY (v_family) FOR NO KEY UPDATE SKIP LOCKED) AS got;
    IF v_locked IS DISTINCT FROM cardinality(v_family) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM public.task_leases l WHERE l.task_id = p_task AND l.token = p_token) THEN
        RETURN (public.wan2gp_settle(p_task, p_token, p_verb, NULL, p_error, NULL, p_cause, NULL) ->> 'accepted')::boolean;
    END IF;
    RETURN false;
END
$fn$;

-- Whether a worker is in contact, and has been for long enough to have renewed what it holds. What it let expire then is
-- nothing that it knows of: the database was restored from a time at which it did.
CREATE OR REPLACE FUNCTION public.wan2gp_knows_not(p_worker text) RETURNS boolean LANGUAGE sql STABLE AS $fn$
    SELECT EXISTS (SELECT FROM public.worker_contacts c
                    WHERE c.worker_id = p_worker AND c.since < now() - make_interval(secs => c.lease_s / 2)
                      AND c.last_seen BETWEEN now() - make_interval(secs => c.lease_s / 2)
                                          AND clock_timestamp() + make_interval(secs => c.lease_s / 8))
$fn$;

-- Whether a lease that nobody has died under may end uncounted: not for ever. A task whose claims never reach a worker
-- (its params are too large for the way there), or that ends machines whose names are taken over, would else go round
-- without end.
CREATE OR REPLACE FUNCTION public.wan2gp_spared(p_task uuid) RETURNS boolean LANGUAGE sql STABLE AS $fn$
    SELECT least(l.interruptions, (
               SELECT count(*) FROM jsonb_array_elements(l.history) AS h(one)
                WHERE h.one ->> 'verb' = 'release' AND h.one ->> 'kind' IN ('lease_forgotten', 'taken_over'))) < 3
      FROM public.task_leases l WHERE l.task_id = p_task
$fn$;

-- Takes the expired leases, when the caller's contact and the server's uptime have lasted as long as each of them. No
-- process has died under a lease whose worker is well: its task goes back uncounted, the first three times.
CREATE OR REPLACE FUNCTION public.wan2gp_take_expired(p_worker text) RETURNS int LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_quiet_s float8 := coalesce(public.wan2gp_quiet_s(p_worker), 0);
    v_one record;
    v_forgotten boolean;
    v_spared boolean;
    v_taken int := 0;
BEGIN
    FOR v_one IN
        SELECT l.task_id, l.token, l.worker_id, l.expires_at, l.lease_s, l.phase
          FROM public.task_leases l
         WHERE l.token IS NOT NULL AND l.expires_at < now() AND l.lease_s <= v_quiet_s
         ORDER BY l.expires_at LIMIT 50
    LOOP
        BEGIN
            -- A heartbeat may have renewed it meanwhile, or hold it at this moment.
            PERFORM FROM public.task_leases l
              WHERE l.task_id = v_one.task_id AND l.token = v_one.token AND l.expires_at < now() FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN NOT FOUND;
            v_forgotten := public.wan2gp_knows_not(v_one.worker_id);
            v_spared := v_forgotten AND public.wan2gp_spared(v_one.task_id);
            IF public.wan2gp_lose(v_one.task_id, v_one.token, CASE WHEN v_spared THEN 'release' ELSE 'loss' END,
                format(CASE WHEN v_forgotten THEN 'worker.lease_lost: the worker %s is well and did not renew it for %s s'
                            ELSE 'worker.lease_lost: the worker %s was not heard of for %s s' END, v_one.worker_id,
                       round(extract(epoch FROM now() - v_one.expires_at) + v_one.lease_s)),
                jsonb_build_object('kind', CASE WHEN v_forgotten THEN 'lease_forgotten' ELSE 'lease_expired' END,
                                   'code', 'worker.lease_lost', 'taken_by', p_worker, 'phase', v_one.phase))
            THEN
                v_taken := v_taken + 1;
            END IF;
        EXCEPTION WHEN OTHERS THEN  -- a foreign trigger or a locked dependant: the others are taken all the same
            RAISE WARNING 'cannot take the expired lease of the task %: %', v_one.task_id, SQLERRM;
        END;
    END LOOP;
    RETURN v_taken;
END
$fn$;

-- What every worker does now and then, so that nothing depends on one of them: expired leases, dependencies that do not
-- exist, old events. Each step is bounded.
CREATE OR REPLACE FUNCTION public.wan2gp_keep_house(p_worker text) RETURNS int LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_taken int;
    v_ids uuid[];
BEGIN
    PERFORM public.wan2gp_mend_stamps();
    v_taken := public.wan2gp_take_expired(p_worker);

    -- A row may be inserted before the one that it waits for; for ten minutes that is nobody's fault.
    WITH found AS (
        UPDATE public.task_dependencies d SET missing_since = NULL
         WHERE d.missing_since IS NOT NULL AND EXISTS (SELECT FROM public.tasks t WHERE t.id = d.depends_on)
        RETURNING d.depends_on)
    SELECT array_agg(DISTINCT t.id) INTO v_ids FROM found JOIN public.tasks t ON t.id = found.depends_on
     WHERE t.status IN ('Complete', 'Failed', 'Cancelled');
    SELECT coalesce(v_ids, '{}') || coalesce(array_agg(d.depends_on), '{}') INTO v_ids
      FROM (SELECT DISTINCT m.depends_on FROM public.task_dependencies m
             WHERE m.missing_since < now() - interval '10 minutes' LIMIT 100) AS d;
    IF cardinality(v_ids) > 0 THEN
        UPDATE public.task_dependencies d SET missing_since = NULL
         WHERE d.depends_on = ANY (v_ids) AND d.missing_since IS NOT NULL;
        PERFORM public.wan2gp_cascade(v_ids);
    END IF;

    IF (SELECT e.at FROM public.task_events e ORDER BY e.id LIMIT 1) < now() - interval '14 days' THEN
        DELETE FROM public.task_events e
         WHERE e.id IN (SELECT o.id FROM public.task_events o ORDER BY o.id LIMIT 5000)
           AND e.at < now() - interval '14 days';
    END IF;
    DELETE FROM public.worker_contacts c WHERE c.last_seen < now() - interval '14 days';
    RETURN v_taken;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_rescue(p_worker text) RETURNS int LANGUAGE plpgsql VOLATILE AS $fn$
BEGIN
    PERFORM public.wan2gp_contact(p_worker, coalesce(
        (SELECT c.lease_s FROM public.worker_contacts c WHERE c.worker_id = p_worker), 90), true);
    RETURN public.wan2gp_keep_house(p_worker);
END
$fn$;

-- A worker that starts takes back what its earlier life held, but for the leases whose tokens it names: their work is done
-- and waits to be published. That life ended badly, else it had released the others; but who took its name from a living
-- one takes what that one runs, and no process has died.
DROP FUNCTION IF EXISTS public.wan2gp_reclaim_own(text);  -- of an earlier contract; with both, a call would be ambiguous
CREATE OR REPLACE FUNCTION public.wan2gp_reclaim_own(p_worker text, p_keep jsonb DEFAULT '[]') RETURNS jsonb
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_one record;
    v_ids jsonb := '[]';
    v_taken_at timestamptz := (SELECT c.taken_over_at FROM public.worker_contacts c WHERE c.worker_id = p_worker);
    v_taken boolean;
BEGIN
    FOR v_one IN
        SELECT l.task_id, l.token, l.phase, l.claimed_at FROM public.task_leases l
         WHERE l.token IS NOT NULL AND l.worker_id = p_worker AND NOT p_keep ? l.token ORDER BY l.task_id
    LOOP
        PERFORM public.wan2gp_lock_family(ARRAY[v_one.task_id]);
        v_taken := coalesce(v_one.claimed_at <= v_taken_at AND public.wan2gp_spared(v_one.task_id), false);
        IF (public.wan2gp_settle(v_one.task_id, v_one.token, CASE WHEN v_taken THEN 'release' ELSE 'loss' END, NULL,
                format(CASE WHEN v_taken THEN 'worker.lease_lost: another worker took the name %s over'
                            ELSE 'worker.lease_lost: the worker %s died and was started again' END, p_worker), NULL,
                jsonb_build_object('kind', CASE WHEN v_taken THEN 'taken_over' ELSE 'worker_died' END, 'code', 'worker.lease_lost', 'phase', v_one.phase),
                NULL) ->> 'accepted')::boolean THEN
            v_ids := v_ids || to_jsonb(v_one.task_id);
        END IF;
    END LOOP;
    RETURN v_ids;
END
$fn$;
