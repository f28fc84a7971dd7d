-- Whose the contract is. Its functions run with their owner's rights: one that somebody else made here before, under a
-- name of ours, would stay his, and do with our rights what he likes. Whoever may migrate must not fall for that.
DO $step$
DECLARE
    v_trusted oid[] := ARRAY(
        SELECT r.oid FROM pg_roles r WHERE r.rolsuper OR r.rolname = current_user
        UNION SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()
        UNION SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'public');
    v_foreign record;
BEGIN
    SELECT what.said, pg_get_userbyid(what.owner) AS owner INTO v_foreign FROM (
        SELECT 'function ' || p.oid::regprocedure::text AS said, p.proowner AS owner FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'wan2gp\_%'
        UNION ALL  -- what stands for a built-in in the schema where our functions look after the built-in ones
        SELECT 'function ' || p.oid::regprocedure::text, p.proowner FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace
           AND EXISTS (SELECT FROM pg_proc b WHERE b.pronamespace = 'pg_catalog'::regnamespace AND b.proname = p.proname)
        UNION ALL
        SELECT 'operator ' || o.oid::regoperator::text, o.oprowner FROM pg_operator o
         WHERE o.oprnamespace = 'public'::regnamespace
           AND EXISTS (SELECT FROM pg_operator b WHERE b.oprnamespace = 'pg_catalog'::regnamespace AND b.oprname = o.oprname)
        UNION ALL
        SELECT 'table ' || c.oid::regclass::text, c.relowner FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace
           AND c.relname IN ('task_leases', 'task_dependencies', 'task_children', 'task_events', 'worker_contacts')
    ) AS what WHERE what.owner <> ALL (v_trusted) ORDER BY 1 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the % belongs to the role %, which may be anybody: drop it, or give it to %',
            v_foreign.said, v_foreign.owner, current_user USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$step$;
