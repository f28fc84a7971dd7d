-- Tables and columns. What exists already is left as it is; only what is missing is added. It is looked for first: ALTER
-- TABLE and CREATE INDEX lock the table, and with it every worker, even where IF NOT EXISTS then has nothing to do.
DO $step$
DECLARE
    v_role text;
BEGIN
    IF to_regclass('public.tasks') IS NULL THEN
        CREATE TABLE public.tasks (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            task_type text NOT NULL,
            params jsonb NOT NULL DEFAULT '{}',
            status text NOT NULL DEFAULT 'Queued',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        );
        -- Hosted databases open new tables to their anonymous role by default; these hold other people's inputs.
        ALTER TABLE public.tasks ENABLE ROW LEVEL SECURITY;
    END IF;
    IF to_regclass('public.workers') IS NULL THEN
        CREATE TABLE public.workers (
            id text PRIMARY KEY,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE public.workers ENABLE ROW LEVEL SECURITY;
        REVOKE ALL ON public.workers FROM PUBLIC;
        FOR v_role IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('anon', 'authenticated') LOOP
            EXECUTE format('REVOKE ALL ON public.workers FROM %I', v_role);
        END LOOP;
    END IF;
END
$step$;

-- One row per task that was ever claimed. A lease is live while it has a token; what outlives the lease are the
-- counters, the causes of the attempts before, and which token was settled last (so that a repeat is recognised).
CREATE TABLE IF NOT EXISTS public.task_leases (
    task_id uuid PRIMARY KEY,
    worker_id text,
    token text,
    lease_id text,
    claim_id text,
    attempt int NOT NULL DEFAULT 0,
    lease_s float8 NOT NULL DEFAULT 90,
    claimed_at timestamptz,
    expires_at timestamptz,
    progress float8,
    phase text,
    detail text,
    failures int NOT NULL DEFAULT 0,
    losses int NOT NULL DEFAULT 0,
    interruptions int NOT NULL DEFAULT 0,
    history jsonb NOT NULL DEFAULT '[]',
    parked_lease text,
    last_token text,
    last_verb text
);

-- Which task waits for which. tasks.dependant_on is mirrored here, so that one place answers.
CREATE TABLE IF NOT EXISTS public.task_dependencies (
    task_id uuid NOT NULL,
    depends_on uuid NOT NULL,
    open boolean NOT NULL DEFAULT true,
    missing_since timestamptz,
    PRIMARY KEY (task_id, depends_on)
);

-- The children of a parked parent, in the order in which it named them.
CREATE TABLE IF NOT EXISTS public.task_children (
    child_id uuid PRIMARY KEY,
    parent_id uuid NOT NULL,
    lease_id text NOT NULL,
    position int NOT NULL,
    is_final boolean NOT NULL DEFAULT false
);

CREATE TABLE IF NOT EXISTS public.task_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text NOT NULL,
    worker_id text,
    attempt int,
    detail jsonb NOT NULL DEFAULT '{}'
);

-- Since when a worker has been in contact without a gap: what entitles it to judge others dead.
CREATE TABLE IF NOT EXISTS public.worker_contacts (
    worker_id text PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    rescued_at timestamptz,
    lease_s float8 NOT NULL DEFAULT 90
);

DO $step$
DECLARE
    v_one record;
BEGIN
    FOR v_one IN
        SELECT w.tab, string_agg(format('ADD COLUMN IF NOT EXISTS %I %s', w.col, w.definition), ', ' ORDER BY w.n) AS missing
          FROM (VALUES
            (1, 'tasks', 'project_id', 'uuid'),
            (2, 'tasks', 'user_id', 'uuid'),
            (3, 'tasks', 'dependant_on', 'uuid'),
            (4, 'tasks', 'worker_id', 'text'),
            (5, 'tasks', 'attempts', 'int NOT NULL DEFAULT 0'),
            (6, 'tasks', 'error_message', 'text'),
            (7, 'tasks', 'output_location', 'text'),
            (8, 'tasks', 'result_data', 'jsonb DEFAULT ''{}'''),
            (9, 'tasks', 'generation_started_at', 'timestamptz'),
            (10, 'tasks', 'generation_processed_at', 'timestamptz'),
            (11, 'tasks', 'created_at', 'timestamptz DEFAULT now()'),
            (12, 'tasks', 'updated_at', 'timestamptz DEFAULT now()'),
            (13, 'tasks', 'priority', 'int NOT NULL DEFAULT 0'),
            (14, 'tasks', 'max_attempts', 'int NOT NULL DEFAULT 3'),
            (15, 'tasks', 'run_after', 'timestamptz'),
            (16, 'tasks', 'open_dependencies', 'int NOT NULL DEFAULT 0'),
            (17, 'workers', 'instance_type', 'text'),
            (18, 'workers', 'status', 'text'),
            (19, 'workers', 'last_heartbeat', 'timestamptz'),
            (20, 'workers', 'metadata', 'jsonb DEFAULT ''{}'''),
            (21, 'workers', 'created_at', 'timestamptz DEFAULT now()'),
            (22, 'workers', 'updated_at', 'timestamptz DEFAULT now()'),
            (23, 'task_leases', 'completing', 'boolean NOT NULL DEFAULT false'),
            (24, 'task_leases', 'wait_s', 'float8'),
            (25, 'task_leases', 'wait_until', 'timestamptz'),
            (26, 'worker_contacts', 'taken_over_at', 'timestamptz')
          ) AS w(n, tab, col, definition)
         WHERE NOT EXISTS (SELECT FROM pg_attribute a
                            WHERE a.attrelid = to_regclass('public.' || w.tab) AND a.attname = w.col AND NOT a.attisdropped)
         GROUP BY w.tab ORDER BY w.tab
    LOOP
        EXECUTE format('ALTER TABLE public.%I %s', v_one.tab, v_one.missing);
    END LOOP;
    -- The claim reads exactly tasks_wan2gp_claimable, one probe per task type. A row that waits for a time or for other
    -- tasks is not in it, so that no number of them slows a claim down.
    FOR v_one IN SELECT * FROM (VALUES
        ('task_leases_claim', 'public.task_leases (claim_id)'),
        ('task_leases_expiry', 'public.task_leases (expires_at) WHERE token IS NOT NULL'),
        ('task_leases_waiting', 'public.task_leases (wait_until) WHERE wait_until IS NOT NULL'),
        ('task_dependencies_waiting', 'public.task_dependencies (depends_on) WHERE open'),
        ('task_dependencies_missing', 'public.task_dependencies (missing_since) WHERE missing_since IS NOT NULL'),
        ('task_children_parent', 'public.task_children (parent_id, position)'),
        ('task_events_task', 'public.task_events (task_id, id)'),
        ('tasks_wan2gp_claimable', 'public.tasks (task_type, priority DESC, created_at, id)
            WHERE status = ''Queued'' AND open_dependencies = 0 AND run_after IS NULL'),
        ('tasks_wan2gp_due', 'public.tasks (run_after)
            WHERE status = ''Queued'' AND open_dependencies = 0 AND run_after IS NOT NULL')
    ) AS w(name, definition) LOOP
        IF to_regclass('public.' || v_one.name) IS NULL THEN
            EXECUTE format('CREATE INDEX %I ON %s', v_one.name, v_one.definition);
        END IF;
    END LOOP;
    FOR v_one IN
        SELECT c.relname FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relrowsecurity
           AND c.relname IN ('task_leases', 'task_dependencies', 'task_children', 'task_events', 'worker_contacts')
    LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', v_one.relname);
    END LOOP;
    FOR v_one IN SELECT * FROM (VALUES
        ('completing',
         'Under this lease the predecessor''s function complete_task may make the row Complete, and that is no foreign hand.'),
        ('parked_lease',
         'The lease under which this task brought forth the children that it waits for; null when it waits for none.'),
        ('wait_s', 'How long the task was told to wait, seconds, where tasks.run_after came of that.'),
        ('wait_until', 'What tasks.run_after was made of wait_s; another value there is somebody else''s.')
    ) AS w(col, said) LOOP
        IF NOT EXISTS (SELECT FROM pg_attribute a
                        WHERE a.attrelid = 'public.task_leases'::regclass AND a.attname = v_one.col
                          AND col_description(a.attrelid, a.attnum) = v_one.said) THEN
            EXECUTE format('COMMENT ON COLUMN public.task_leases.%I IS %L', v_one.col, v_one.said);
        END IF;
    END LOOP;
END
$step$;
