-- Living on the predecessor's database: its function complete_task ends rows there and makes what its app shows, its
-- system_logs keep what workers say. Whatever of it is not there is not missed.

-- A parked parent has become Complete with this child's row, before this child's result was known: it gets that too.
CREATE OR REPLACE FUNCTION public.wan2gp_hand_up(p_task uuid, p_result jsonb) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_child uuid := p_task;
    v_up record;
BEGIN
    LOOP
        SELECT c.parent_id, c.lease_id INTO v_up
          FROM public.task_children c
          JOIN public.task_leases l ON l.task_id = c.parent_id AND l.lease_id = c.lease_id
          JOIN public.tasks p ON p.id = c.parent_id
         WHERE c.child_id = v_child AND p.status = 'Complete';
        EXIT WHEN NOT FOUND OR v_child <> (
            SELECT c.child_id FROM public.task_children c
             WHERE c.parent_id = v_up.parent_id AND c.lease_id = v_up.lease_id
             ORDER BY c.is_final DESC, c.position DESC LIMIT 1);
        UPDATE public.tasks t SET result_data = coalesce(t.result_data, '{}') || (p_result - 'children')
         WHERE t.id = v_up.parent_id;
        v_child := v_up.parent_id;
    END LOOP;
END
$fn$;

-- Whether the app's own record of this task's result, a generation or a variant of one, was made since p_since under the
-- lease that p_mark names: the first characters of its id, which are in the paths of its files. With p_unmarked one that
-- names no lease counts too. Only what these tables really have is asked for; they are not ours.
CREATE OR REPLACE FUNCTION public.wan2gp_generated(
    p_task uuid, p_project uuid, p_since timestamptz, p_mark text, p_unmarked boolean
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_one record;
    v_found boolean;
BEGIN
    FOR v_one IN
        SELECT a.attrelid::regclass::text AS tab, string_agg(w.test, ' OR ' ORDER BY w.col) AS tests,
               EXISTS (SELECT FROM pg_attribute o WHERE o.attrelid = a.attrelid AND o.attname = 'project_id'
                          AND NOT o.attisdropped AND p_project IS NOT NULL) AS by_project
          FROM (VALUES ('generations', 'tasks', 'position($1 in m.tasks::text) > 0'),
                       ('generations', 'location', 'position($1 in m.location::text) > 0'),
                       ('generation_variants', 'location', 'position($1 in m.location::text) > 0'),
                       ('generation_variants', 'params', 'to_jsonb(m.params) ->> ''source_task_id'' = $1')
               ) AS w(tab, col, test)
          JOIN pg_attribute a ON a.attrelid = to_regclass('public.' || w.tab) AND a.attname = w.col AND NOT a.attisdropped
         WHERE EXISTS (SELECT FROM pg_attribute c
                        WHERE c.attrelid = a.attrelid AND c.attname = 'created_at' AND NOT c.attisdropped)
         GROUP BY a.attrelid ORDER BY 1
    LOOP
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM %s AS m WHERE m.created_at > $2 %s AND (%s)'
            ' AND (position($4 in to_jsonb(m)::text) > 0 OR $5 AND to_jsonb(m)::text !~ ($1 || ''/[0-9]+-[0-9a-f]{8}/'')))',
            v_one.tab, CASE WHEN v_one.by_project THEN 'AND m.project_id::text = $3' ELSE '' END, v_one.tests)
           INTO v_found USING p_task::text, p_since, p_project::text, p_mark, p_unmarked;
        IF v_found THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$fn$;

-- Called just before complete_task is called for a task, and again to see what came of it. Renews the lease, and marks it:
-- from now on the row may become Complete by that function, and the lease outlives it. A row that was withheld, and that
-- nobody has touched since, runs again under its old token, for complete_task changes only rows In Progress.
-- Answers {held, status, made}; made: what the app shows of this result is there already, nothing is left to be made.
CREATE OR REPLACE FUNCTION public.wan2gp_completing(p_task_id text, p_token text, p_lease_s float8) RETURNS jsonb
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_id uuid := public.wan2gp_uuid(p_task_id);
    v_status text;
    v_project uuid;
    v_lease public.task_leases;
    v_made boolean := true;
BEGIN
    PERFORM public.wan2gp_lock_family(ARRAY[v_id]);
    SELECT t.status::text, t.project_id INTO v_status, v_project FROM public.tasks t WHERE t.id = v_id FOR NO KEY UPDATE;
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = v_id;
    IF v_lease.token IS NULL AND v_lease.last_token = p_token THEN
        IF v_lease.last_verb = 'completing' AND v_status = 'Complete' THEN  -- the lease ran out after the row was done
            RETURN jsonb_build_object('held', true, 'status', v_status, 'made', true);
        ELSIF v_lease.last_verb = 'withhold' AND v_status = 'Failed' THEN
            PERFORM public.wan2gp_resume(v_id);
            v_lease.token := p_token;
            v_status := 'In Progress';
        END IF;
    END IF;
    IF v_lease.token IS DISTINCT FROM p_token OR p_token IS NULL
       OR NOT (v_status = 'In Progress' OR v_status = 'Complete' AND v_lease.completing) THEN
        RETURN jsonb_build_object('held', false, 'status', v_status, 'made', false);
    END IF;
    IF NOT v_lease.completing THEN
        PERFORM public.wan2gp_note(v_id, 'completing', '{}', v_lease.worker_id, v_lease.attempt);
    END IF;
    UPDATE public.task_leases l
       SET token = p_token, completing = true, lease_s = greatest(l.lease_s, p_lease_s),
           expires_at = greatest(l.expires_at, now() + make_interval(secs => p_lease_s))
     WHERE l.task_id = v_id;
    IF v_status = 'In Progress' THEN
        v_made := public.wan2gp_generated(v_id, v_project, v_lease.claimed_at, left(v_lease.lease_id, 8), true);
    END IF;
    RETURN jsonb_build_object('held', true, 'status', v_status, 'made', v_made);
END
$fn$;

-- A withheld row runs again, and not from the start: what counts against it still does. Its start is moved so that the time
-- it waited for a person is not billed.
CREATE OR REPLACE FUNCTION public.wan2gp_resume(p_task uuid) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_lease public.task_leases;
BEGIN
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = p_task;
    UPDATE public.tasks t
       SET status = 'In Progress', error_message = NULL, generation_processed_at = NULL, updated_at = now(),
           generation_started_at = coalesce(now() - (t.generation_processed_at - t.generation_started_at),
                                            t.generation_started_at, now())
     WHERE t.id = p_task;
    UPDATE public.task_leases l
       SET failures = v_lease.failures, losses = v_lease.losses, interruptions = v_lease.interruptions
     WHERE l.task_id = p_task;
END
$fn$;

-- What else this database is: {predecessor: the predecessor's app works on it, system_logs: it keeps what workers say}.
CREATE OR REPLACE FUNCTION public.wan2gp_facts() RETURNS jsonb LANGUAGE sql STABLE AS $fn$
    SELECT jsonb_build_object(
        'predecessor',
        EXISTS (SELECT FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
                 WHERE a.attrelid = to_regclass('public.tasks') AND a.attname = 'status' AND y.typtype = 'e')
        OR to_regclass('public.projects') IS NOT NULL
           AND (to_regclass('public.task_types') IS NOT NULL OR to_regclass('public.generations') IS NOT NULL),
        'system_logs',
        (SELECT count(*) = 4 FROM pg_attribute a
          WHERE a.attrelid = to_regclass('public.system_logs') AND NOT a.attisdropped
            AND a.attname IN ('timestamp', 'source_type', 'log_level', 'message')))
$fn$;

-- A time given as text; null when it is none.
CREATE OR REPLACE FUNCTION public.wan2gp_instant(p_text text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN p_text::timestamptz;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$fn$;

-- One level of those that system_logs allows.
CREATE OR REPLACE FUNCTION public.wan2gp_level(p_level text) RETURNS text LANGUAGE sql IMMUTABLE AS $fn$
    SELECT CASE upper(btrim(p_level))
        WHEN 'DEBUG' THEN 'DEBUG' WHEN 'TRACE' THEN 'DEBUG'
        WHEN 'WARNING' THEN 'WARNING' WHEN 'WARN' THEN 'WARNING'
        WHEN 'ERROR' THEN 'ERROR' WHEN 'ERR' THEN 'ERROR'
        WHEN 'CRITICAL' THEN 'CRITICAL' WHEN 'FATAL' THEN 'CRITICAL'
        ELSE 'INFO' END
$fn$;

-- Stores one line after the other by p_insert; one that the table will not have is tried without its task, then left out.
-- A table that will have none of them is spoken of: nobody else would know.
CREATE OR REPLACE FUNCTION public.wan2gp_log_singly(p_insert text, p_worker text, p_lines jsonb) RETURNS int
LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_line jsonb;
    v_form jsonb;
    v_why text;
    v_stored int := 0;
BEGIN
    FOR v_line IN SELECT l.value FROM jsonb_array_elements(p_lines) WITH ORDINALITY AS l(value, n) ORDER BY l.n LOOP
        FOREACH v_form IN ARRAY ARRAY[v_line, v_line - 'task_id'] LOOP
            BEGIN
                EXECUTE p_insert USING p_worker, jsonb_build_array(v_form);
                v_stored := v_stored + 1;
                EXIT;
            EXCEPTION WHEN OTHERS THEN
                IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58') THEN
                    RAISE;
                END IF;
                v_why := SQLERRM;
            END;
        END LOOP;
    END LOOP;
    IF v_stored = 0 AND v_why IS NOT NULL THEN
        RAISE WARNING 'cannot store the log lines of the worker %: %', p_worker, v_why;
    END IF;
    RETURN v_stored;
END
$fn$;

-- Stores what a worker says: [{at, level, message, task_id, metadata, id}]. The id, a uuid that the caller made, makes a
-- repeat after a lost answer harmless. Answers how many of them it has now; 0 where there is no such table.
CREATE OR REPLACE FUNCTION public.wan2gp_log(p_worker text, p_lines jsonb) RETURNS int LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_lines jsonb;
    v_columns text;
    v_values text;
    v_insert text;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF jsonb_typeof(p_lines) IS DISTINCT FROM 'array' OR NOT (public.wan2gp_facts() ->> 'system_logs')::boolean THEN
        RETURN 0;
    END IF;
    SELECT coalesce(jsonb_agg(l.value ORDER BY l.n), '[]') INTO v_lines
      FROM jsonb_array_elements(p_lines) WITH ORDINALITY AS l(value, n) WHERE jsonb_typeof(l.value) = 'object';
    SELECT string_agg(quote_ident(w.col), ', '), string_agg(w.expr, ', ') INTO v_columns, v_values
      FROM (VALUES ('id', 'coalesce(public.wan2gp_uuid(l.value ->> ''id''), gen_random_uuid())'),
                   ('timestamp', 'coalesce(public.wan2gp_instant(l.value ->> ''at''), now())'),
                   ('source_type', '''worker'''),
                   ('source_id', '$1'),
                   ('log_level', 'public.wan2gp_level(l.value ->> ''level'')'),
                   ('message', 'left(coalesce(l.value ->> ''message'', ''''), 4000)'),
                   ('task_id', 'public.wan2gp_uuid(l.value ->> ''task_id'')'),
                   ('worker_id', '$1'),
                   ('metadata', 'CASE WHEN jsonb_typeof(l.value -> ''metadata'') = ''object'''
                                ' THEN l.value -> ''metadata'' ELSE ''{}'' END')
           ) AS w(col, expr)
      JOIN pg_attribute a ON a.attrelid = to_regclass('public.system_logs') AND a.attname = w.col AND NOT a.attisdropped
     WHERE w.col <> 'id' OR a.atttypid = 'uuid'::regtype;
    v_insert := format('INSERT INTO public.system_logs (%s) SELECT %s FROM jsonb_array_elements($2) WITH ORDINALITY'
                       ' AS l(value, n) ORDER BY l.n ON CONFLICT DO NOTHING', v_columns, v_values);
    BEGIN
        EXECUTE v_insert USING p_worker, v_lines;
        RETURN jsonb_array_length(v_lines);
    EXCEPTION WHEN OTHERS THEN
        IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58') THEN
            RAISE;
        END IF;
    END;
    RETURN public.wan2gp_log_singly(v_insert, p_worker, v_lines);
END
$fn$;
