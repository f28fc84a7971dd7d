-- Tables and columns. What exists already is left as it is; only what is missing is added.
DO $step$
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
    END IF;
END
$step$;

ALTER TABLE public.tasks
    ADD COLUMN IF NOT EXISTS project_id uuid,
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS dependant_on uuid,
    ADD COLUMN IF NOT EXISTS worker_id text,
    ADD COLUMN IF NOT EXISTS attempts int NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS error_message text,
    ADD COLUMN IF NOT EXISTS output_location text,
    ADD COLUMN IF NOT EXISTS result_data jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS generation_started_at timestamptz,
    ADD COLUMN IF NOT EXISTS generation_processed_at timestamptz,
    ADD COLUMN IF NOT EXISTS created_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS priority int NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS max_attempts int NOT NULL DEFAULT 3,
    ADD COLUMN IF NOT EXISTS run_after timestamptz,
    ADD COLUMN IF NOT EXISTS open_dependencies int NOT NULL DEFAULT 0;

ALTER TABLE public.workers
    ADD COLUMN IF NOT EXISTS instance_type text,
    ADD COLUMN IF NOT EXISTS status text,
    ADD COLUMN IF NOT EXISTS last_heartbeat timestamptz,
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz DEFAULT now();

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
ALTER TABLE public.task_leases ADD COLUMN IF NOT EXISTS completing boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN public.task_leases.completing IS
    'Under this lease the predecessor''s function complete_task may make the row Complete, and that is no foreign hand.';
COMMENT ON COLUMN public.task_leases.parked_lease IS
    'The lease under which this task brought forth the children that it waits for; null when it waits for none.';
CREATE INDEX IF NOT EXISTS task_leases_claim ON public.task_leases (claim_id);
CREATE INDEX IF NOT EXISTS task_leases_expiry ON public.task_leases (expires_at) WHERE token IS NOT NULL;

-- Which task waits for which. tasks.dependant_on is mirrored here, so that one place answers.
CREATE TABLE IF NOT EXISTS public.task_dependencies (
    task_id uuid NOT NULL,
    depends_on uuid NOT NULL,
    open boolean NOT NULL DEFAULT true,
    missing_since timestamptz,
    PRIMARY KEY (task_id, depends_on)
);
CREATE INDEX IF NOT EXISTS task_dependencies_waiting ON public.task_dependencies (depends_on) WHERE open;
CREATE INDEX IF NOT EXISTS task_dependencies_missing ON public.task_dependencies (missing_since)
    WHERE missing_since IS NOT NULL;

-- The children of a parked parent, in the order in which it named them.
CREATE TABLE IF NOT EXISTS public.task_children (
    child_id uuid PRIMARY KEY,
    parent_id uuid NOT NULL,
    lease_id text NOT NULL,
    position int NOT NULL,
    is_final boolean NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS task_children_parent ON public.task_children (parent_id, position);

CREATE TABLE IF NOT EXISTS public.task_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text NOT NULL,
    worker_id text,
    attempt int,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX IF NOT EXISTS task_events_task ON public.task_events (task_id, id);

-- Since when a worker has been in contact without a gap: what entitles it to judge others dead.
CREATE TABLE IF NOT EXISTS public.worker_contacts (
    worker_id text PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    rescued_at timestamptz,
    lease_s float8 NOT NULL DEFAULT 90
);

ALTER TABLE public.task_leases ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.task_dependencies ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.task_children ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.task_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.worker_contacts ENABLE ROW LEVEL SECURITY;

-- The claim reads exactly this index, one probe per task type. A row that waits for a time or for other tasks is not
-- in it, so that no number of them slows a claim down.
CREATE INDEX IF NOT EXISTS tasks_wan2gp_claimable ON public.tasks (task_type, priority DESC, created_at, id)
    WHERE status = 'Queued' AND open_dependencies = 0 AND run_after IS NULL;
CREATE INDEX IF NOT EXISTS tasks_wan2gp_due ON public.tasks (run_after)
    WHERE status = 'Queued' AND open_dependencies = 0 AND run_after IS NOT NULL;
