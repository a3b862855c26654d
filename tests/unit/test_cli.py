"""The command line's own decisions: parsing, filters, how values read, what is imported."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import msgspec
import psycopg
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from regrow import _cli_chaos, _cli_list, _cli_render, _cli_sql
from regrow._cli_database import Connection
from regrow._cli_list import LISTINGS, conditions
from regrow._cli_start import node_options, parse_size
from regrow.chaos.simulation.cluster import Scale
from regrow.chaos.simulation.runner import SEEDS_ENOUGH, Report, never_fired


class TestStartingQuickly:
    def test_help_imports_neither_the_database_nor_the_cluster(self) -> None:
        program = (
            "import sys\nfrom regrow.cli import app\n"
            "try: app(['--help'])\nexcept SystemExit: pass\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
            "print([n for n in sys.modules if n.startswith('regrow.')], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert "Examples:" in done.stdout
        heavy = {"psycopg", "rich", "numpy", "grpc", "sqlalchemy", "pyarrow", "msgspec", "asyncio"}
        roots, ours = done.stderr.splitlines()
        assert heavy.isdisjoint(json.loads(roots.replace("'", '"')))
        assert ours == "['regrow._commands_chaos', 'regrow._commands_job', 'regrow.cli']"


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1000", 1000),
            ("500MB", 500_000_000),
            ("2 GiB", 2 << 30),
            ("1.5k", 1500),
            ("3B", 3),
            ("1T", 10**12),
        ],
    )
    def test_they_are_read_as_people_write_them(self, text: str, size: int) -> None:
        assert parse_size(text, "--memory") == size

    @pytest.mark.parametrize("text", ["", "-1", "MB", "1XB", "1 2", "1e9", "nan"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(typer.BadParameter, match="no size like"):
            parse_size(text, "--memory")

    @given(st.integers(min_value=0, max_value=10**18))
    def test_what_is_shown_is_within_five_percent(self, size: int) -> None:
        assert parse_size(_cli_render.size(size), "") == pytest.approx(size, rel=0.05)


class TestNodeOptions:
    @pytest.mark.parametrize(
        "resources", ["3", "{", '{"a": "b"}', '{"a": true}', '{"a": -1}', '{"CPU": 1}']
    )
    def test_resources_that_are_no_amounts_are_refused(self, resources: str) -> None:
        with pytest.raises(typer.BadParameter):
            node_options(None, None, None, resources, None, None, "")

    @pytest.mark.parametrize("cpus", [-1, float("nan"), float("inf")])
    def test_impossible_processors_are_refused(self, cpus: float) -> None:
        with pytest.raises(typer.BadParameter):
            node_options(cpus, None, None, None, None, None, "")

    def test_an_object_store_of_a_few_bytes_is_refused(self) -> None:
        with pytest.raises(typer.BadParameter, match="object_store_memory of regrow start must be"):
            node_options(None, None, None, None, "10", None, "")

    def test_they_become_the_daemons_arguments(self) -> None:
        options = node_options(1.5, 0, "1GB", '{"disk": 2}', "64MiB", '{"zone": "a"}', "::1")
        arguments = options.arguments()
        pairs = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert pairs == {
            "--num-cpus": "1.5",
            "--num-gpus": "0",
            "--memory": "1000000000",
            "--resources": '{"disk": 2}',
            "--object-store-memory": str(64 << 20),
            "--labels": '{"zone": "a"}',
            "--host": "::1",
        }


class TestFilters:
    def where(self, kind: str, *filters: str) -> tuple[str, list[object]]:
        where, values = conditions(LISTINGS[kind], filters)
        return where.as_string(None), values

    def test_they_all_must_hold(self) -> None:
        text, values = self.where("tasks", "name=f", "job != 3")
        assert text == 'true AND "name" = %s AND "job" IS DISTINCT FROM %s'
        assert values == ["f", 3]

    def test_a_state_may_be_written_in_any_case(self) -> None:
        assert self.where("tasks", "state=Failed") == ('true AND lower("state") = %s', ["failed"])

    def test_a_value_may_contain_anything(self) -> None:
        assert self.where("tasks", "name=a=b'; drop")[1] == ["a=b'; drop"]

    def test_an_id_is_hexadecimal(self) -> None:
        assert self.where("tasks", "task_id=00ff")[1] == [b"\x00\xff"]

    @pytest.mark.parametrize(
        "text", ["name", "=x", "nothing=1", "spec=1", "job=x", "task_id=xyz", "resources={}"]
    )
    def test_what_cannot_be_filtered_is_refused(self, text: str) -> None:
        with pytest.raises(typer.BadParameter):
            conditions(LISTINGS["tasks"], [text])

    def test_no_list_has_a_column_of_blobs(self) -> None:
        blobs = {"spec", "result", "data", "pickled", "refs", "deps", "nested", "result_refs"}
        names = {column.name for listing in LISTINGS.values() for column in listing.columns}
        assert names.isdisjoint(blobs)


class TestReading:
    def test_ids_of_one_job_differ_when_shortened(self) -> None:
        root = bytes(range(8))
        shown = {_cli_render.short_id(root + n.to_bytes(8, "big")) for n in range(1000)}
        assert len(shown) == 1000

    def test_an_object_is_its_task_and_which_result(self) -> None:
        task = bytes(range(16))
        assert _cli_render.short_id(task) == "0001..0c0d0e0f"
        assert _cli_render.short_id(task + b"\0\0\0\2") == "0001..0c0d0e0f:2"
        assert _cli_render.short_id(task + b"\x80\0\0\0") == "0001..0c0d0e0f:put"
        assert _cli_render.short_id(None) == ""

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(5e-6, "5 us"), (0.25, "250 ms"), (1.5, "1.5 s"), (59, "59 s"), (90, "2 min"),
         (7200, "2 h"), (200_000, "2 d"), (None, "")],
    )  # fmt: skip
    def test_spans(self, seconds: float | None, text: str) -> None:
        assert _cli_render.span(seconds) == text

    def test_resources_are_in_units(self) -> None:
        value = {"CPU": 20_000, "disk": 5_000, "memory": 2_000_000_000 * 10_000, "node:a": 10_000}
        assert _cli_list.resources(value) == "2 CPU, 0.5 disk, 2.0 GB memory"

    def test_a_failure_is_its_code_and_sentence(self) -> None:
        packed = msgspec.msgpack.encode(("node_died", "its node died"))
        assert _cli_list.failure(packed) == "node_died: its node died"
        assert _cli_list.failure(b"\xc1") == "?"

    def test_json_holds_what_postgres_returns(self) -> None:
        at = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
        row = (b"\x01\xff", at, Decimal("3"), Decimal("1.5"), datetime.timedelta(seconds=2), None)
        shown = [_cli_render.jsonable(value) for value in row]
        assert shown == ["01ff", "2026-01-02T00:00:00+00:00", 3, 1.5, 2.0, None]
        assert _cli_render.jsonable({"a": [b"\0"]}) == {"a": ["00"]}

    @pytest.mark.parametrize("of", [float, Decimal])
    def test_json_has_no_word_that_is_not_json(
        self, of: type[float | Decimal], capsys: pytest.CaptureFixture[str]
    ) -> None:
        values = [of("nan"), of("inf"), of("-inf"), {"deep": [of("inf")]}]
        _cli_render.print_json(["a", "b", "c", "d"], [values])

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is not JSON")

        (row,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert list(row.values()) == ["NaN", "Infinity", "-Infinity", {"deep": ["Infinity"]}]

    def test_a_table_is_not_cut_where_there_is_no_terminal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _cli_render.print_table(["long", "markup"], [["x" * 500, "[red]as it is[/red]"]])
        out = capsys.readouterr().out
        assert "x" * 500 + "  [red]as it is[/red]" in out

    def test_a_table_says_how_much_it_leaves_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        _cli_render.print_table(["n"], [[n] for n in range(1500)])
        out = capsys.readouterr().out
        assert out.splitlines()[-1] == "(500 more rows; --json prints all)"
        assert len(out.splitlines()) == 1002


class TestSql:
    @pytest.fixture
    def reading(self, database_url: str) -> Connection:
        connection = psycopg.connect(database_url)
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("SET default_transaction_read_only = on")
        connection.commit()
        connection.read_only = True
        return connection

    def test_rows_come_with_names_and_percent_signs_are_the_users(
        self, reading: Connection
    ) -> None:
        with reading:
            names, rows, _ = _cli_sql.execute(reading, "select 7 % 4 as rest, '%s' as text")
        assert (names, rows) == (["rest", "text"], [(3, "%s")])

    def test_of_several_statements_the_last_counts(self, reading: Connection) -> None:
        with reading:
            assert _cli_sql.execute(reading, "select 1 as a; select 2 as b")[:2] == (["b"], [(2,)])

    @pytest.mark.parametrize("prefix", ["", "select 1; ", "commit; "])
    def test_a_statement_that_writes_is_refused(self, reading: Connection, prefix: str) -> None:
        with reading, pytest.raises(_cli_sql.StatementWritesError, match="--write"):
            _cli_sql.execute(reading, prefix + "insert into kept values (1)")

    def test_an_error_is_one_sentence_that_says_where(self, reading: Connection) -> None:
        with reading, pytest.raises(_cli_sql.StatementError) as caught:
            _cli_sql.execute(reading, "select 1,\n  nothing from kept")
        said = str(caught.value)
        assert said == "column \"nothing\" does not exist (line 2, at 'nothing')"


class TestSimulating:
    def test_seeds_run_in_processes_and_are_reported(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _cli_chaos.simulate(range(3), "", 2) == 0
        assert "3 seeds, " in capsys.readouterr().out

    def test_a_mutant_that_is_none_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(typer.BadParameter, match="fencing-off"):
            _cli_chaos.known_mutant("nonsense")

    def test_kinds_of_faults_that_are_none_are_refused_with_those_there_are(self) -> None:
        assert _cli_chaos.scale_of(None, "drain,log_break").faults == ["drain", "log_break"]
        with pytest.raises(typer.BadParameter, match="postgres_stop"):
            _cli_chaos.scale_of(None, "earthquake")

    def test_a_file_that_is_no_case_is_refused(self, tmp_path: Path) -> None:
        broken = tmp_path / "case.json"
        broken.write_text("{")
        with pytest.raises(typer.BadParameter, match="case"):
            _cli_chaos.replay_file(broken)

    def test_a_kind_that_never_struck_in_many_seeds_is_named(self) -> None:
        few = Report(seeds=SEEDS_ENOUGH - 1)
        many = Report(seeds=SEEDS_ENOUGH, fired=Counter({"drain": 3}))
        scale = Scale(faults=["drain", "log_break"])
        assert never_fired(few, scale) == []
        assert never_fired(many, scale) == ["log_break"]
