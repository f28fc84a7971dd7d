-- What the end of one task means for others: dependants are released or end too, a parked parent completes or fails,
-- the children of an ended parent are cancelled. Called by triggers, so that it holds for plain SQL as well.

-- Whether p_depends_on waits, over any number of others, for p_task: then p_task cannot wait for it.
CREATE OR REPLACE FUNCTION public.wan2gp_circular(p_task uuid, p_depends_on uuid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN EXISTS (
        WITH RECURSIVE up(id) AS (
            SELECT p_depends_on
            UNION
            SELECT w.waits_for FROM up CROSS JOIN LATERAL (
                SELECT d.depends_on FROM public.task_dependencies d WHERE d.task_id = up.id AND d.open
                UNION ALL  -- a parked parent waits for its children
                SELECT c.child_id FROM public.task_leases l JOIN public.task_children c ON c.parent_id = l.task_id
                 WHERE l.task_id = up.id AND c.lease_id = l.parked_lease) AS w(waits_for))
        SELECT FROM up WHERE up.id = p_task);
END
$fn$;

-- open_dependencies of these tasks, counted anew. The rows are locked in a statement of their own first: the count
-- then sees what was committed by whoever held them before.
CREATE OR REPLACE FUNCTION public.wan2gp_recount(p_ids uuid[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
BEGIN
    PERFORM FROM public.tasks t WHERE t.id = ANY (p_ids) ORDER BY t.id FOR NO KEY UPDATE;
    UPDATE public.tasks t SET open_dependencies = n.still_open
      FROM (SELECT u.id, count(d.task_id)::int AS still_open
              FROM unnest(p_ids) AS u(id)
              LEFT JOIN public.task_dependencies d ON d.task_id = u.id AND d.open
             GROUP BY u.id) AS n
     WHERE t.id = n.id AND t.open_dependencies <> n.still_open;
END
$fn$;

-- Cancels those of the children of p_parent, born under p_lease, that have not ended; with p_running also those at work.
CREATE OR REPLACE FUNCTION public.wan2gp_cancel_children(
    p_parent uuid, p_lease text, p_running boolean, p_why text
) RETURNS uuid[] LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_ids uuid[];
BEGIN
    PERFORM FROM public.tasks t JOIN public.task_children c ON c.child_id = t.id
     WHERE c.parent_id = p_parent AND c.lease_id = p_lease
       AND (t.status = 'Queued' OR p_running AND t.status = 'In Progress')
     ORDER BY t.id FOR NO KEY UPDATE OF t;
    WITH ended AS (
        UPDATE public.tasks t
           SET status = 'Cancelled', error_message = p_why, generation_processed_at = now(), updated_at = now()
          FROM public.task_children c
         WHERE c.parent_id = p_parent AND c.lease_id = p_lease AND t.id = c.child_id
           AND (t.status = 'Queued' OR p_running AND t.status = 'In Progress')
        RETURNING t.id)
    SELECT coalesce(array_agg(ended.id), '{}') INTO v_ids FROM ended;
    RETURN v_ids;
END
$fn$;

-- Fails the queued tasks that wait for one of p_ids, when that one ended without a result or does not exist. Why it ended
-- is told to its own user alone.
CREATE OR REPLACE FUNCTION public.wan2gp_fail_dependants(p_ids uuid[]) RETURNS uuid[] LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_ids uuid[];
BEGIN
    PERFORM FROM public.tasks t JOIN public.task_dependencies d ON d.task_id = t.id
     WHERE d.depends_on = ANY (p_ids) AND d.open AND t.status = 'Queued'
     ORDER BY t.id FOR NO KEY UPDATE OF t;
    WITH reasons AS (
        SELECT DISTINCT ON (d.task_id) d.task_id, d.depends_on, p.status::text AS status,
               CASE WHEN w.user_id IS NULL OR w.user_id = p.user_id THEN p.error_message END AS error_message
          FROM public.task_dependencies d JOIN public.tasks w ON w.id = d.task_id
          LEFT JOIN public.tasks p ON p.id = d.depends_on
         WHERE d.depends_on = ANY (p_ids) AND d.open AND (p.id IS NULL OR p.status IN ('Failed', 'Cancelled'))
         ORDER BY d.task_id, d.depends_on
    ), ended AS (
        UPDATE public.tasks t
           SET status = 'Failed', generation_processed_at = now(), updated_at = now(),
               error_message = left(format('task.dependency_failed: the task %s, which this one waits for, %s',
                   r.depends_on,
                   CASE WHEN r.status IS NULL THEN 'does not exist'
                        ELSE format('ended %s%s', r.status, ' (' || nullif(r.error_message, '') || ')') END), 2000)
          FROM reasons r WHERE t.id = r.task_id AND t.status = 'Queued'
        RETURNING t.id)
    SELECT coalesce(array_agg(ended.id), '{}') INTO v_ids FROM ended;
    RETURN v_ids;
END
$fn$;

-- The tasks that failed only because they wait, over any number of others, for p_task, and never started.
CREATE OR REPLACE FUNCTION public.wan2gp_bereaved(p_task uuid) RETURNS uuid[] LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE down(id) AS (
            SELECT p_task
            UNION
            SELECT t.id FROM down
              JOIN public.task_dependencies d ON d.depends_on = down.id AND d.open
              JOIN public.tasks t ON t.id = d.task_id
             WHERE t.status = 'Failed'
               AND t.error_message LIKE 'task.dependency_failed: the task ' || down.id || ', which this one waits for,%')
        SELECT down.id FROM down WHERE down.id <> p_task);
END
$fn$;

-- Queues those of p_ids, of which there may be none, again that are Failed; what each waits for is judged anew.
CREATE OR REPLACE FUNCTION public.wan2gp_requeue(p_ids uuid[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
BEGIN
    IF cardinality(p_ids) > 0 THEN
        PERFORM FROM public.tasks t WHERE t.id = ANY (p_ids) ORDER BY t.id FOR NO KEY UPDATE;
        UPDATE public.tasks t SET status = 'Queued' WHERE t.id = ANY (p_ids) AND t.status = 'Failed';
    END IF;
END
$fn$;

-- Whether p_task, which is Failed, may yet be Complete without anybody's doing it again: its result is withheld, or it
-- failed only for want of one that is. (Of one that was: it is Complete now, and those who missed it are queued next.)
CREATE OR REPLACE FUNCTION public.wan2gp_on_hold(p_task uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN EXISTS (
        WITH RECURSIVE up(id) AS (
            SELECT p_task
            UNION
            SELECT d.depends_on FROM up
              JOIN public.tasks t ON t.id = up.id AND t.status = 'Failed'
              JOIN public.task_dependencies d ON d.task_id = t.id
             WHERE t.error_message LIKE 'task.dependency_failed: the task ' || d.depends_on || ', which this one waits for,%')
        SELECT FROM up JOIN public.tasks t ON t.id = up.id LEFT JOIN public.task_leases l ON l.task_id = t.id
         WHERE t.status = 'Failed' AND l.token IS NULL AND l.last_verb = 'withhold'
            OR t.status = 'Complete' AND up.id <> p_task);
END
$fn$;

-- Ends a parked parent when its children allow or force it. Returns the tasks that ended by it.
CREATE OR REPLACE FUNCTION public.wan2gp_settle_parent(p_parent uuid) RETURNS uuid[] LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_lease text;
    v_bad record;
    v_best record;
    v_why text;
BEGIN
    -- The row's lock comes first: of two last children that end at once, the later one sees the earlier one's end. It is
    -- an update and no mere lock, so that a caller whose snapshot is older gets a serialization failure.
    UPDATE public.tasks t SET updated_at = now() WHERE t.id = p_parent AND t.status = 'In Progress';
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    SELECT l.parked_lease INTO v_lease FROM public.task_leases l WHERE l.task_id = p_parent;
    IF v_lease IS NULL THEN
        RETURN '{}';
    END IF;
    SELECT c.child_id, t.task_type, t.status::text AS status, t.error_message INTO v_bad
      FROM public.task_children c LEFT JOIN public.tasks t ON t.id = c.child_id
     WHERE c.parent_id = p_parent AND c.lease_id = v_lease
       AND (t.id IS NULL OR t.status = 'Cancelled' OR t.status = 'Failed' AND NOT public.wan2gp_on_hold(c.child_id))
     ORDER BY t.generation_processed_at, c.position LIMIT 1;
    IF FOUND THEN
        v_why := left(format('task.dependency_failed: the child %s%s %s', v_bad.child_id, ' (' || v_bad.task_type || ')',
            CASE WHEN v_bad.status IS NULL THEN 'was deleted'
                 ELSE format('ended %s%s', v_bad.status, ': ' || nullif(v_bad.error_message, '')) END), 2000);
        UPDATE public.tasks SET status = 'Failed', error_message = v_why, generation_processed_at = now(), updated_at = now()
         WHERE id = p_parent;
        RETURN array_append(public.wan2gp_cancel_children(p_parent, v_lease, false,
            left('task.dependency_failed: not started, because a sibling ended without a result; ' || v_why, 2000)),
            p_parent);
    END IF;
    IF EXISTS (SELECT FROM public.task_children c JOIN public.tasks t ON t.id = c.child_id
                WHERE c.parent_id = p_parent AND c.lease_id = v_lease AND t.status <> 'Complete') THEN
        RETURN '{}';
    END IF;
    SELECT t.output_location, t.result_data INTO v_best
      FROM public.task_children c JOIN public.tasks t ON t.id = c.child_id
     WHERE c.parent_id = p_parent AND c.lease_id = v_lease ORDER BY c.is_final DESC, c.position DESC LIMIT 1;
    UPDATE public.tasks t
       SET status = 'Complete', output_location = v_best.output_location, error_message = NULL,
           generation_processed_at = now(), updated_at = now(),
           result_data = coalesce(v_best.result_data, '{}') - 'attempts' || jsonb_build_object('children', (
               SELECT jsonb_agg(c.child_id ORDER BY c.position) FROM public.task_children c
                WHERE c.parent_id = p_parent AND c.lease_id = v_lease))
     WHERE t.id = p_parent;
    RETURN ARRAY[p_parent];
END
$fn$;

-- p_ids have just ended (or are gone). Works in waves and not by recursion, so that a chain of any length fits the stack;
-- while it runs, the triggers that would call it for its own updates stand back. Those who failed for want of p_ids before
-- may have been on hold until now, and others with them.
CREATE OR REPLACE FUNCTION public.wan2gp_cascade(p_ids uuid[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $fn$
DECLARE
    v_wave uuid[] := p_ids || ARRAY(SELECT b FROM unnest(p_ids) AS e(id), unnest(public.wan2gp_bereaved(e.id)) AS b);
    v_next uuid[];
    v_ids uuid[];
    v_parent record;
BEGIN
    PERFORM set_config('wan2gp.cascading', 'on', true);
    WHILE cardinality(v_wave) > 0 LOOP
        v_next := '{}';
        -- Parents before dependants: a sibling that was not started is then Cancelled, and the parent names the culprit.
        FOR v_parent IN
            SELECT DISTINCT c.parent_id FROM public.task_children c WHERE c.child_id = ANY (v_wave) ORDER BY 1
        LOOP
            v_next := v_next || public.wan2gp_settle_parent(v_parent.parent_id);
        END LOOP;
        FOR v_parent IN
            SELECT l.task_id, l.parked_lease, t.status::text AS status
              FROM public.task_leases l LEFT JOIN public.tasks t ON t.id = l.task_id
             WHERE l.task_id = ANY (v_wave) AND l.parked_lease IS NOT NULL ORDER BY 1
        LOOP
            UPDATE public.task_leases SET parked_lease = NULL WHERE task_id = v_parent.task_id;
            IF v_parent.status IS DISTINCT FROM 'Complete' THEN
                v_next := v_next || public.wan2gp_cancel_children(v_parent.task_id, v_parent.parked_lease,
                    v_parent.status IS DISTINCT FROM 'Failed',
                    format('task.dependency_failed: its parent %s %s', v_parent.task_id,
                           coalesce('ended ' || v_parent.status, 'was deleted')));
            END IF;
        END LOOP;
        WITH released AS (
            UPDATE public.task_dependencies d SET open = false, missing_since = NULL
              FROM public.tasks t
             WHERE d.depends_on = ANY (v_wave) AND d.open AND t.id = d.depends_on AND t.status = 'Complete'
            RETURNING d.task_id)
        SELECT array_agg(DISTINCT released.task_id) INTO v_ids FROM released;
        IF v_ids IS NOT NULL THEN
            PERFORM public.wan2gp_recount(v_ids);
        END IF;
        v_next := v_next || public.wan2gp_fail_dependants(v_wave);
        v_wave := v_next;
    END LOOP;
    PERFORM set_config('wan2gp.cascading', 'off', true);
END
$fn$;
