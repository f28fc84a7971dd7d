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
    "timestamp" timestamptz DEFAULT now(),
    source_type text CHECK (source_type IN ('orchestrator_gpu', 'orchestrator_api', 'worker')),
    source_id text,
    log_level text CHECK (log_level IN ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')),
    message text,
    task_id uuid,
    worker_id text,
    cycle_number int,
    metadata jsonb
);

-- A trigger of theirs that touches every update, and that needs the public schema on its path.
CREATE FUNCTION touch_project() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE projects SET name = name WHERE id = NEW.project_id;
    RETURN NEW;
END
$$;
CREATE TRIGGER on_task_change BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION touch_project();

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
