"""The model card of a trained network: what its checkpoint knows, and what nobody has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from senet.config.load import to_flat
from senet.config.options import HUBS, Config, those
from senet.config.renamed import of_a_run
from senet.inference.network import Trained
from senet.rundir.history import judged

_TIMM = """\
```python
import timm

network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
logits = network(transform(picture)[None])  # picture: a PIL.Image in RGB
```

`FOLDER` is this folder; `hf-hub:OWNER/NAME` opens it from the Hugging Face hub.
"""
_OWN = """\
Weights of `{name}`, a network of senet-ddp or of the user's code; `model.safetensors` holds all it needs besides. In a
checkout of senet-ddp, the program that has written this folder:

```sh
./launch.sh predict FOLDER image.jpg{model}
```

Training can begin from it: `model.init_from=FOLDER`.
"""


def model_card(trained: Trained, title: str, *, of_timm: bool) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    manifest, config = trained.manifest, of_a_run(trained.manifest["config"])
    name, facts = config["model.name"], dict(manifest["facts"])
    began_with = facts.pop("began_with_sha256", "")
    lines = {
        "network": f"`{name}`{_arguments(config)}, {sum(p.numel() for p in trained.model.parameters()):,} parameters",
        "classes": f"{len(trained.classes)}: {', '.join(trained.classes[:20])}{', ...' * (len(trained.classes) > 20)}",
        "images": f"`data.source={config['data.source']}`, {trained.image_size} pixels, SHA-256 `{manifest['data']}`",
        "weights": f"{manifest['weights']}, after {manifest['step']} updates (epochs: {manifest['epochs_done']})",
        **_result(manifest),
        "runs": f"n = 1, seed {config['seed']}",
        **({"began with": f"{_source(config)}, all weights then SHA-256 `{began_with}`"} if began_with else {}),
        "trained on": ", ".join(f"{key} {value}" for key, value in facts.items()),
        "checkpoint": f"SHA-256 `{manifest['sha256']}`",
    }
    library = ["library_name: timm"] if of_timm else []
    front = ["---", *library, "pipeline_tag: image-classification", "tags:", "- image-classification", "---"]
    table = ["| | |", "|---|---|", *(f"| {key} | {_in_cell(value)} |" for key, value in lines.items())]
    own = "" if ":" not in name else f" --model {name}"
    usage = _TIMM if of_timm else _OWN.format(name=name, model=own)
    return "\n".join(
        [
            *front,
            *("", f"# {title}", ""),
            *table,
            *("", "## To use it", "", usage),
            *("## Options that are not the defaults", "", f"```yaml\n{_changed(config)}```", ""),
            *("## Not measured", "", *(f"- {line}" for line in _unknown(manifest))),
            "",
        ]
    )


def _arguments(config: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={value}" for key, value in config.get("model.args", {}).items())
    return f" with {given}" if given else ""


def _has_result(manifest: Mapping[str, Any]) -> bool:
    """Whether the epoch that was evaluated last is where this checkpoint was saved."""
    return bool(manifest.get("test")) and manifest["step"] == manifest["epochs_done"] * manifest["steps_per_epoch"]


def _result(manifest: Mapping[str, Any]) -> dict[str, str]:
    if not _has_result(manifest):
        return {"result": "not measured: saved in the middle of an epoch"}
    row, which = manifest["test"], judged(manifest["test"])
    held_out = manifest["config"].get("data.holdout", 0)
    images = f"{held_out} held-out training images" if held_out else "all test images"
    top5 = f", top-5 {row[f'{which}_top5']:.2f} %" if f"{which}_top5" in row else ""  # of more than five classes
    text = f"top-1 {row[f'{which}_top1']:.2f} %{top5}, loss {row[f'{which}_loss']:.4f}"
    return {"result": f"{text}, on {images}, each once"}


def _changed(config: Mapping[str, Any]) -> str:
    """The options that change numbers and are not the defaults, as a recipe; of weights to begin from only the name."""
    defaults, without = to_flat(Config()), those("in_card", are=False)
    changed = {key: value for key, value in config.items() if key not in without and value != defaults.get(key)}
    if "model.init_from" in changed:
        changed["model.init_from"] = _source(config)
    return str(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None))


def _source(config: Mapping[str, Any]) -> str:
    """What ``model.init_from`` named, without the folders of this host."""
    begin = str(config["model.init_from"])
    return begin if begin.startswith(HUBS) else begin.rstrip("/").rpartition("/")[2]


def _unknown(manifest: Mapping[str, Any]) -> list[str]:
    config = manifest["config"]
    lines = ["How much the result varies from seed to seed: this is one run."]
    if not config.get("data.holdout") and manifest.get("best"):
        lines.append(
            "Images that nobody has looked at: this checkpoint was chosen as the best one on the images of its result, "
            "which is therefore somewhat too good."
        )
    if config.get("data.holdout"):
        lines.append("The test images: the result is that of held-out training images, which chose the checkpoint.")
    lines.append("Images of other sources, other cameras or other groups of people than those of the training.")
    lines.append("Whether the probabilities are calibrated, and what changed or hostile images do to them.")
    lines.append("The licence of the weights, which also depends on the images: none is stated here.")
    return lines


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
