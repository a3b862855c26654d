"""How report pages look, in light and dark: by what the reader's system prefers."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --muted: #5d6772; --line: #dfe3e8;
  --work: #2a6db0; --work-soft: #2a6db033; --fault: #c2561f; --fault-soft: #c2561f26;
  --good: #1e7a3c; --bad: #b3261e; --calm: #1e7a3c14; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1c2127; --ink: #e7eaed; --muted: #98a3ae; --line: #2e353d;
  --work: #6cabe6; --work-soft: #6cabe640; --fault: #f0935f; --fault-soft: #f0935f2e;
  --good: #6cc98a; --bad: #ff8b80; --calm: #6cc98a14; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.05rem; margin: 2.25rem 0 .6rem; }
p { margin: .35rem 0; max-width: 48rem; } a { color: var(--work); }
.muted, figcaption { color: var(--muted); } figcaption { font-size: .85rem; margin-top: .3rem; }
.verdict { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; font-size: .85rem;
  font-weight: 650; border: 1.5px solid currentColor; vertical-align: .15em;
  margin-right: .6rem; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; gap: .6rem; margin: 1.25rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); }
.tiles div { background: var(--card); border-radius: .5rem; padding: .55rem .8rem; }
.tiles dt { color: var(--muted); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; }
code, pre { font: .87em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
ul { margin: .3rem 0; padding-left: 1.3rem; } td ul { margin: .2rem 0 0; }
.lineage ul { border-left: 1px solid var(--line); list-style: none; padding-left: 1rem; }
.lineage > ul { border: 0; padding-left: 0; } summary { cursor: pointer; color: var(--muted); }
figure { margin: 0; min-width: 44rem; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--muted); font: 11px system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
svg .label { fill: var(--ink); font-size: 12px; } svg .right { text-anchor: end; }
svg .middle { text-anchor: middle; } svg .grid { stroke: var(--line); }
svg .calm { fill: var(--calm); }
svg .work { fill: var(--work); } svg .failed { fill: var(--bad); }
svg .fault { fill: var(--fault); } svg .strike { stroke: var(--fault); stroke-opacity: .45; }
svg .lane { fill: var(--fault-soft); } .narrow { max-width: 36rem; min-width: 20rem; }
@media print { body { max-width: none; } details > * { display: block; } }
"""
