-- Tasks that were waiting for others before the contract came: their dependencies are mirrored, once. A claimer of ours
-- then neither starts them early nor forgets them; one that waits for a task that has failed ends now.
INSERT INTO public.task_dependencies (task_id, depends_on)
SELECT t.id, t.dependant_on FROM public.tasks t
 WHERE t.status = 'Queued' AND t.dependant_on IS NOT NULL AND t.dependant_on <> t.id
   AND NOT EXISTS (SELECT FROM public.task_dependencies d WHERE d.task_id = t.id AND d.depends_on = t.dependant_on)
 ORDER BY t.id
ON CONFLICT DO NOTHING;
