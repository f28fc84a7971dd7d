-- Rights. The verbs run with their owner's rights and a fixed search_path, and are for the service and for a worker's
-- login role alone: make one with CREATE ROLE wan2gp_worker LOGIN PASSWORD '…' and migrate again.
DO $step$
DECLARE
    v_verbs text[] := ARRAY['claim', 'claim_bare', 'heartbeat', 'finish', 'finish_many', 'spawn', 'enqueue', 'cancel', 'retry',
                            'reclaim_own', 'rescue', 'task', 'tasks', 'stats', 'event', 'version', 'completing', 'facts',
                            'log'];
    v_roles text[] := ARRAY(SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('service_role', 'wan2gp_worker'));
    v_closed text[] := ARRAY(SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('anon', 'authenticated'));
    v_fn record;
    v_role text;
    v_table text;
BEGIN
    FOR v_fn IN
        SELECT p.oid::regprocedure::text AS sign, substr(p.proname, 8) = ANY (v_verbs) AS verb,
               p.prosecdef AS definer
          FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'wan2gp\_%'
    LOOP
        IF v_fn.verb THEN
            EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, public, extensions, pg_temp',
                           v_fn.sign);
        END IF;
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_fn.sign);
        FOREACH v_role IN ARRAY v_closed LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', v_fn.sign, v_role);
        END LOOP;
        FOREACH v_role IN ARRAY v_roles LOOP
            IF v_fn.verb THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_fn.sign, v_role);
            ELSE
                EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', v_fn.sign, v_role);
            END IF;
        END LOOP;
    END LOOP;
    FOREACH v_table IN ARRAY ARRAY['task_leases', 'task_dependencies', 'task_children', 'task_events', 'worker_contacts'] LOOP
        EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC', v_table);
        FOREACH v_role IN ARRAY v_closed LOOP
            EXECUTE format('REVOKE ALL ON public.%I FROM %I', v_table, v_role);
        END LOOP;
    END LOOP;
    FOREACH v_role IN ARRAY v_roles LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', v_role);
    END LOOP;
END
$step$;

-- The claim's plan may never depend on how large the table was when the session first claimed.
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8) SET enable_seqscan = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8) SET enable_bitmapscan = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8) SET enable_hashjoin = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8) SET enable_mergejoin = off;

-- A REST front end keeps a list of the functions; this makes it look again.
NOTIFY pgrst, 'reload schema';
