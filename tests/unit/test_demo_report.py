"""What the demo's report makes of rows of the log."""

from datetime import UTC, datetime, timedelta
from io import StringIO

from rich.console import Console, RenderableType

from regrow.demo_report import Ancestor, Death, Figures, Rerun, lineage_tree, losses_table

KILLED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def shown(what: RenderableType) -> str:
    console = Console(file=StringIO(), width=120, no_color=True)
    console.print(what)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def task(number: int, name: str, *inputs: int) -> Ancestor:
    return Ancestor(bytes([number]), name, tuple(bytes([source]) for source in inputs))


def test_losses_are_timed_from_the_kill_and_say_whether_the_bytes_are_the_same() -> None:
    after = [KILLED_AT + timedelta(seconds=seconds) for seconds in (0.5, 0.75, 1.25)]
    text = shown(
        losses_table(
            KILLED_AT,
            Death(3, after[0], "reset"),
            [
                Rerun("shard", 2, 2, after[1], after[2], rebuild=True, differs=False),
                Rerun("gradient", 2, 2, after[0], after[2], rebuild=False, differs=None),
                Rerun("dice", 2, 2, after[0], after[2], rebuild=True, differs=True),
            ],
        )
    )
    assert "node 3" in text
    [shard] = [line for line in text.splitlines() if "shard" in line]
    assert "0.75 s" in shard and "1.25 s" in shard and "same bytes" in shard
    [dice] = [line for line in text.splitlines() if "dice" in line]
    assert "other bytes" in dice
    [gradient] = [line for line in text.splitlines() if "gradient" in line]
    assert "first result" in gradient


def test_only_a_rebuild_that_made_the_same_bytes_counts_as_restored() -> None:
    def rerun(rebuild: bool, differs: bool | None) -> bool:
        return Rerun("task", 2, 2, KILLED_AT, KILLED_AT, rebuild, differs).restored

    assert rerun(rebuild=True, differs=False)
    assert not rerun(rebuild=True, differs=True)
    assert not rerun(rebuild=True, differs=None)
    assert not rerun(rebuild=False, differs=None)


def test_lineage_shows_each_task_once_and_counts_those_too_far_up() -> None:
    chain = [task(number, f"step{number}", number + 1) for number in range(6)]
    text = shown(lineage_tree([*chain, task(6, "seed")]))
    assert text.count("step3") == 2  # once in the totals, once as a branch
    assert text.count("step4") == 1
    assert "... 3 tasks before these" in text


def test_lineage_joins_tasks_of_one_name() -> None:
    ancestors = [
        task(0, "apply", 1, 2, 3),
        task(1, "gradient", 4),
        task(2, "gradient", 4),
        task(3, "gradient", 4),
        task(4, "rows"),
    ]
    lines = shown(lineage_tree(ancestors)).splitlines()
    assert lines[:2] == ["final weights, from 5 tasks:", "1 apply, 3 gradient, 1 rows"]
    assert [line.lstrip(" └─├│") for line in lines[2:]] == ["apply", "3 x gradient", "rows"]


def test_figures_of_a_fault_count_attempts_and_replays_as_work_done_again() -> None:
    figures = Figures(0.5, "a sign", 1.25, "the kill", attempts=2, replays=8, tasks=100)
    assert figures.amplification == 1.1
    [times, work] = figures.lines()
    assert times == "noticed after 0.50 s (a sign); recovered after 1.25 s, counted from the kill"
    assert "2 unfinished tasks, 8 finished tasks and calls" in work
    assert "work amplification 1.100 over 100 tasks" in work


def test_figures_say_where_nobody_was_left_to_notice() -> None:
    figures = Figures(None, "", 5.0, "`regrow start`", attempts=0, replays=0, tasks=1)
    assert figures.lines()[0].startswith("nobody was left to notice; recovered after 5.00 s")
