-- Triggers on tasks. They make plain SQL safe: whoever inserts, cancels, requeues or deletes a row needs no function.

CREATE OR REPLACE FUNCTION public.wan2gp_wake() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pg_notify('wan2gp_tasks', '');
    RETURN NULL;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_before_insert() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    NEW.id := coalesce(NEW.id, gen_random_uuid());
    NEW.status := public.wan2gp_fold(coalesce(NEW.status::text, 'Queued'));
    NEW.created_at := coalesce(NEW.created_at, now());
    NEW.updated_at := coalesce(NEW.updated_at, now());
    NEW.priority := coalesce(NEW.priority, 0);
    NEW.max_attempts := greatest(coalesce(NEW.max_attempts, 3), 1);
    NEW.attempts := coalesce(NEW.attempts, 0);
    NEW.open_dependencies := 0;
    IF NEW.run_after <= now() THEN
        NEW.run_after := NULL;
    END IF;
    RETURN NEW;
END
$fn$;

-- Fires only when the status is spelled in another case, or becomes Queued or Cancelled.
CREATE OR REPLACE FUNCTION public.wan2gp_before_status() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    NEW.status := public.wan2gp_fold(NEW.status::text);
    IF NEW.status = 'Queued' AND OLD.status <> 'Queued' THEN
        NEW.worker_id := NULL;
        NEW.generation_started_at := NULL;
        IF OLD.status <> 'In Progress' THEN  -- somebody wants it done again: from the start
            NEW.error_message := NULL;
            NEW.output_location := NULL;
            NEW.generation_processed_at := NULL;
            NEW.updated_at := now();
            IF NEW.run_after IS NOT DISTINCT FROM OLD.run_after THEN
                NEW.run_after := NULL;
            END IF;
        END IF;
    ELSIF NEW.status = 'Cancelled' AND OLD.status <> 'Cancelled'
          AND NEW.error_message IS NOT DISTINCT FROM OLD.error_message THEN
        -- Who cancels in plain SQL says no reason, and what the attempt before died of is none.
        NEW.error_message := 'task.cancelled: cancelled by its user';
    END IF;
    RETURN NEW;
END
$fn$;

-- A task waits for tasks of its own user, or its own project, alone: by their end, and by how that is told, it would learn
-- of somebody else's, and while it is written it locks the row that it names. So this is asked before anything is locked.
-- A task without a user is the operator's: nobody's but the operator's to wait for, and it may wait for any.
CREATE OR REPLACE FUNCTION public.wan2gp_refuse_strangers(p_ids uuid[]) RETURNS void LANGUAGE plpgsql STABLE AS $fn$
DECLARE
    v_one record;
BEGIN
    SELECT t.id, t.dependant_on INTO v_one FROM public.tasks t JOIN public.tasks o ON o.id = t.dependant_on
     WHERE t.id = ANY (p_ids) AND t.user_id IS NOT NULL AND o.user_id IS DISTINCT FROM t.user_id
       AND (o.project_id = t.project_id) IS NOT TRUE LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot make the task % wait for %: that is another user''s', v_one.id, v_one.dependant_on
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$fn$;

-- What waits for one task ends with it, in the transaction of its worker, which has seconds for that: else nothing that
-- this worker has done could be stored any more. So the chain above each of p_ids, and the crowd beside it, are bounded.
CREATE OR REPLACE FUNCTION public.wan2gp_bound_waits(p_ids uuid[]) RETURNS void LANGUAGE plpgsql STABLE AS $fn$
DECLARE
    v_id uuid;
BEGIN
    SELECT u.id INTO v_id FROM unnest(p_ids) AS u(id) CROSS JOIN LATERAL (
        WITH RECURSIVE up(id, n) AS (
            SELECT u.id, 0
            UNION ALL
            SELECT t.dependant_on, up.n + 1 FROM up JOIN public.tasks t ON t.id = up.id
             WHERE t.dependant_on IS NOT NULL AND t.status = 'Queued' AND up.n <= 500)
        SELECT max(up.n) AS height FROM up) AS chain
     WHERE chain.height > 500 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot make the task % wait: more than 500 tasks would wait, one for the other', v_id
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    SELECT d.depends_on INTO v_id FROM public.task_dependencies d
     WHERE d.open AND d.depends_on IN (SELECT t.dependant_on FROM public.tasks t WHERE t.id = ANY (p_ids))
     GROUP BY d.depends_on HAVING count(*) > 10000 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot make more than 10000 tasks wait for the task %', v_id
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_insert() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_waiting uuid[] := ARRAY(SELECT n.id FROM new_rows n WHERE n.dependant_on IS NOT NULL);
BEGIN
    IF cardinality(v_waiting) > 0 THEN
        PERFORM public.wan2gp_refuse_strangers(v_waiting);
    END IF;
    INSERT INTO public.task_events (task_id, name) SELECT n.id, 'queued' FROM new_rows n WHERE n.status = 'Queued';
    INSERT INTO public.task_dependencies (task_id, depends_on)
        SELECT n.id, n.dependant_on FROM new_rows n WHERE n.dependant_on IS NOT NULL AND n.status = 'Queued'
        ON CONFLICT DO NOTHING;
    IF cardinality(v_waiting) > 0 THEN
        PERFORM public.wan2gp_bound_waits(v_waiting);
    END IF;
    IF EXISTS (SELECT FROM new_rows n JOIN public.tasks t ON t.id = n.id
                WHERE t.status = 'Queued' AND t.open_dependencies = 0) THEN
        PERFORM pg_notify('wan2gp_tasks', '');
    END IF;
    RETURN NULL;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_end() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_cascading boolean := coalesce(current_setting('wan2gp.cascading', true), '') = 'on';
    v_bereaved uuid[] := CASE WHEN OLD.status = 'Failed' AND NEW.status = 'Complete' THEN public.wan2gp_bereaved(NEW.id) END;
BEGIN
    IF NEW.status = 'Cancelled' OR v_cascading THEN
        PERFORM public.wan2gp_note(NEW.id, CASE WHEN NEW.status = 'Complete' THEN 'completed' ELSE lower(NEW.status::text) END,
            jsonb_build_object('from', OLD.status::text, 'error_message', NEW.error_message));
    END IF;
    IF NOT v_cascading AND (
        EXISTS (SELECT FROM public.task_dependencies d WHERE d.depends_on = NEW.id AND d.open)
        OR EXISTS (SELECT FROM public.task_children c WHERE c.child_id = NEW.id)
        OR EXISTS (SELECT FROM public.task_leases l WHERE l.task_id = NEW.id AND l.parked_lease IS NOT NULL)
    ) THEN
        PERFORM public.wan2gp_cascade(ARRAY[NEW.id]);
    END IF;
    PERFORM public.wan2gp_requeue(v_bereaved);
    RETURN NULL;
END
$fn$;

-- The row went back to the queue, or somebody made it run again after its end: no lease that was held on it before is
-- good any more. When our own functions queued it, the lease has ended already. Those who failed for want of a result that
-- was withheld wait for the next one.
CREATE OR REPLACE FUNCTION public.wan2gp_after_requeue() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_again boolean := OLD.status <> 'In Progress';
    v_lease public.task_leases;
    v_bereaved uuid[];
BEGIN
    SELECT * INTO v_lease FROM public.task_leases l WHERE l.task_id = NEW.id;
    IF v_lease.last_verb = 'withhold' AND OLD.status = 'Failed' THEN
        v_bereaved := public.wan2gp_bereaved(NEW.id);
    END IF;
    IF v_lease.token IS NOT NULL OR v_lease.parked_lease IS NOT NULL OR v_again THEN
        PERFORM public.wan2gp_note(NEW.id, CASE WHEN NEW.status = 'Queued' THEN 'requeued' ELSE 'resumed' END,
            jsonb_build_object('from', OLD.status::text));
        UPDATE public.task_leases l
           SET token = NULL, last_token = coalesce(l.token, l.last_token), parked_lease = NULL, completing = false,
               last_verb = CASE WHEN l.token IS NULL AND coalesce(l.last_verb, '') NOT IN ('withhold', 'completing')
                                THEN l.last_verb ELSE 'taken' END,
               failures = CASE WHEN v_again THEN 0 ELSE l.failures END,
               losses = CASE WHEN v_again THEN 0 ELSE l.losses END,
               interruptions = CASE WHEN v_again THEN 0 ELSE l.interruptions END
         WHERE l.task_id = NEW.id;
    END IF;
    IF v_lease.parked_lease IS NOT NULL THEN  -- it will bring forth new ones
        PERFORM public.wan2gp_cancel_children(NEW.id, v_lease.parked_lease, true,
            format('task.dependency_failed: its parent %s was queued again', NEW.id));
    END IF;
    IF NEW.status = 'Queued' AND (v_again OR NEW.open_dependencies > 0) THEN
        PERFORM public.wan2gp_reopen(NEW.id);
    END IF;
    PERFORM public.wan2gp_requeue(v_bereaved);
    RETURN NULL;
END
$fn$;

-- What a task waits for, judged anew.
CREATE OR REPLACE FUNCTION public.wan2gp_reopen(p_task uuid) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_dead uuid[];
BEGIN
    IF NOT EXISTS (SELECT FROM public.task_dependencies d WHERE d.task_id = p_task) THEN
        RETURN;
    END IF;
    PERFORM FROM public.tasks t JOIN public.task_dependencies d ON d.depends_on = t.id
     WHERE d.task_id = p_task ORDER BY t.id FOR SHARE OF t;
    UPDATE public.task_dependencies d
       SET open = NOT EXISTS (SELECT FROM public.tasks t WHERE t.id = d.depends_on AND t.status = 'Complete'),
           missing_since = NULL
     WHERE d.task_id = p_task;
    PERFORM public.wan2gp_recount(ARRAY[p_task]);
    IF EXISTS (SELECT FROM public.task_dependencies d
                WHERE d.task_id = p_task AND d.open AND public.wan2gp_circular(p_task, d.depends_on)) THEN
        UPDATE public.tasks t
           SET status = 'Failed', generation_processed_at = now(), updated_at = now(),
               error_message = 'task.dependency_failed: queued again, it would wait for itself'
         WHERE t.id = p_task;
        RETURN;
    END IF;
    SELECT array_agg(d.depends_on) INTO v_dead
      FROM public.task_dependencies d LEFT JOIN public.tasks t ON t.id = d.depends_on
     WHERE d.task_id = p_task AND d.open AND (t.id IS NULL OR t.status IN ('Failed', 'Cancelled'));
    IF v_dead IS NOT NULL THEN
        PERFORM public.wan2gp_cascade(v_dead);
    END IF;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_dependant() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM public.wan2gp_refuse_strangers(ARRAY[NEW.id]);
    -- One at a time: two changes that see nothing of each other could close a circle.
    PERFORM pg_advisory_xact_lock(727102, 2);
    DELETE FROM public.task_dependencies d WHERE d.task_id = NEW.id AND d.depends_on = OLD.dependant_on;
    IF NEW.dependant_on IS NOT NULL THEN
        INSERT INTO public.task_dependencies (task_id, depends_on) VALUES (NEW.id, NEW.dependant_on)
            ON CONFLICT DO NOTHING;
        PERFORM public.wan2gp_bound_waits(ARRAY[NEW.id]);
    END IF;
    PERFORM public.wan2gp_recount(ARRAY[NEW.id]);
    IF NEW.status = 'Failed' THEN  -- it may have been on hold for want of the other
        PERFORM public.wan2gp_cascade(ARRAY[NEW.id]);
    END IF;
    RETURN NULL;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_delete() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_ids uuid[] := ARRAY(SELECT o.id FROM old_rows o);
BEGIN
    IF cardinality(v_ids) = 0 THEN
        RETURN NULL;
    END IF;
    PERFORM public.wan2gp_cascade(v_ids);
    DELETE FROM public.task_leases l WHERE l.task_id = ANY (v_ids);
    DELETE FROM public.task_dependencies d WHERE d.task_id = ANY (v_ids);
    DELETE FROM public.task_children c WHERE c.child_id = ANY (v_ids) OR c.parent_id = ANY (v_ids);
    RETURN NULL;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_truncate() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
    DELETE FROM public.task_leases;
    DELETE FROM public.task_dependencies;
    DELETE FROM public.task_children;
    RETURN NULL;
END
$fn$;

-- A dependency looks at the task it names while that cannot change; the lock may have made a claim pass that task over,
-- so the claimers are woken.
CREATE OR REPLACE FUNCTION public.wan2gp_before_dependency() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_status text;
BEGIN
    IF public.wan2gp_circular(NEW.task_id, NEW.depends_on) THEN
        RAISE EXCEPTION 'cannot make the task % wait for %: it would wait for itself', NEW.task_id, NEW.depends_on
            USING ERRCODE = 'check_violation';
    END IF;
    SELECT t.status::text INTO v_status FROM public.tasks t WHERE t.id = NEW.depends_on FOR SHARE;
    NEW.open := v_status IS DISTINCT FROM 'Complete';
    NEW.missing_since := CASE WHEN v_status IS NULL THEN now() END;
    IF v_status = 'Queued' THEN
        PERFORM pg_notify('wan2gp_tasks', '');
    END IF;
    RETURN NEW;
END
$fn$;

CREATE OR REPLACE FUNCTION public.wan2gp_after_dependency() RETURNS trigger LANGUAGE plpgsql AS $fn$
DECLARE
    v_ids uuid[] := ARRAY(SELECT DISTINCT n.task_id FROM new_rows n WHERE n.open);
    v_dead uuid[];
BEGIN
    IF cardinality(v_ids) = 0 THEN
        RETURN NULL;
    END IF;
    PERFORM public.wan2gp_recount(v_ids);
    SELECT array_agg(DISTINCT t.id) INTO v_dead FROM new_rows n JOIN public.tasks t ON t.id = n.depends_on
     WHERE n.open AND t.status IN ('Failed', 'Cancelled');
    IF v_dead IS NOT NULL THEN
        PERFORM public.wan2gp_cascade(v_dead);
    END IF;
    RETURN NULL;
END
$fn$;

-- Each trigger is made once, and again only when its definition here differs (the comment keeps the definition's md5):
-- a second migration takes no lock on the table.
DO $step$
DECLARE
    v_final text := $q$NEW.status IS DISTINCT FROM OLD.status AND NEW.status IN ('Complete', 'Failed', 'Cancelled')$q$;
    v_one record;
BEGIN
    FOR v_one IN SELECT * FROM (VALUES
        ('wan2gp_before_insert', 'tasks', 'BEFORE INSERT ON public.tasks FOR EACH ROW', 'wan2gp_before_insert'),
        ('wan2gp_before_status', 'tasks', $q$BEFORE UPDATE ON public.tasks FOR EACH ROW
            WHEN (NEW.status IS DISTINCT FROM OLD.status
                  AND NEW.status::text NOT IN ('In Progress', 'Complete', 'Failed'))$q$,
            'wan2gp_before_status'),
        ('wan2gp_after_insert', 'tasks',
            'AFTER INSERT ON public.tasks REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT', 'wan2gp_after_insert'),
        ('wan2gp_after_end', 'tasks', 'AFTER UPDATE ON public.tasks FOR EACH ROW WHEN (' || v_final || ')',
            'wan2gp_after_end'),
        ('wan2gp_after_requeue', 'tasks', $q$AFTER UPDATE ON public.tasks FOR EACH ROW
            WHEN (NEW.status IN ('Queued', 'In Progress') AND OLD.status <> 'Queued' AND NEW.status <> OLD.status)$q$, 'wan2gp_after_requeue'),
        ('wan2gp_after_dependant', 'tasks', $q$AFTER UPDATE ON public.tasks FOR EACH ROW
            WHEN (NEW.dependant_on IS DISTINCT FROM OLD.dependant_on)$q$, 'wan2gp_after_dependant'),
        ('wan2gp_wake', 'tasks', $q$AFTER UPDATE ON public.tasks FOR EACH ROW
            WHEN (NEW.status = 'Queued' AND NEW.open_dependencies = 0
                  AND (OLD.status <> 'Queued' OR OLD.open_dependencies > 0
                       OR OLD.run_after > now() AND NEW.run_after IS DISTINCT FROM OLD.run_after)
                  OR NEW.status = 'Cancelled' AND OLD.status = 'In Progress')$q$, 'wan2gp_wake'),
        ('wan2gp_after_delete', 'tasks',
            'AFTER DELETE ON public.tasks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT', 'wan2gp_after_delete'),
        ('wan2gp_after_truncate', 'tasks', 'AFTER TRUNCATE ON public.tasks FOR EACH STATEMENT', 'wan2gp_after_truncate'),
        ('wan2gp_before_dependency', 'task_dependencies', 'BEFORE INSERT ON public.task_dependencies FOR EACH ROW',
            'wan2gp_before_dependency'),
        ('wan2gp_after_dependency', 'task_dependencies',
            'AFTER INSERT ON public.task_dependencies REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT',
            'wan2gp_after_dependency')
    ) AS wanted(name, tab, definition, fn) LOOP
        IF EXISTS (SELECT FROM pg_trigger g
                    WHERE g.tgrelid = to_regclass('public.' || v_one.tab) AND g.tgname = v_one.name
                      AND obj_description(g.oid, 'pg_trigger') = md5(v_one.definition || v_one.fn)) THEN
            CONTINUE;
        END IF;
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON public.%I', v_one.name, v_one.tab);
        EXECUTE format('CREATE TRIGGER %I %s EXECUTE FUNCTION public.%I()', v_one.name, v_one.definition, v_one.fn);
        EXECUTE format('COMMENT ON TRIGGER %I ON public.%I IS %L', v_one.name, v_one.tab,
                       md5(v_one.definition || v_one.fn));
    END LOOP;
END
$step$;
