-- Named jobs, which are resumed.

ALTER TABLE regrow.jobs ADD COLUMN name text;
ALTER TABLE regrow.jobs ADD COLUMN run int;
ALTER TABLE regrow.jobs ADD COLUMN driver int NOT NULL DEFAULT 0;
ALTER TABLE regrow.jobs ADD COLUMN runtime text NOT NULL DEFAULT '';
CREATE UNIQUE INDEX jobs_name ON regrow.jobs (name, run) WHERE name IS NOT NULL;
COMMENT ON TABLE regrow.jobs IS 'One row per driver that joined, or per run of a named job.';
COMMENT ON COLUMN regrow.jobs.part IS
    'Partition key of its tasks and objects: yyyymmdd (UTC) of its start; a named job has its own.';
COMMENT ON COLUMN regrow.jobs.name IS 'As in init(job=...); null where it has none.';
COMMENT ON COLUMN regrow.jobs.run IS 'Which run of that name; a run that did not end well is resumed.';
COMMENT ON COLUMN regrow.jobs.driver IS 'Of a named job: how many drivers it has had. Only the last one may go on.';
COMMENT ON COLUMN regrow.jobs.runtime IS 'Of a named job: versions of Python and regrow at its start.';

CREATE FUNCTION regrow.part_of_job(job int) RETURNS int LANGUAGE sql IMMUTABLE AS
$$ SELECT 1000000000 + job $$;
COMMENT ON FUNCTION regrow.part_of_job(int) IS 'Internal: the partition key of a named job.';

CREATE TABLE regrow.discarded_tasks (
    task_id bytea PRIMARY KEY,
    job int NOT NULL
);
COMMENT ON TABLE regrow.discarded_tasks IS
    'Internal: cancelled tasks that were taken out when their job was resumed; a late outcome is no contradiction.';
COMMENT ON COLUMN regrow.discarded_tasks.task_id IS 'The task.';
COMMENT ON COLUMN regrow.discarded_tasks.job IS 'The job (regrow.jobs).';

DO $do$
DECLARE
    v_row record;
    v_after text;
BEGIN
    FOR v_row IN
        SELECT p.proname, pg_get_functiondef(p.oid) AS before
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'regrow' AND p.proname IN ('append', 'finish')
    LOOP
        v_after := CASE v_row.proname
            WHEN 'finish' THEN replace(
                v_row.before, '<> 0 AND t.status IS DISTINCT FROM 4',
                '<> 0 AND t.status IS DISTINCT FROM 4 AND NOT (t.task_id IS NULL AND EXISTS ('
                'SELECT FROM regrow.discarded_tasks d WHERE d.task_id = o.task_id))')
            ELSE replace(
                v_row.before, 'WHERE t.status IS DISTINCT FROM 4 AND (',
                'WHERE t.status IS DISTINCT FROM 4 AND NOT (t.task_id IS NULL AND EXISTS ('
                'SELECT FROM regrow.discarded_tasks d WHERE d.task_id = h.task_id)) AND (')
            END;
        IF v_after NOT LIKE '%discarded_tasks%' THEN
            RAISE EXCEPTION 'regrow.% is not as it was made', v_row.proname;
        END IF;
        EXECUTE v_after;
    END LOOP;
END $do$;
