#!/usr/bin/env bash
# Makes the files of this folder anew: tests/before/make.sh VENV, the .venv of a checkout of that commit.
set -euo pipefail
commit=a8dee48c8205aa554659c5ae0a2aee7a59017cd0 here=$(realpath "$(dirname "$0")") venv=$(realpath "$1")
work=/tmp/before code=/tmp/before/code run=/tmp/before/run python=/tmp/before/code/.venv/bin/python # stand in the files
mkdir "$work" && cd "$work"
git -C "$here/../.." archive --prefix=code/ "$commit" | tar -x && echo "$commit+" >code/.commit && ln -s "$venv" code/.venv
cat >>code/tests/networks.py <<'END'


def narrow_senet(num_classes: int) -> SENet:
    return _Slow(PreActBlock, [1, 1], num_classes=num_classes, widths=(8, 8), reduction=4)
END
"$python" - <<'END'
from pathlib import Path
import numpy as np
from PIL import Image
draws = np.random.default_rng(0)
for split, count in (("train", 8), ("test", 3)):
    for channel, name in enumerate(("red", "green", "blue")):
        Path("images", split, name).mkdir(parents=True)
        for index in range(count):
            pixels = draws.integers(0, 160, (4, 4, 3), dtype=np.uint8)
            pixels[..., channel] += 80
            Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(f"images/{split}/{name}/{index}.png")
END
find images -type f -exec touch -d @1767225600 {} + # a store is found by the times of its images
export PYTHONPATH=$code
submit=("$python" code/slurm/submit.py)
"${submit[@]}" slurm.cluster=local slurm.ranks_per_node=1 slurm.snapshot=false slurm.time=30m run_dir="$run" \
    data.source=imagefolder data.folder=images data.root=data data.image_size=16 augment.crop_padding=2 augment.cutout=0 \
    model.name=tests.networks:narrow_senet train.epochs=6 train.global_batch_size=4 train.ema_decay=0.8 train.amp=off \
    train.threads_per_rank=1 optim.lr=0.05 checkpoint.every_steps=5 checkpoint.keep=1 log.every_steps=1 log.tensorboard=false
until grep -q '"step": 13,' "$run/metrics.jsonl" 2>/dev/null; do sleep 0.1; done
job=$(sed -n 's/.*"job": "\([0-9]*\)".*/\1/p' "$run/slurm/job.json")
touch "$run/slurm/$job.stop" && kill -TERM "$job" # what submit.py stop does, which takes some steps to begin
while kill -0 "$job" 2>/dev/null; do sleep 0.1; done
for kind in safetensors onnx; do
    "$python" -m senet.export "$run" --format "$kind" --output "network.$kind" --model tests.networks:narrow_senet
done
"$python" -m senet.predict "$run" images/test --model tests.networks:narrow_senet --device cpu --json >predictions.jsonl
rm -rf "$here"/{data,images,run,network.*,predictions.jsonl}
cp -a data images run network.* predictions.jsonl "$here"
sed -i 's/"boot": "[^"]*"/"boot": ""/' "$here/run/owner.json" # of the machine, and not read
rm "$here"/data/stores/*.lock "$here"/run/slurm/*_log.out
