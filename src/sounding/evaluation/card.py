"""The model card of a run: what it is, what it was measured at, and what it is not for."""

from __future__ import annotations

import math

import yaml

from ..model.macs import Macs
from ..runs.run import Run
from .shown import in_markdown, one_line
from .sweep import Sweep
from .table import markdown


def model_card(run: Run, sweep: Sweep, macs: Macs, *, notes: str = "") -> str:
    """Return the model card as Markdown, with the YAML header of the Hugging Face hub.

    Args:
        macs: of a clip of the data, by part.
        notes: on the data, in Markdown.
    """
    header = sweep.header
    best = [r for r in sweep.rows if r.method == run.config.method]
    results = [
        {"type": r.metric, "value": round(r.value, 4), "name": f"{r.metric} at k = {r.kept_layers}"}
        for r in sorted(best, key=lambda r: r.kept_layers)
    ]
    kind, (heading, known) = run.task.pipeline_tag, run.task.knows()
    knows = f"{heading}: {', '.join(map(in_markdown, known))}"
    task = {"type": kind}
    name, backbone = one_line(header["data"]["name"]), one_line(run.config.backbone)
    dataset = {"type": name, "name": name}
    front = {
        "library_name": "sounding",
        "pipeline_tag": kind,
        "base_model": backbone,
        "tags": ["layer-dropping", "dynamic-depth", "speech"],
        "model-index": [
            {
                "name": f"{backbone} with a layer selector",
                "results": [{"task": task, "dataset": dataset, "metrics": results}],
            }
        ],
    }
    machine = header["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in header["versions"].items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False, width=math.inf).strip()}
---

# {in_markdown(backbone)}, {run.dynamic.num_layers} layers, any k of them

{run.task.title} whose encoder runs only the layers that a selector keeps (IDLD-style, after
arXiv 2507.07954): the budget k may change with every call.

```python
import sounding
dynamic = sounding.load("model/")
out = dynamic(**inputs, budget=3)   # out.logits, out.executed_layers
```

- {knows}.
- Input: 16 kHz mono audio through the feature extractor saved beside the weights.
- Layer selector: {100 * macs.selector_share:.3f} % of the MACs of full depth.
{notes}
## Measured

{header["clips"]} clips of the {header["data"]["split"]} split of {in_markdown(name)} (digest
`{header["data"]["digest"][:16]}`). Intervals are 95 %. Latency: one clip of median length
at a time, {machine["cpu"]}, {machine["threads"]} threads; its share of full depth is the median of
{header["rounds"]} paired ratios.

{markdown(sweep)}
Seed {run.config.seed}, {run.info.get("steps")} steps, commit `{header["commit"]}`, {versions}.

## Limits

Measured on one data set and one machine only. Audio unlike the training data (other words, rooms,
languages) gives confident wrong answers: nothing says "none of these". Fewer layers cost
accuracy first on the hardest inputs.
"""
