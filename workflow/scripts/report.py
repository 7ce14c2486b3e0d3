"""The overview of a study as one static page: which runs, how long, which failed, what came of them.

    python -m workflow.scripts.report params/studies/tiny.yaml

The workflow writes it whenever it ends, well or not. It is read from what lies on disk, so it is true of a study that
was killed, too. Nothing in it is fetched from elsewhere; every name is escaped.
"""

import argparse
import json
import os
import re
import time
from urllib.parse import quote

import jinja2

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.params import NOTEBOOKS, resolve
from datadream_utils.runs.locks import held
from workflow.scripts.study import read_study

LAST_LINES = 12  # of a failed notebook's log
THUMBNAILS = 10  # of a run: the first picture of so many classes

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
 :root { color-scheme: light dark }
 body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem }
 .wide { overflow-x: auto }
 table { border-collapse: collapse }
 th, td { border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: left; vertical-align: top }
 td.n { text-align: right; font-variant-numeric: tabular-nums }
 .failed { font-weight: bold } .waiting { opacity: .75 }
 img { width: 32px; height: 32px; object-fit: cover; image-rendering: pixelated }
 pre { white-space: pre-wrap; border-left: 3px solid #8888; padding-left: .8rem }
</style>
<h1>{{ title }}</h1>
<p>{{ count.finished }} of {{ stages | length }} stages are finished, {{ count.running }} running, {{ count.failed }}
stopped before their end, {{ count.waiting }} have not begun. Finished stages took {{ hours }} hours in all.
Written {{ now }}.</p>
<h2>Stages</h2>
<div class="wide"><table>
<tr><th>stage<th>finished<th>mean seconds<th>most memory</tr>
{% for row in kinds %}<tr><td>{{ row.name }}<td class="n">{{ row.finished }} of {{ row.all }}
<td class="n">{{ row.seconds }}<td class="n">{{ row.memory }}</tr>
{% endfor %}</table></div>
<h2>Runs</h2>
<div class="wide"><table>
<tr><th>run<th>stage<th>state<th>seconds<th>test accuracy<th>files<th>pictures</tr>
{% for row in stages %}<tr class="{{ row.state }}"><td>{{ row.run }}<td>{{ row.stage }}<td>{{ row.state }}
<td class="n">{{ row.seconds }}<td class="n">{{ row.accuracy }}
<td>{% for name, url in row.links %}<a href="{{ url }}">{{ name }}</a> {% endfor %}
<td>{% for name, url in row.pictures %}<img src="{{ url }}" alt="{{ name }}" title="{{ name }}"> {% endfor %}</tr>
{% endfor %}</table></div>
{% if failed %}<h2>Stopped before their end</h2>
{% for row in failed %}<h3>{{ row.run }}: {{ row.stage }}</h3><pre>{{ row.log }}</pre>
{% endfor %}{% endif %}
</html>
"""


def write_report(study):
    """Write ``report.html`` beside the study's runs and return its path."""
    out = resolve(study.value("output_root"))
    rows = [_row(out, run, stage) for run in study.runs().values() for stage in study.stages(run)]
    states = [row["state"] for row in rows]
    own = [row for row in rows if not row["borrowed"]]  # a stage that several runs share was made once
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(PAGE).render(
        title=f"Study of {', '.join(study.datasets)}",
        count={state: states.count(state) for state in ("finished", "running", "failed", "waiting")},
        hours=f"{sum(row['seconds'] or 0 for row in own) / 3600:.2f}",
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
        kinds=_kinds(own),
        stages=[row | {"seconds": "" if row["seconds"] is None else f"{row['seconds']:.0f}"} for row in rows],
        failed=[row for row in rows if row["state"] == "failed"],
    )
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / "report.html"


def _row(out, run, stage):
    """What the page says of one stage of a run."""
    home = run.home(stage)
    folder = out / home.name / stage
    manifest = _read(folder / "manifest.json")
    kind, _, setting = stage.partition("-")
    base = f"{home.name}/{NOTEBOOKS[kind]}" + (f"-{setting}" if setting else "")
    logs = [path for path in (*sorted(out.glob(f"{base}-*-of-*.log")), out / f"{base}.log") if path.exists()]
    state = "finished" if manifest else "running" if held(folder) else "failed" if logs else "waiting"
    accuracy = _read(folder / "metrics.json").get("accuracy") if state == "finished" else None
    files = [("notebook", f"{base}.ipynb"), ("log", f"{base}.log"), ("manifest", f"{home.name}/{stage}/manifest.json")]
    return {
        "run": run.name,
        "stage": stage,
        "kind": kind,
        "state": state,
        "borrowed": home != run,
        "seconds": manifest.get("seconds"),
        "memory": manifest.get("peak_gpu_memory_mb") or manifest.get("peak_memory_mb"),
        "accuracy": "" if accuracy is None else f"{accuracy:.1f} %",
        "links": [(name, quote(path)) for name, path in files if (out / path).exists()],
        "pictures": _pictures(out, folder) if state == "finished" and kind == "generate" else [],
        "log": _last_lines(max(logs, key=lambda path: path.stat().st_mtime)) if state == "failed" else "",
    }


def _kinds(rows):
    kinds = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        ours = [row for row in rows if row["kind"] == kind]
        seconds = [row["seconds"] for row in ours if row["seconds"] is not None]
        memory = [row["memory"] for row in ours if row["memory"]]
        kinds.append(
            {
                "name": kind,
                "all": len(ours),
                "finished": sum(row["state"] == "finished" for row in ours),
                "seconds": f"{sum(seconds) / len(seconds):.1f}" if seconds else "",
                "memory": f"{max(memory) / 1e3:.1f} GB" if memory else "",
            }
        )
    return kinds


def _pictures(out, folder):
    """``(class folder, address)`` of the first picture of each class, of the first few classes."""
    classes = sorted(entry for entry in (folder / "images").iterdir() if entry.is_dir())[:THUMBNAILS]
    first = [next(iter(sorted(entry.glob("*.png"))), None) for entry in classes]
    return [(path.parent.name, quote(os.path.relpath(path, out))) for path in first if path]


def _last_lines(log):
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log.read_text(encoding="utf-8", errors="replace"))
    lines = [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", line) for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])


def _read(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a study's overview, report.html, beside its runs.")
    parser.add_argument("study", help="a file such as params/studies/tiny.yaml")
    try:
        print(write_report(read_study(parser.parse_args().study)))
    except InputError as error:
        raise SystemExit(str(error)) from None
