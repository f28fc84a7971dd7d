-- Bringing tasks forth, and what people ask for.

CREATE OR REPLACE FUNCTION public.wan2gp_enqueue(
    p_task_type text, p_params jsonb, p_priority int DEFAULT NULL, p_max_attempts int DEFAULT NULL,
    p_run_after_s float8 DEFAULT NULL, p_depends_on jsonb DEFAULT '[]', p_id text DEFAULT NULL
) RETURNS text LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := coalesce(public.wan2gp_uuid(p_id), gen_random_uuid());
BEGIN
    IF EXISTS (SELECT FROM public.tasks t WHERE t.id = v_id) THEN
        RETURN v_id::text;  -- the answer to the first call was lost
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements_text(p_depends_on) AS d(id) WHERE public.wan2gp_uuid(d.id) IS NULL) THEN
        RAISE EXCEPTION 'cannot enqueue a task that waits for %: each must be a task id', p_depends_on
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO public.tasks (id, task_type, params, status, priority, max_attempts, run_after, dependant_on)
    VALUES (v_id, p_task_type, p_params, 'Queued', p_priority, p_max_attempts,
            now() + make_interval(secs => p_run_after_s), public.wan2gp_uuid(p_depends_on ->> 0));
    INSERT INTO public.task_dependencies (task_id, depends_on)
        SELECT DISTINCT v_id, public.wan2gp_uuid(d.id) FROM jsonb_array_elements_text(p_depends_on) AS d(id)
        ON CONFLICT DO NOTHING;
    INSERT INTO public.task_leases (task_id, wait_until, wait_s)
        SELECT t.id, t.run_after, p_run_after_s FROM public.tasks t WHERE t.id = v_id AND t.run_after IS NOT NULL;
    RETURN v_id::text;
END
$fn$;

-- Inserts the children of a running task and parks it. Answers their ids, in order; the same token again, the same ids.
-- p_children: [{task_type, params, priority, depends_on: [index of an earlier child]}].
CREATE OR REPLACE FUNCTION public.wan2gp_spawn(p_task_id text, p_token text, p_children jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := public.wan2gp_uuid(p_task_id);
    v_parent public.tasks;
    v_lease public.task_leases;
    v_ids uuid[] := '{}';
    v_n int := jsonb_array_length(p_children);
BEGIN
    SELECT * INTO v_parent FROM public.tasks t WHERE t.id = v_id FOR NO KEY UPDATE;
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = v_id;
    IF v_lease.last_token = p_token AND v_lease.last_verb = 'spawn' THEN
        RETURN (SELECT jsonb_agg(c.child_id ORDER BY c.position) FROM public.task_children c
                 WHERE c.parent_id = v_id AND c.lease_id = v_lease.lease_id);
    END IF;
    IF v_parent.status IS DISTINCT FROM 'In Progress' OR v_lease.token IS NULL OR v_lease.token IS DISTINCT FROM p_token THEN
        RAISE EXCEPTION 'cannot spawn children of the task %: its lease is not held any more', p_task_id USING ERRCODE = 'W2001';
    END IF;
    IF v_n = 0 THEN
        RAISE EXCEPTION 'cannot spawn children of the task %: there are none', p_task_id
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(p_children) WITH ORDINALITY AS c(value, n),
                           jsonb_array_elements_text(c.value -> 'depends_on') AS d(earlier)
                WHERE d.earlier::int NOT BETWEEN 0 AND c.n - 2) THEN
        RAISE EXCEPTION 'cannot spawn children of the task %: depends_on may name earlier children only', p_task_id
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_ids := ARRAY(SELECT gen_random_uuid() FROM generate_series(1, v_n));

    INSERT INTO public.task_children (child_id, parent_id, lease_id, position, is_final)
    SELECT v_ids[c.n], v_id, v_lease.lease_id, c.n - 1,
           NOT EXISTS (SELECT FROM jsonb_array_elements(p_children) AS o(value)
                        WHERE o.value -> 'depends_on' @> to_jsonb(c.n - 1))
      FROM generate_series(1, v_n) AS c(n);
    UPDATE public.task_leases l
       SET token = NULL, last_token = p_token, last_verb = 'spawn', parked_lease = l.lease_id
     WHERE l.task_id = v_id;
    -- Without a worker and a start, so that nobody who looks for the stuck tasks of dead workers finds it.
    UPDATE public.tasks t SET worker_id = NULL, generation_started_at = NULL, updated_at = now() WHERE t.id = v_id;
    -- The times differ by a microsecond each, so that children are claimed in the order in which they were named.
    INSERT INTO public.tasks (id, task_type, params, status, priority, user_id, project_id, dependant_on, created_at)
    SELECT v_ids[c.n], c.value ->> 'task_type', coalesce(c.value -> 'params', '{}'), 'Queued',
           coalesce((c.value ->> 'priority')::int, v_parent.priority), v_parent.user_id, v_parent.project_id,
           v_ids[(c.value -> 'depends_on' ->> 0)::int + 1], now() + make_interval(secs => c.n * 0.000001)
      FROM jsonb_array_elements(p_children) WITH ORDINALITY AS c(value, n) ORDER BY c.n;
    INSERT INTO public.task_dependencies (task_id, depends_on)
    SELECT v_ids[c.n], v_ids[d.earlier::int + 1]
      FROM jsonb_array_elements(p_children) WITH ORDINALITY AS c(value, n),
           jsonb_array_elements_text(c.value -> 'depends_on') AS d(earlier)
        ON CONFLICT DO NOTHING;
    PERFORM public.wan2gp_note(v_id, 'spawned', jsonb_build_object('children', to_jsonb(v_ids)), v_lease.worker_id, v_lease.attempt);
    RETURN to_jsonb(v_ids);
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_cancel(p_task_id text) RETURNS text LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := public.wan2gp_uuid(p_task_id);
    v_was text;
BEGIN
    PERFORM public.wan2gp_lock_family(ARRAY[v_id]);
    SELECT t.status::text INTO v_was FROM public.tasks t WHERE t.id = v_id FOR NO KEY UPDATE;
    IF v_was IN ('Queued', 'In Progress') THEN
        UPDATE public.tasks t SET status = 'Cancelled', generation_processed_at = now(), updated_at = now()
         WHERE t.id = v_id;
    END IF;
    RETURN v_was;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_retry(p_task_id text) RETURNS text LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := public.wan2gp_uuid(p_task_id);
    v_was text;
BEGIN
    SELECT t.status::text INTO v_was FROM public.tasks t WHERE t.id = v_id FOR NO KEY UPDATE;
    IF v_was IN ('Complete', 'Failed', 'Cancelled') THEN
        UPDATE public.tasks t SET status = 'Queued' WHERE t.id = v_id;
    END IF;
    RETURN v_was;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_task(p_task_id text) RETURNS jsonb LANGUAGE sql STABLE AS $fn$
    SELECT to_jsonb(t) || jsonb_build_object(
        'progress', l.progress, 'phase', l.phase, 'detail', l.detail,
        'lease', CASE WHEN l.token IS NOT NULL THEN jsonb_build_object(
            'lease_id', l.lease_id, 'worker_id', l.worker_id, 'attempt', l.attempt, 'claimed_at', l.claimed_at,
            'expires_at', l.expires_at, 'expires_in_s', extract(epoch FROM l.expires_at - now())) END,
        'failures', coalesce(l.failures, 0), 'losses', coalesce(l.losses, 0),
        'interruptions', coalesce(l.interruptions, 0), 'history', coalesce(l.history, '[]'),
        'depends_on', coalesce((SELECT jsonb_agg(jsonb_build_object('id', d.depends_on, 'open', d.open) ORDER BY d.depends_on)
                                  FROM public.task_dependencies d WHERE d.task_id = t.id), '[]'),
        'parent', (SELECT c.parent_id FROM public.task_children c WHERE c.child_id = t.id),
        'children', coalesce((SELECT jsonb_agg(jsonb_build_object('id', c.child_id, 'task_type', k.task_type,
                                                                  'status', k.status) ORDER BY c.position)
                                FROM public.task_children c LEFT JOIN public.tasks k ON k.id = c.child_id
                               WHERE c.parent_id = t.id AND c.lease_id = l.lease_id), '[]'),
        'events', coalesce((SELECT jsonb_agg(to_jsonb(e) - 'task_id' ORDER BY e.id)
                              FROM (SELECT * FROM public.task_events v WHERE v.task_id = t.id
                                     ORDER BY v.id DESC LIMIT 200) AS e), '[]'))
      FROM public.tasks t LEFT JOIN public.task_leases l ON l.task_id = t.id
     WHERE t.id = public.wan2gp_uuid(p_task_id)
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_tasks(p_status text DEFAULT NULL, p_task_type text DEFAULT NULL, p_limit int DEFAULT 50)
RETURNS jsonb LANGUAGE sql STABLE AS $fn$
    SELECT coalesce(jsonb_agg(to_jsonb(r) - 'params' || jsonb_build_object(
               'progress', l.progress, 'phase', l.phase, 'detail', l.detail) ORDER BY r.created_at DESC, r.id), '[]')
      FROM (SELECT * FROM public.tasks t
             WHERE (p_status IS NULL OR t.status::text = public.wan2gp_fold(p_status))
               AND (p_task_type IS NULL OR t.task_type = p_task_type)
             ORDER BY t.created_at DESC, t.id LIMIT greatest(p_limit, 0)) AS r
      LEFT JOIN public.task_leases l ON l.task_id = r.id
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_stats() RETURNS jsonb LANGUAGE sql STABLE AS $fn$
    SELECT jsonb_build_object(
        'counts', coalesce((SELECT jsonb_agg(to_jsonb(c) ORDER BY c.task_type, c.status)
                              FROM (SELECT t.task_type, t.status::text AS status, count(*) AS count
                                      FROM public.tasks t GROUP BY 1, 2) AS c), '[]'),
        'oldest_queued_s', coalesce((SELECT jsonb_object_agg(o.task_type, o.age_s)
                              FROM (SELECT t.task_type, coalesce(greatest(extract(
                                           epoch FROM now() - min(t.created_at) FILTER (WHERE isfinite(t.created_at))), 0), 0) AS age_s
                                      FROM public.tasks t WHERE t.status = 'Queued' GROUP BY 1) AS o), '{}'),
        'waiting', coalesce((SELECT jsonb_agg(to_jsonb(b) ORDER BY b.task_type)
                              FROM (SELECT t.task_type, count(*) FILTER (WHERE t.open_dependencies > 0) AS for_tasks,
                                           count(*) FILTER (WHERE t.open_dependencies = 0) AS for_time
                                      FROM public.tasks t WHERE t.status = 'Queued'
                                       AND (t.open_dependencies > 0 OR t.run_after IS NOT NULL) GROUP BY 1) AS b), '[]'),
        'workers', coalesce((SELECT jsonb_agg(jsonb_build_object(
                                        'id', w.id, 'status', w.status, 'last_heartbeat', w.last_heartbeat,
                                        'silent_s', extract(epoch FROM now() - w.last_heartbeat), 'metadata', w.metadata)
                                        ORDER BY w.last_heartbeat DESC NULLS LAST)
                               FROM (SELECT * FROM public.workers x WHERE x.last_heartbeat > now() - interval '1 day'
                                      ORDER BY x.last_heartbeat DESC LIMIT 200) AS w), '[]'))
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_event(p_task_id text, p_name text, p_detail jsonb DEFAULT '{}') RETURNS void
LANGUAGE sql VOLATILE AS $fn$
    SELECT public.wan2gp_note(t.id, p_name, p_detail, t.worker_id, t.attempts)
      FROM public.tasks t WHERE t.id = public.wan2gp_uuid(p_task_id)
$fn$;

-- Raised whenever a function's parameters or answers change.
CREATE OR REPLACE FUNCTION public.wan2gp_version() RETURNS int LANGUAGE sql IMMUTABLE AS $fn$ SELECT 4 $fn$;
