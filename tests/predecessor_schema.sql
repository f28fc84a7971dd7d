-- The tables of the worker that this one replaces, as its code uses them: statuses in an enum, attempts NOT NULL, no
-- priority, no max_attempts, no run_after. Rows of every status, some of them waiting for others.
CREATE TYPE task_status AS ENUM ('Queued', 'In Progress', 'Complete', 'Failed', 'Cancelled');

CREATE TABLE projects (id uuid PRIMARY KEY, name text, user_id uuid);

CREATE TABLE task_types (
    name text PRIMARY KEY, category text, tool_type text, content_type text, is_active boolean DEFAULT true, run_type text
);

CREATE TABLE tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    task_type text NOT NULL,
    params jsonb NOT NULL,
    status task_status NOT NULL DEFAULT 'Queued',
    project_id uuid REFERENCES projects (id),
    user_id uuid,
    dependant_on uuid,
    worker_id text,
    attempts int NOT NULL DEFAULT 0,
    error_message text,
    output_location text,
    result_data jsonb DEFAULT '{}',
    generation_started_at timestamptz,
    generation_processed_at timestamptz,
    claimed_at timestamptz,
    generation_created boolean DEFAULT false,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
CREATE INDEX tasks_status_created ON tasks (status, created_at);
CREATE INDEX tasks_worker ON tasks (worker_id);

CREATE TABLE workers (
    id text PRIMARY KEY,
    instance_type text NOT NULL,
    status text NOT NULL DEFAULT 'inactive',
    last_heartbeat timestamptz,
    created_at timestamptz DEFAULT now(),
    metadata jsonb DEFAULT '{}'
);

CREATE TABLE system_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    "timestamp" timestamptz NOT NULL DEFAULT now(),
    source_type text NOT NULL CHECK (source_type IN ('orchestrator_gpu', 'orchestrator_api', 'worker')),
    source_id text NOT NULL,
    log_level text NOT NULL CHECK (log_level IN ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')),
    message text NOT NULL,
    task_id uuid,
    worker_id text,
    cycle_number int,
    metadata jsonb DEFAULT '{}'
);
CREATE INDEX system_logs_time ON system_logs ("timestamp" DESC);

CREATE TABLE user_api_tokens (token text PRIMARY KEY, user_id uuid NOT NULL);

CREATE TABLE generations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tasks jsonb[],
    params jsonb,
    location text,
    type text,
    project_id uuid REFERENCES projects (id),
    thumbnail_url text,
    name text,
    based_on uuid,
    parent_generation_id uuid,
    is_child boolean DEFAULT false,
    child_order int,
    created_at timestamptz DEFAULT now()
);

CREATE TABLE generation_variants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    generation_id uuid REFERENCES generations (id) ON DELETE CASCADE,
    location text,
    thumbnail_url text,
    params jsonb,
    is_primary boolean DEFAULT false,
    variant_type text,
    name text,
    created_at timestamptz DEFAULT now()
);

CREATE VIEW active_workers_health AS
    SELECT w.id, w.status, w.last_heartbeat, (w.metadata ->> 'vram_total_mb')::numeric AS vram_total_mb,
           (w.metadata ->> 'vram_used_mb')::numeric AS vram_used_mb,
           to_timestamp((w.metadata ->> 'vram_timestamp')::numeric) AS vram_at, t.id AS current_task
      FROM workers w LEFT JOIN tasks t ON t.worker_id = w.id AND t.status = 'In Progress' WHERE w.status = 'active';

CREATE VIEW task_queue_analysis AS
    SELECT task_type, status, count(*) AS tasks, min(attempts) AS least, max(attempts) AS most FROM tasks GROUP BY 1, 2;

-- A trigger of theirs that touches every update, and that needs the public schema on its path.
CREATE FUNCTION touch_project() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE projects SET name = name WHERE id = NEW.project_id;
    RETURN NEW;
END
$$;
CREATE TRIGGER on_task_change BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION touch_project();

-- The functions that its workers and its pod scaler call.
CREATE FUNCTION func_claim_available_task(worker_id_param text)
RETURNS TABLE (id uuid, status task_status, attempts int, worker_id text, generation_started_at timestamptz,
               task_data jsonb, created_at timestamptz, task_type text) LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM workers w WHERE w.id = worker_id_param AND w.status = 'terminating') THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE tasks t SET status = 'In Progress', worker_id = worker_id_param, generation_started_at = now(),
                           updated_at = now()
         WHERE t.id = (SELECT q.id FROM tasks q WHERE q.status = 'Queued' AND coalesce(q.worker_id, '') = ''
                        ORDER BY q.created_at, q.id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING t.id, t.status, t.attempts, t.worker_id, t.generation_started_at, t.params, t.created_at, t.task_type;
END
$$;

CREATE FUNCTION func_claim_task(p_table_name text, p_worker_id text)
RETURNS TABLE (id uuid, status task_status, attempts int, worker_id text, generation_started_at timestamptz,
               task_data jsonb, created_at timestamptz, task_type text) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM func_claim_available_task(p_worker_id);
END
$$;

CREATE FUNCTION func_mark_task_complete(task_id_param uuid, result_data_param jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tasks SET status = 'Complete', result_data = result_data_param, generation_processed_at = now(),
                     updated_at = now()
     WHERE id = task_id_param;
END
$$;

CREATE FUNCTION func_mark_task_failed(task_id_param uuid, error_message_param text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_attempts int;
BEGIN
    SELECT attempts + 1 INTO v_attempts FROM tasks WHERE id = task_id_param;
    UPDATE tasks
       SET status = CASE WHEN v_attempts >= 3 THEN 'Failed' ELSE 'Queued' END::task_status, attempts = v_attempts,
           error_message = error_message_param, worker_id = NULL, updated_at = now()
     WHERE id = task_id_param;
END
$$;

CREATE FUNCTION func_reset_orphaned_tasks(failed_worker_ids text[]) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_count int;
BEGIN
    UPDATE tasks SET status = 'Queued', worker_id = NULL, generation_started_at = NULL, updated_at = now()
     WHERE worker_id = ANY (failed_worker_ids) AND status = 'In Progress' AND attempts < 3
       AND task_type NOT LIKE '%orchestrator%';
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

CREATE FUNCTION func_get_tasks_by_status(statuses text[]) RETURNS SETOF tasks LANGUAGE sql STABLE AS $$
    SELECT * FROM tasks WHERE status::text = ANY (statuses) ORDER BY created_at, id
$$;

CREATE FUNCTION func_update_worker_heartbeat(
    worker_id_param text, vram_total_mb_param int DEFAULT NULL, vram_used_mb_param int DEFAULT NULL
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_vram jsonb := CASE WHEN vram_total_mb_param IS NULL THEN '{}' ELSE jsonb_build_object(
        'vram_total_mb', vram_total_mb_param, 'vram_used_mb', vram_used_mb_param,
        'vram_timestamp', extract(epoch FROM now())) END;
BEGIN
    UPDATE workers SET last_heartbeat = now(), metadata = coalesce(metadata, '{}') || v_vram WHERE id = worker_id_param;
    IF NOT FOUND THEN
        INSERT INTO workers (id, instance_type, status, last_heartbeat, metadata)
            VALUES (worker_id_param, 'external', 'active', now(), v_vram);
    END IF;
END
$$;

CREATE FUNCTION func_insert_logs_batch(logs jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_log jsonb;
    v_inserted int := 0;
    v_errors int := 0;
BEGIN
    FOR v_log IN SELECT * FROM jsonb_array_elements(logs) LOOP
        BEGIN
            INSERT INTO system_logs
                ("timestamp", source_type, source_id, log_level, message, task_id, worker_id, cycle_number, metadata)
            VALUES (coalesce((v_log ->> 'timestamp')::timestamptz, now()), v_log ->> 'source_type',
                    v_log ->> 'source_id', coalesce(v_log ->> 'log_level', v_log ->> 'level', 'INFO'),
                    v_log ->> 'message', (v_log ->> 'task_id')::uuid, v_log ->> 'worker_id',
                    (v_log ->> 'cycle_number')::int, coalesce(v_log -> 'metadata', '{}'));
            v_inserted := v_inserted + 1;
        EXCEPTION WHEN OTHERS THEN
            v_errors := v_errors + 1;
        END;
    END LOOP;
    RETURN jsonb_build_object('success', true, 'inserted', v_inserted, 'errors', v_errors);
END
$$;

CREATE FUNCTION func_worker_heartbeat_with_logs(
    worker_id_param text, vram_total_mb_param int DEFAULT NULL, vram_used_mb_param int DEFAULT NULL,
    logs_param jsonb[] DEFAULT NULL, current_task_id_param uuid DEFAULT NULL, status_param text DEFAULT NULL
) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_logs jsonb;
    v_done jsonb;
BEGIN
    PERFORM func_update_worker_heartbeat(worker_id_param, vram_total_mb_param, vram_used_mb_param);
    UPDATE workers SET status = status_param WHERE id = worker_id_param AND status_param IS NOT NULL;
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'timestamp', l.value -> 'timestamp', 'source_type', 'worker', 'source_id', worker_id_param,
               'log_level', l.value -> 'level', 'message', l.value -> 'message', 'worker_id', worker_id_param,
               'task_id', coalesce(l.value ->> 'task_id', current_task_id_param::text), 'metadata', l.value -> 'metadata')
               ORDER BY l.n), '[]')
      INTO v_logs FROM unnest(logs_param) WITH ORDINALITY AS l(value, n);
    v_done := func_insert_logs_batch(v_logs);
    RETURN jsonb_build_object('success', true, 'heartbeat_updated', true, 'logs_inserted', v_done -> 'inserted',
                              'log_errors', v_done -> 'errors');
END
$$;

CREATE FUNCTION func_cleanup_old_logs(hours int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    v_count int;
BEGIN
    DELETE FROM system_logs WHERE "timestamp" < now() - make_interval(hours => hours);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

INSERT INTO projects VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'one', 'aaaaaaaa-0000-4000-8000-000000000002');
INSERT INTO tasks (id, task_type, params, status, project_id, user_id, dependant_on, worker_id, attempts) VALUES
    ('bbbbbbbb-0000-4000-8000-000000000001', 'old_t2v', '{}', 'Complete', 'aaaaaaaa-0000-4000-8000-000000000001',
     'aaaaaaaa-0000-4000-8000-000000000002', NULL, 'gpu-old', 1),
    ('bbbbbbbb-0000-4000-8000-000000000002', 'old_t2v', '{}', 'In Progress', NULL, NULL, NULL, 'gpu-old', 1),
    ('bbbbbbbb-0000-4000-8000-000000000003', 'old_t2v', '{}', 'Failed', NULL, NULL, NULL, NULL, 3),
    ('bbbbbbbb-0000-4000-8000-000000000004', 'old_t2v', '{}', 'Queued', NULL, NULL,
     'bbbbbbbb-0000-4000-8000-000000000001', NULL, 0),
    ('bbbbbbbb-0000-4000-8000-000000000005', 'old_t2v', '{}', 'Queued', NULL, NULL,
     'bbbbbbbb-0000-4000-8000-000000000002', NULL, 0),
    ('bbbbbbbb-0000-4000-8000-000000000006', 'old_t2v', '{}', 'Queued', NULL, NULL,
     'bbbbbbbb-0000-4000-8000-000000000003', NULL, 0);
INSERT INTO workers (id, instance_type, status, metadata) VALUES
    ('gpu-old', 'NVIDIA GeForce RTX 4090', 'spawning', '{"runpod_id": "pod", "ssh_details": {"ip": "192.0.2.1"}}');
INSERT INTO generations (id, tasks, location, project_id) VALUES
    ('cccccccc-0000-4000-8000-000000000001', ARRAY['"bbbbbbbb-0000-4000-8000-000000000001"'::jsonb], 'https://x/old.mp4',
     'aaaaaaaa-0000-4000-8000-000000000001');
INSERT INTO generation_variants (generation_id, location, is_primary) VALUES
    ('cccccccc-0000-4000-8000-000000000001', 'https://x/old.mp4', true);
INSERT INTO system_logs (source_type, source_id, log_level, message, worker_id) VALUES
    ('worker', 'gpu-old', 'INFO', 'an old line', 'gpu-old');
