"""Evaluation on the test split, after each epoch."""

from __future__ import annotations

from contextlib import closing

import torch
import torch.nn.functional as F

from senet.config.options import Config
from senet.distributed.agreement import StopRequested
from senet.distributed.groups import broadcast_tensors, sum_over_ranks
from senet.training.feed import Feed
from senet.training.learner import Learner
from senet.training.peers import Peers
from senet.training.progress import Progress
from senet.training.scores import Scores, Tally
from senet.training.seeds import seed_everything
from senet.training.sharded import Buffers


@torch.no_grad()  # not inference_mode: training may use a tensor that the network keeps, such as a table of positions
def evaluate(
    learner: Learner, feed: Feed, peers: Peers, progress: Progress, config: Config, step: int
) -> dict[str, Scores]:
    """Scores of the raw ("test") and the averaged ("ema") weights over the whole test split, each image once.

    A collective: call on every rank. With shards a network that draws random numbers or changes its buffers here too
    does so for each batch as if that were the only one.

    Raises:
        RuntimeError: the ranks together saw another number of images than the split holds.
        StopRequested: a rank was asked to stop. The evaluation is broken off, and done again on resume.
    """
    networks = learner.networks()
    tallies = {name: Tally(peers.ranks.device) for name in networks}
    for network in networks.values():
        broadcast_tensors(network.buffers())
        network.eval()
    kept = [Buffers(network) for network in networks.values()] if config.train.shards else []
    images, total = feed.test(config.train)
    with closing(images) as batches:  # no thread decodes on, however this ends
        for turn, (images_NHWC, labels_N, _) in enumerate(progress.over(batches, title="test", total=total)):
            if len(labels_N):
                if config.train.shards:
                    seed_everything(config.seed, step, turn * peers.ranks.world_size + peers.ranks.rank)
                images_NHWC, labels_N = feed.to_device(images_NHWC, labels_N)
                images_NCHW = feed.preprocess.test(images_NHWC)
                for name, network in networks.items():
                    with learner.autocast():
                        logits_NK = network(images_NCHW)
                    tallies[name].add(F.cross_entropy(logits_NK.float(), labels_N), logits_NK, labels_N)
                for buffers in kept:
                    buffers.restore()
            peers.vote()
            if peers.agreement.stop_agreed:
                raise StopRequested
    peers.agreement.conclude()
    # sync point: once per evaluation and network
    scores = {n: Scores.from_sums(sum_over_ranks(t.take()), feed.num_classes) for n, t in tallies.items()}
    for name, result in scores.items():
        if result.num_images != len(feed.data.test):
            raise RuntimeError(f"{name}: evaluated {result.num_images} of {len(feed.data.test)} images")
    return scores
