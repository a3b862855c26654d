-- Specs carry the number of the driver from which they descend. Those of a driver that another has
-- replaced are left out: the next driver submits the same tasks, under the same ids, and what is
-- pending in the log is waited for. They are noted as discarded, so that what their node still says of
-- them is no contradiction, whoever holds the same task by then.
--
-- regrow.append locks its node's row first, and whoever ends or resumes a job locks all of them: a
-- batch is wholly before that, and then its unfinished tasks are cancelled and taken out, or after it.

DO $do$
DECLARE
    v_row record;
    v_after text;
BEGIN
    FOR v_row IN
        SELECT p.oid, p.proname, pg_get_functiondef(p.oid) AS before
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'regrow' AND p.proname IN ('finish', 'note_actors')
    LOOP
        v_after := CASE v_row.proname
            WHEN 'finish' THEN replace(
                v_row.before, 'NOT (t.task_id IS NULL AND EXISTS (',
                'NOT ((t.holder, t.holder_incarnation) IS DISTINCT FROM (p_node, p_incarnation)'
                ' AND EXISTS (')
            -- An actor of a creation that was taken out never was.
            ELSE replace(
                v_row.before, 'IS NOT DISTINCT FROM ''running'') AS v (lives)',
                'IS NOT DISTINCT FROM ''running'') AS v (lives)'
                ' WHERE NOT (EXISTS (SELECT FROM regrow.discarded_tasks d'
                ' WHERE d.task_id = a.actor_id) AND NOT EXISTS ('
                'SELECT FROM regrow.task_log t WHERE t.task_id = a.actor_id))')
            END;
        IF v_after = v_row.before THEN
            RAISE EXCEPTION 'regrow.% is not as it was made', v_row.proname;
        END IF;
        EXECUTE v_after;
    END LOOP;

    SELECT p.oid, p.oid::regprocedure::text AS signature, pg_get_functiondef(p.oid) AS before,
        obj_description(p.oid) AS comment
    INTO STRICT v_row
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'regrow' AND p.proname = 'append';
    v_after := replace(v_row.before, 'c_custom boolean[])', 'c_custom boolean[], p_drivers integer[])');
    v_after := replace(
        v_after, 'NOT (t.task_id IS NULL AND EXISTS (',
        'NOT ((t.holder, t.holder_incarnation) IS DISTINCT FROM (p_node, p_incarnation) AND EXISTS (');
    v_after := replace(v_after, 'v_ended int[];', 'v_ended int[]; v_stale int[];');
    v_after := replace(
        v_after, 'FILTER (WHERE j.status <> ''running'')',
        'FILTER (WHERE j.status <> ''running''), array_agg(w.place::int)'
        ' FILTER (WHERE coalesce(p_drivers[w.place], 0) < j.driver)');
    v_after := replace(v_after, 'INTO v_parts, v_ended', 'INTO v_parts, v_ended, v_stale');
    v_after := replace(
        v_after, 'INSERT INTO regrow.task_log (', $text$IF v_stale IS NOT NULL THEN
            INSERT INTO regrow.discarded_tasks (task_id, job)
            SELECT s.task, p_jobs[coalesce(s.job, 1)] FROM unnest(s_task, s_job) AS s (task, job)
            WHERE coalesce(s.job, 1) = ANY (v_stale) ON CONFLICT DO NOTHING;
            -- Where the task is there already, it does not end by this.
            SELECT array_agg(CASE WHEN coalesce(s.job, 1) = ANY (v_stale) THEN 0::smallint
                ELSE coalesce(s.status, s_status[1]) END ORDER BY s.place)
            INTO s_status
            FROM unnest(s_task, s_job, s_status) WITH ORDINALITY AS s (task, job, status, place);
        END IF;
        INSERT INTO regrow.task_log ($text$);
    v_after := replace(
        v_after, 'size, digest, refs, duration)
        ON CONFLICT DO NOTHING;', 'size, digest, refs, duration)
        WHERE v_stale IS NULL OR coalesce(s.job, 1) <> ALL (v_stale)
        ON CONFLICT DO NOTHING;');
    IF v_after NOT LIKE '%p_drivers integer[])%' OR v_after NOT LIKE '%p_drivers[w.place]%'
        OR v_after NOT LIKE '%v_stale int[]%' OR v_after NOT LIKE '%v_ended, v_stale%'
        OR v_after NOT LIKE '%= ANY (v_stale)%' OR v_after NOT LIKE '%<> ALL (v_stale)%'
        OR v_after LIKE '%t.task_id IS NULL AND EXISTS%'
    THEN
        RAISE EXCEPTION 'regrow.append is not as it was made';
    END IF;
    EXECUTE v_after;
    EXECUTE 'DROP FUNCTION ' || v_row.signature;
    EXECUTE format('COMMENT ON FUNCTION regrow.append IS %L', v_row.comment);
    REVOKE ALL ON FUNCTION regrow.append FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'regrow_append') THEN
        GRANT EXECUTE ON FUNCTION regrow.append TO regrow_append;
    END IF;
END $do$;
