-- Named jobs, which are resumed.

ALTER TABLE regrow.jobs ADD COLUMN name text;
ALTER TABLE regrow.jobs ADD COLUMN run int;
ALTER TABLE regrow.jobs ADD COLUMN driver int NOT NULL DEFAULT 0;
ALTER TABLE regrow.jobs ADD COLUMN runtime text NOT NULL DEFAULT '';
ALTER TABLE regrow.jobs ADD COLUMN detached boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN regrow.jobs.detached IS
    'Whether it outlives its driver: it ends when nothing in it is unfinished.';
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

CREATE FUNCTION regrow.delete_job(p_job int) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    v_job regrow.jobs;
    v_table text;
BEGIN
    SELECT * INTO v_job FROM regrow.jobs WHERE job = p_job AND status <> 'running' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job % does not exist, or runs', p_job;
    END IF;
    RETURN QUERY DELETE FROM regrow.stored_objects s WHERE EXISTS (
        SELECT FROM regrow.task_log t
        WHERE t.part = v_job.part AND t.job = p_job AND t.task_id = substr(s.object_id, 1, 16)
    ) OR EXISTS (
        SELECT FROM regrow.object_log o
        WHERE o.part = v_job.part AND o.job = p_job AND o.object_id = s.object_id
    ) RETURNING s.path;
    DELETE FROM regrow.rebuilds r USING regrow.task_log t
    WHERE t.part = v_job.part AND t.job = p_job AND t.task_id = r.task_id;
    DELETE FROM regrow.checkpoints k USING regrow.actors a
    WHERE a.job = p_job AND a.actor_id = k.actor_id;
    DELETE FROM regrow.actors WHERE job = p_job;
    DELETE FROM regrow.discarded_tasks WHERE job = p_job;
    IF v_job.part = regrow.part_of_job(p_job) THEN
        FOREACH v_table IN ARRAY ARRAY['task_log', 'object_log'] LOOP
            EXECUTE format('DROP TABLE IF EXISTS regrow.%I', v_table || '_' || v_job.part);
        END LOOP;
    ELSE
        DELETE FROM regrow.task_log WHERE part = v_job.part AND job = p_job;
        DELETE FROM regrow.object_log WHERE part = v_job.part AND job = p_job;
    END IF;
    DELETE FROM regrow.jobs WHERE job = p_job;
END $$;
COMMENT ON FUNCTION regrow.delete_job(int) IS
    'Takes a job that has ended out of the database; the paths of its stored objects, to be deleted.';
REVOKE ALL ON FUNCTION regrow.delete_job(int) FROM PUBLIC;

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
