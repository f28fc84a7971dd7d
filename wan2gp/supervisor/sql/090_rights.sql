-- Rights. The verbs run with their owner's rights and are for the service and for a worker's login role alone: make one
-- with CREATE ROLE wan2gp_worker LOGIN PASSWORD '…' and migrate again. What has no verb is nobody's.
DO $step$
DECLARE
    v_verbs text[] := ARRAY['claim', 'claim_bare', 'heartbeat', 'finish', 'finish_many', 'spawn', 'enqueue', 'cancel', 'retry',
                            'reclaim_own', 'rescue', 'task', 'tasks', 'stats', 'event', 'version', 'completing', 'facts',
                            'log'];
    v_roles text[] := ARRAY(SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('service_role', 'wan2gp_worker'));
    v_ours text[] := ARRAY['task_leases', 'task_dependencies', 'task_children', 'task_events', 'worker_contacts'];
    -- Hosted databases give these roles all there is, and leave the rest to row level security.
    v_known text[] := ARRAY['PUBLIC', 'anon', 'authenticated', 'service_role', 'wan2gp_worker'];
    -- Who may create in a schema of the path could put a function there that fits better than the one we mean.
    v_creators oid[] := ARRAY(
        SELECT r.oid FROM pg_roles r
         WHERE r.rolsuper OR r.rolcreaterole OR r.rolname IN (current_user, 'pg_database_owner')
        UNION SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()
        UNION SELECT n.nspowner FROM pg_namespace n WHERE n.nspname IN ('public', 'extensions'));
    v_path text := 'pg_catalog, public';
    v_one record;
    v_role text;
BEGIN
    -- public stands in the path because triggers that others have on tasks look for their tables there.
    FOR v_one IN
        SELECT coalesce(quote_ident(r.rolname), 'PUBLIC') AS grantee
          FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
         WHERE n.nspname = 'public' AND a.privilege_type = 'CREATE' AND coalesce(r.rolname, 'PUBLIC') = ANY (v_known)
           AND a.grantee <> ALL (v_creators)
    LOOP
        EXECUTE format('REVOKE CREATE ON SCHEMA public FROM %s', v_one.grantee);
    END LOOP;
    FOR v_one IN
        SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC') AS grantee
          FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
         WHERE n.nspname = 'public' AND a.privilege_type = 'CREATE' AND a.grantee <> ALL (v_creators)
    LOOP
        RAISE WARNING 'the role % may create functions in the schema public, and so take the rights of the queue''s owner: '
            'REVOKE CREATE ON SCHEMA public FROM %', v_one.grantee, v_one.grantee;
    END LOOP;
    IF EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = 'extensions') THEN
        IF EXISTS (SELECT FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
                    WHERE n.nspname = 'extensions' AND a.privilege_type = 'CREATE' AND a.grantee <> ALL (v_creators)) THEN
            RAISE WARNING 'the schema extensions is open to everybody''s functions: the queue''s functions do without it';
        ELSE
            v_path := v_path || ', extensions';
        END IF;
    END IF;

    FOR v_one IN
        SELECT p.oid::regprocedure::text AS sign, substr(p.proname, 8) = ANY (v_verbs) AS verb,
               p.prorettype = 'trigger'::regtype AS fires
          FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'wan2gp\_%' ORDER BY p.oid
    LOOP
        -- Trigger functions too run with the owner's rights: who may insert a task need not see our tables.
        EXECUTE format('ALTER FUNCTION %s SECURITY %s SET search_path = %s, pg_temp', v_one.sign,
                       CASE WHEN v_one.verb OR v_one.fires THEN 'DEFINER' ELSE 'INVOKER' END, v_path);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_one.sign);
        FOR v_role IN
            SELECT DISTINCT a.grantee::regrole::text
              FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) AS a JOIN pg_roles r ON r.oid = a.grantee
             WHERE p.oid = v_one.sign::regprocedure AND a.grantee <> p.proowner
               AND (NOT v_one.verb OR r.rolname IN ('anon', 'authenticated'))
        LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', v_one.sign, v_role);
        END LOOP;
        FOREACH v_role IN ARRAY v_roles LOOP
            IF v_one.verb THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_one.sign, v_role);
            END IF;
        END LOOP;
    END LOOP;

    -- Tokens and histories are nobody's but the functions'. On the tables that others use, what row level security does
    -- not bind: whoever may hang a trigger on them runs it with the rights of whoever writes there, and we do.
    FOR v_one IN
        SELECT c.oid::regclass::text AS tab, c.relkind = 'S' AS is_sequence, coalesce(r.rolname, 'PUBLIC') AS rolname,
               string_agg(DISTINCT a.privilege_type, ', ') AS rights
          FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
         WHERE c.relnamespace = 'public'::regnamespace AND a.grantee <> c.relowner
           AND coalesce(r.rolname, 'PUBLIC') = ANY (v_known)
           AND (c.relname = ANY (v_ours) OR c.relname = 'task_events_id_seq'
                OR c.relname IN ('tasks', 'workers', 'system_logs') AND (
                    a.privilege_type = 'TRIGGER'
                    OR a.privilege_type IN ('TRUNCATE', 'REFERENCES', 'MAINTAIN')
                       AND coalesce(r.rolname, 'PUBLIC') <> 'service_role'))
         GROUP BY 1, 2, 3 ORDER BY 1, 3
    LOOP
        EXECUTE format('REVOKE %s ON %s %s FROM %s', v_one.rights,
                       CASE WHEN v_one.is_sequence THEN 'SEQUENCE' ELSE 'TABLE' END, v_one.tab,
                       CASE WHEN v_one.rolname = 'PUBLIC' THEN 'PUBLIC' ELSE quote_ident(v_one.rolname) END);
    END LOOP;
    FOREACH v_role IN ARRAY v_roles LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', v_role);
    END LOOP;

    -- What only its owner can decide.
    FOR v_one IN
        SELECT c.oid::regclass::text AS tab, string_agg(DISTINCT coalesce(r.rolname, 'PUBLIC'), ', ') AS roles
          FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
         WHERE c.oid IN (to_regclass('public.tasks'), to_regclass('public.workers')) AND NOT c.relrowsecurity
           AND coalesce(r.rolname, 'PUBLIC') IN ('PUBLIC', 'anon', 'authenticated')
           AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
         GROUP BY 1 ORDER BY 1
    LOOP
        RAISE WARNING 'row level security is off on %, which % may use: every row is theirs '
            '(docs/supabase.md has policies)', v_one.tab, v_one.roles;
    END LOOP;
    FOR v_one IN
        SELECT g.tgname, c.oid::regclass::text AS tab, pg_get_userbyid(p.proowner) AS owner
          FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_proc p ON p.oid = g.tgfoid
         WHERE c.oid IN (to_regclass('public.tasks'), to_regclass('public.workers'), to_regclass('public.system_logs'))
           AND NOT g.tgisinternal AND p.proowner <> ALL (v_creators) AND p.proowner <> c.relowner ORDER BY 1, 2
    LOOP
        RAISE WARNING 'the trigger % on % is a function of the role %, and runs with the rights of the queue''s owner',
            v_one.tgname, v_one.tab, v_one.owner;
    END LOOP;
END
$step$;

-- The claim's plan may never depend on how large the table was when the session first claimed.
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8, jsonb) SET enable_seqscan = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8, jsonb) SET enable_bitmapscan = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8, jsonb) SET enable_hashjoin = off;
ALTER FUNCTION public.wan2gp_claim(text, text, text[], int, float8, jsonb) SET enable_mergejoin = off;

-- A REST front end keeps a list of the functions; this makes it look again.
NOTIFY pgrst, 'reload schema';
