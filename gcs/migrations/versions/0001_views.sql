-- What people read: views whose columns keep their names, and the ancestry of an object.

CREATE VIEW regrow.tasks AS SELECT
    job, task_id, parent_id, function_id, name,
    CASE kind WHEN 0 THEN 'task' WHEN 1 THEN 'actor_creation' ELSE 'actor_call' END AS kind,
    CASE status WHEN 0 THEN 'PENDING' WHEN 1 THEN 'FINISHED' WHEN 4 THEN 'CANCELLED' ELSE 'FAILED' END
        AS state,
    error, actor_id, actor_seq, submitter AS submitter_node, holder AS node_id,
    holder_incarnation AS incarnation, attempt, max_retries, num_returns, resources, deps, nested,
    duration_us, submitted_at, finished_at, result,
    CASE WHEN status IN (1, 2, 3) THEN coalesce(result_size, octet_length(result)) END AS result_size,
    result_digest, result_refs, spec, status, part
FROM regrow.task_log;
COMMENT ON VIEW regrow.tasks IS 'Every task, creation of an actor and call of an actor.';
COMMENT ON COLUMN regrow.tasks.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.tasks.task_id IS '16 bytes.';
COMMENT ON COLUMN regrow.tasks.parent_id IS 'The task that submitted it; for a driver: regrow.jobs.driver_id.';
COMMENT ON COLUMN regrow.tasks.function_id IS 'What it runs (regrow.functions).';
COMMENT ON COLUMN regrow.tasks.name IS 'Name of the function, Class.__init__ or Class.method.';
COMMENT ON COLUMN regrow.tasks.kind IS 'task, actor_creation or actor_call.';
COMMENT ON COLUMN regrow.tasks.state IS 'PENDING, FINISHED, FAILED or CANCELLED.';
COMMENT ON COLUMN regrow.tasks.error IS 'One word for why it failed.';
COMMENT ON COLUMN regrow.tasks.actor_id IS 'Of an actor''s creation or call: the actor.';
COMMENT ON COLUMN regrow.tasks.actor_seq IS 'Of an actor''s call: its place in the order of execution, from 1.';
COMMENT ON COLUMN regrow.tasks.submitter_node IS 'The node that waits for its result.';
COMMENT ON COLUMN regrow.tasks.node_id IS 'The node that runs it, or ran it.';
COMMENT ON COLUMN regrow.tasks.incarnation IS 'Which incarnation of that node.';
COMMENT ON COLUMN regrow.tasks.attempt IS 'Counts its attempts, from 1.';
COMMENT ON COLUMN regrow.tasks.max_retries IS 'How often it may run again; -1 is without limit.';
COMMENT ON COLUMN regrow.tasks.num_returns IS 'Number of its return values.';
COMMENT ON COLUMN regrow.tasks.resources IS 'What it asks for, in ten-thousandths: {"CPU": 10000} is 1 CPU. Null is the default.';
COMMENT ON COLUMN regrow.tasks.deps IS 'Objects it has as arguments, 20 bytes each.';
COMMENT ON COLUMN regrow.tasks.nested IS 'Objects referenced inside its arguments, 20 bytes each.';
COMMENT ON COLUMN regrow.tasks.duration_us IS 'Microseconds of the run.';
COMMENT ON COLUMN regrow.tasks.submitted_at IS 'When the batch with its spec was appended.';
COMMENT ON COLUMN regrow.tasks.finished_at IS 'When the batch with its outcome was appended; null while unfinished.';
COMMENT ON COLUMN regrow.tasks.result IS 'First return value (or the error) if small, pickled.';
COMMENT ON COLUMN regrow.tasks.result_size IS 'Bytes of the first return value (or the error).';
COMMENT ON COLUMN regrow.tasks.result_digest IS 'xxh3-128 of the first return value.';
COMMENT ON COLUMN regrow.tasks.result_refs IS 'Object ids inside the first return value, 20 bytes each.';
COMMENT ON COLUMN regrow.tasks.spec IS 'The whole specification with its arguments, as the client made it.';
COMMENT ON COLUMN regrow.tasks.status IS '0 pending, 1 ok, 2 the program raised, 3 the system gave up, 4 cancelled.';
COMMENT ON COLUMN regrow.tasks.part IS 'Partition key: that of its job. Naming it makes queries fast on long histories.';

CREATE VIEW regrow.objects AS SELECT
    o.*, s.path AS stored_path
FROM (
    SELECT task_id || '\x00000000'::bytea AS object_id, task_id, job, 'return' AS kind,
        coalesce(result_size, octet_length(result)) AS size, result_digest AS digest,
        result AS data, result_refs AS refs, finished_at AS created_at, part
    FROM regrow.task_log WHERE status = 1 AND num_returns > 0
    UNION ALL
    SELECT object_id, task_id, job, CASE WHEN get_byte(object_id, 16) >= 128 THEN 'put' ELSE 'return' END,
        size, digest, data, refs, created_at, part
    FROM regrow.object_log
) o LEFT JOIN regrow.stored_objects s USING (object_id);
COMMENT ON VIEW regrow.objects IS 'Every committed object: return values of tasks, and puts.';
COMMENT ON COLUMN regrow.objects.object_id IS '20 bytes.';
COMMENT ON COLUMN regrow.objects.task_id IS 'The task that returned or put it; for a driver: regrow.jobs.driver_id.';
COMMENT ON COLUMN regrow.objects.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.objects.kind IS 'return or put.';
COMMENT ON COLUMN regrow.objects.size IS 'Bytes.';
COMMENT ON COLUMN regrow.objects.digest IS 'xxh3-128 of its bytes.';
COMMENT ON COLUMN regrow.objects.data IS 'Its bytes, if small (pickled); null: in the arenas of nodes, or stored.';
COMMENT ON COLUMN regrow.objects.refs IS 'Object ids inside it, 20 bytes each.';
COMMENT ON COLUMN regrow.objects.created_at IS 'When it was committed.';
COMMENT ON COLUMN regrow.objects.part IS 'Partition key: that of its job.';
COMMENT ON COLUMN regrow.objects.stored_path IS 'Where its bytes are in storage, if they are.';

CREATE VIEW regrow.task_results AS SELECT
    job, task_id, name,
    CASE status WHEN 1 THEN 'FINISHED' WHEN 4 THEN 'CANCELLED' ELSE 'FAILED' END AS state, error,
    coalesce(result_size, octet_length(result)) AS size, result_digest AS digest, result AS data,
    result_refs AS refs, attempt, duration_us, finished_at, part
FROM regrow.task_log WHERE status <> 0;
COMMENT ON VIEW regrow.task_results IS 'How every finished task ended, with its first return value.';
COMMENT ON COLUMN regrow.task_results.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.task_results.task_id IS '16 bytes.';
COMMENT ON COLUMN regrow.task_results.name IS 'Name of the function, Class.__init__ or Class.method.';
COMMENT ON COLUMN regrow.task_results.state IS 'FINISHED, FAILED or CANCELLED.';
COMMENT ON COLUMN regrow.task_results.error IS 'One word for why it failed.';
COMMENT ON COLUMN regrow.task_results.size IS 'Bytes of the first return value (or the error).';
COMMENT ON COLUMN regrow.task_results.digest IS 'xxh3-128 of the first return value.';
COMMENT ON COLUMN regrow.task_results.data IS 'First return value (or the error) if small, pickled.';
COMMENT ON COLUMN regrow.task_results.refs IS 'Object ids inside the first return value, 20 bytes each.';
COMMENT ON COLUMN regrow.task_results.attempt IS 'The attempt that made it.';
COMMENT ON COLUMN regrow.task_results.duration_us IS 'Microseconds of the run.';
COMMENT ON COLUMN regrow.task_results.finished_at IS 'When it was committed.';
COMMENT ON COLUMN regrow.task_results.part IS 'Partition key: that of its job.';

CREATE VIEW regrow.actor_calls AS SELECT
    job, actor_id, actor_seq, task_id, name,
    CASE status WHEN 0 THEN 'PENDING' WHEN 1 THEN 'FINISHED' WHEN 4 THEN 'CANCELLED' ELSE 'FAILED' END
        AS state,
    finished_at, part
FROM regrow.task_log WHERE kind = 2 AND actor_id IS NOT NULL;
COMMENT ON VIEW regrow.actor_calls IS 'Provisional: the calls of actors, numbered as they were executed.';
COMMENT ON COLUMN regrow.actor_calls.job IS 'The job (regrow.jobs).';
COMMENT ON COLUMN regrow.actor_calls.actor_id IS 'The actor.';
COMMENT ON COLUMN regrow.actor_calls.actor_seq IS 'Its place in the order of execution, from 1; null while pending.';
COMMENT ON COLUMN regrow.actor_calls.task_id IS 'The call (regrow.tasks).';
COMMENT ON COLUMN regrow.actor_calls.name IS 'Class.method.';
COMMENT ON COLUMN regrow.actor_calls.state IS 'PENDING, FINISHED, FAILED or CANCELLED.';
COMMENT ON COLUMN regrow.actor_calls.finished_at IS 'When it was committed.';
COMMENT ON COLUMN regrow.actor_calls.part IS 'Partition key: that of its job.';

CREATE FUNCTION regrow.object_ids(joined bytea) RETURNS SETOF bytea LANGUAGE sql IMMUTABLE STRICT
ROWS 3 AS $$
    SELECT substr(joined, 20 * n + 1, 20) FROM generate_series(0, octet_length(joined) / 20 - 1) AS n
$$;
COMMENT ON FUNCTION regrow.object_ids(bytea) IS 'The object ids in a column that holds 20 bytes for each.';

CREATE FUNCTION regrow.ancestry(wanted bytea) RETURNS TABLE (
    object_id bytea, task_id bytea, kind text, name text, state text, job int, actor_id bytea,
    actor_seq int, parent_id bytea, node_id int, attempt int, duration_us bigint,
    finished_at timestamptz
) LANGUAGE sql STABLE STRICT AS $$
    WITH RECURSIVE made (object_id) AS (
        SELECT wanted
        UNION
        SELECT source.object_id
        FROM made CROSS JOIN LATERAL (
            -- arguments of the task that returned it, and what the value refers to
            SELECT regrow.object_ids(t.deps) AS object_id FROM regrow.task_log t
            WHERE t.task_id = substr(made.object_id, 1, 16)
            UNION ALL SELECT regrow.object_ids(t.nested) FROM regrow.task_log t
            WHERE t.task_id = substr(made.object_id, 1, 16)
            UNION ALL SELECT regrow.object_ids(t.result_refs) FROM regrow.task_log t
            WHERE t.task_id = substr(made.object_id, 1, 16)
            -- of an actor's call: the call before it on that actor, and the actor's creation
            UNION ALL SELECT before.task_id || '\x00000000'::bytea
            FROM regrow.task_log t CROSS JOIN LATERAL (
                SELECT b.task_id FROM regrow.task_log b
                WHERE b.actor_id = t.actor_id AND b.actor_seq < t.actor_seq
                ORDER BY b.actor_seq DESC LIMIT 1) before
            WHERE t.task_id = substr(made.object_id, 1, 16) AND t.kind = 2
            UNION ALL SELECT t.actor_id || '\x00000000'::bytea FROM regrow.task_log t
            WHERE t.task_id = substr(made.object_id, 1, 16) AND t.kind = 2
            -- of a put: the task that put it, and what the value refers to
            UNION ALL SELECT o.task_id || '\x00000000'::bytea FROM regrow.object_log o
            WHERE o.object_id = made.object_id
            UNION ALL SELECT regrow.object_ids(o.refs) FROM regrow.object_log o
            WHERE o.object_id = made.object_id
        ) source
    ), tasks AS (
        SELECT DISTINCT substr(made.object_id, 1, 16) AS task_id FROM made
        WHERE get_byte(made.object_id, 16) < 128
    )
    SELECT t.task_id || '\x00000000'::bytea, t.task_id, t.kind, t.name, t.state, t.job, t.actor_id,
        t.actor_seq, t.parent_id, t.node_id, t.attempt, t.duration_us, t.finished_at
    FROM tasks CROSS JOIN LATERAL (
        SELECT * FROM regrow.tasks v WHERE v.task_id = tasks.task_id) t
    UNION ALL
    SELECT o.object_id, o.task_id, 'put', 'put', 'FINISHED', o.job, NULL, NULL, o.task_id, NULL, NULL,
        NULL, o.created_at
    FROM made JOIN regrow.object_log o ON o.object_id = made.object_id
    WHERE get_byte(made.object_id, 16) >= 128
$$;
COMMENT ON FUNCTION regrow.ancestry(bytea) IS
    'Everything an object was made from, itself included: the tasks that made it and its arguments and theirs, puts with the tasks that put them, and of an actor''s call the calls before it and the actor''s creation.';

-- A walk up the lineage, level by level: the tasks asked for, each with those of its arguments that
-- are not small (needs), the tasks that made them (makers; null: none, or its bytes are in storage),
-- the storage paths of those that have one, and the arguments that these partitions do not know.
CREATE FUNCTION regrow.lineage(wanted bytea[], parts int[], max_depth int, max_tasks int)
RETURNS TABLE (
    level int, task_id bytea, status smallint, kind smallint, max_retries int, num_returns int,
    resources jsonb, digest bytea, needs bytea[], makers bytea[], paths text[], unknown bytea[]
) LANGUAGE plpgsql STABLE
-- There may be no statistics yet: rows are looked up by their ids.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    -- The partitions by name: through their parent each statement would open all there are.
    v_tasks text := (SELECT string_agg('SELECT * FROM regrow.task_log_' || part, ' UNION ALL ')
                     FROM unnest(parts) AS part);
    v_objects text := (SELECT string_agg('SELECT * FROM regrow.object_log_' || part, ' UNION ALL ')
                       FROM unnest(parts) AS part);
    -- The arguments of a task t; "large" is null for those that are not known.
    v_arguments text := format($arguments$
        SELECT d.object_id, r.large, s.path, CASE WHEN s.path IS NULL THEN r.maker END AS maker
        FROM (
            SELECT DISTINCT regrow.object_ids(coalesce(t.deps, '') || coalesce(t.nested, ''))
        ) AS d (object_id)
        LEFT JOIN LATERAL (
            SELECT p.task_id AS maker, p.status = 0 OR (p.status = 1 AND p.result IS NULL
                AND substr(d.object_id, 17, 4) = '\x00000000'::bytea) AS large
            FROM (%s) AS p WHERE p.task_id = substr(d.object_id, 1, 16)
            UNION ALL
            SELECT CASE WHEN j.driver_id <> o.task_id THEN o.task_id END, o.data IS NULL
            FROM (%s) AS o JOIN regrow.jobs j ON j.job = o.job
            WHERE o.object_id = d.object_id
        ) AS r ON true
        LEFT JOIN regrow.stored_objects s ON s.object_id = d.object_id
        $arguments$, v_tasks, v_objects);
    -- Many levels in one statement. One that met its limit has a last level which is not whole and is
    -- left out; the first is always whole.
    v_query text := format($query$
        WITH RECURSIVE walk (level, id) AS (
            SELECT 0, f.id FROM unnest($1) AS f (id)
            UNION
            SELECT w.level + 1, a.maker
            FROM walk w JOIN (%1$s) AS t ON t.task_id = w.id CROSS JOIN LATERAL (%2$s) AS a
            WHERE w.level + 1 < $2 AND a.large AND a.maker IS NOT NULL AND a.maker <> ALL ($4)
        ), limited AS MATERIALIZED (
            SELECT level, id FROM walk LIMIT $3
        ), earliest AS (
            SELECT id, min(level) AS level FROM limited GROUP BY id
        )
        SELECT e.level, t.task_id, t.status, t.kind, t.max_retries, t.num_returns, t.resources,
            t.result_digest, n.needs, n.makers, n.paths, n.unknown
        FROM earliest e JOIN (%1$s) AS t ON t.task_id = e.id
        CROSS JOIN LATERAL (
            SELECT array_agg(a.object_id ORDER BY a.object_id) FILTER (WHERE a.large) AS needs,
                array_agg(a.maker ORDER BY a.object_id) FILTER (WHERE a.large) AS makers,
                array_agg(a.path ORDER BY a.object_id) FILTER (WHERE a.large) AS paths,
                array_agg(a.object_id) FILTER (WHERE a.large IS NULL) AS unknown
            FROM (%2$s) AS a
        ) AS n
        WHERE e.level < (SELECT CASE WHEN count(*) < $3 THEN $2 ELSE greatest(max(level), 1) END
                         FROM limited)
        ORDER BY e.level, e.id
        $query$, v_tasks, v_arguments);
    v_base int := 0;
    v_level int;
    v_count int := 0;
    v_frontier bytea[] := ARRAY(SELECT DISTINCT w.id FROM unnest(wanted) AS w (id));
    v_seen bytea[] := '{}';
    v_found bytea[];
    v_next bytea[];
BEGIN
    WHILE cardinality(parts) > 0 AND cardinality(v_frontier) > 0
        AND v_base < max_depth AND v_count < max_tasks
    LOOP
        v_found := '{}';
        v_next := '{}';
        level := v_base;
        FOR v_level, task_id, status, kind, max_retries, num_returns, resources, digest, needs, makers,
            paths, unknown
        IN EXECUTE v_query USING v_frontier, least(max_depth - v_base, 50),
            cardinality(v_frontier) + 1000, v_seen
        LOOP
            IF v_base + v_level > level THEN
                EXIT WHEN v_count >= max_tasks;
                level := v_base + v_level;
                v_next := '{}';
            END IF;
            v_count := v_count + 1;
            v_found := v_found || task_id;
            v_next := v_next || makers;
            RETURN NEXT;
        END LOOP;
        v_seen := v_seen || v_found;
        v_frontier := ARRAY(
            SELECT DISTINCT m.id FROM unnest(v_next) AS m (id)
            WHERE m.id IS NOT NULL AND m.id <> ALL (v_seen));
        v_base := level + 1;
    END LOOP;
END $$;
COMMENT ON FUNCTION regrow.lineage IS 'Internal: the tasks to run again for lost objects, level by level.';
