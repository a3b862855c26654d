-- The log of an actor's calls is trimmed behind its saved states: what only running a call again would
-- need, its specification with the arguments, goes away once both states that are kept contain the call.
-- Ids, edges of the lineage, order and results stay.

ALTER TABLE regrow.task_log ALTER COLUMN spec DROP NOT NULL;
COMMENT ON COLUMN regrow.task_log.spec IS
    'The whole specification with its arguments, as the client made it; null of a call that was trimmed.';
ALTER TABLE regrow.actors ADD COLUMN trimmed_seq int NOT NULL DEFAULT 0;
COMMENT ON COLUMN regrow.actors.trimmed_seq IS
    'The last of its calls whose arguments are not in the log any more; 0: it has them all.';

CREATE OR REPLACE VIEW regrow.tasks AS SELECT
    job, task_id, parent_id, function_id, name,
    CASE kind WHEN 0 THEN 'task' WHEN 1 THEN 'actor_creation' ELSE 'actor_call' END AS kind,
    CASE status WHEN 0 THEN 'PENDING' WHEN 1 THEN 'FINISHED' WHEN 4 THEN 'CANCELLED' ELSE 'FAILED' END
        AS state,
    error, actor_id, actor_seq, submitter AS submitter_node, holder AS node_id,
    holder_incarnation AS incarnation, attempt, max_retries, num_returns, resources, deps, nested,
    duration_us, submitted_at, finished_at, result,
    CASE WHEN status IN (1, 2, 3) THEN coalesce(result_size, octet_length(result)) END AS result_size,
    result_digest, result_refs, spec, status, part, spec IS NULL AS trimmed
FROM regrow.task_log;
COMMENT ON COLUMN regrow.tasks.spec IS
    'The whole specification with its arguments, as the client made it; null where trimmed.';
COMMENT ON COLUMN regrow.tasks.trimmed IS
    'Whether its arguments have left the log: of a call that both saved states of its actor contain.';

CREATE OR REPLACE VIEW regrow.actor_calls AS SELECT
    job, actor_id, actor_seq, task_id, name,
    CASE status WHEN 0 THEN 'PENDING' WHEN 1 THEN 'FINISHED' WHEN 4 THEN 'CANCELLED' ELSE 'FAILED' END
        AS state,
    finished_at, part, spec IS NULL AS trimmed
FROM regrow.task_log WHERE kind = 2 AND actor_id IS NOT NULL;
COMMENT ON COLUMN regrow.actor_calls.trimmed IS
    'Whether its arguments have left the log: both saved states of its actor contain it.';
