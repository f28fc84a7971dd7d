-- The database behind the REST part of supabase_wire_golden.json.
CREATE TABLE tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz DEFAULT now(),
    task_type text NOT NULL,
    params jsonb DEFAULT '{}',
    status text DEFAULT 'Queued',
    worker_id text,
    attempts int DEFAULT 0,
    output_location text,
    generation_started_at timestamptz,
    error_message text
);
ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;

CREATE TABLE workers (id text PRIMARY KEY, last_heartbeat timestamptz, metadata jsonb DEFAULT '{}');
INSERT INTO workers (id) VALUES ('w1');

CREATE FUNCTION claim_next_task(p_worker_id text) RETURNS SETOF tasks LANGUAGE sql AS $$
    UPDATE tasks SET status = 'In Progress', worker_id = p_worker_id, attempts = attempts + 1,
                     generation_started_at = clock_timestamp()
     WHERE id = (SELECT id FROM tasks WHERE status = 'Queued' ORDER BY created_at, task_type LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *
$$;

CREATE FUNCTION complete_task(p_id uuid, p_output text) RETURNS boolean LANGUAGE sql AS $$
    WITH done AS (UPDATE tasks SET status = 'Complete', output_location = p_output WHERE id = p_id RETURNING id)
    SELECT EXISTS (SELECT FROM done)
$$;

CREATE FUNCTION scalar_int() RETURNS int LANGUAGE sql AS 'SELECT 7';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';

CREATE FUNCTION boom(p_msg text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', p_msg USING DETAIL = 'a detail', HINT = 'a hint';
END
$$;

CREATE FUNCTION boom_http() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE SQLSTATE 'PT409' USING MESSAGE = 'task is not yours', DETAIL = 'd', HINT = 'h';
END
$$;
