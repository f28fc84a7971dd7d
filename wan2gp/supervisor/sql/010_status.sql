-- The statuses. On a database that keeps them in an enum, the values that are missing are added; nothing else about the
-- type changes. 'queued' is among them because an INSERT that spells it so must work: a trigger folds it.
-- A step of its own: a new enum value may be used only after the transaction that added it is committed.
DO $step$
DECLARE
    v_type regtype;
    v_label text;
BEGIN
    SELECT a.atttypid INTO v_type
      FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
     WHERE a.attrelid = to_regclass('public.tasks') AND a.attname = 'status' AND y.typtype = 'e';
    IF v_type IS NULL THEN
        RETURN;
    END IF;
    FOREACH v_label IN ARRAY ARRAY['Queued', 'In Progress', 'Complete', 'Failed', 'Cancelled', 'queued'] LOOP
        IF NOT EXISTS (SELECT FROM pg_enum WHERE enumtypid = v_type AND enumlabel = v_label) THEN
            EXECUTE format('ALTER TYPE %s ADD VALUE %L', v_type, v_label);
        END IF;
    END LOOP;
END
$step$;
