"""Pooling over bags: the label belongs to the bag, and nobody says which of its instances made it so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from everypool.backends.layout import prefix_mask
from everypool.blocks.hopfield import HopfieldPooling
from everypool.factory import create
from everypool.study.data import bags
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.train import fit, predict
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "BagNet", "BagPool", "GatedAttention", "folded", "standardised"]

WIDTH, FOLDS, BATCH, RATE = 32, 5, 16, 5e-3
BAGS = {"elephant": 200, "musk1": 92, "ucsb": 58}


class GatedAttention(nn.Module):
    """The mean of a bag's instances (N, S, D) -> (N, D), weighted by softmax(w^T (tanh(V h) * sigmoid(U h))).

    Args:
        width: D.

    Source: Ilse, Tomczak and Welling 2018, Attention-based deep multiple instance learning.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate, self.score = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)

    def weights(self, instances: Tensor, sizes: Tensor) -> Tensor:
        """How much each instance counts, (N, S); 0 for padding."""
        scores = self.score(torch.tanh(self.value(instances)) * torch.sigmoid(self.gate(instances))).squeeze(2)
        inside = prefix_mask(sizes.unsqueeze(1), (instances.shape[1],)).squeeze(1)
        return scores.masked_fill(~inside, float("-inf")).softmax(1)

    def forward(self, instances: Tensor, sizes: Tensor) -> Tensor:
        return (self.weights(instances, sizes).unsqueeze(1) @ instances).squeeze(1)


class BagPool(nn.Module):
    """A pooling by name over the first `sizes` instances (N, S, D) of each bag, to (N, D).

    Args:
        pool: "hopfield" (one learned query, one head), "attention", or a reducer with its settings.
        width: D.
    """

    def __init__(self, pool: str, width: int) -> None:
        super().__init__()
        makers: dict[str, Callable[[int], nn.Module]] = {"hopfield": HopfieldPooling, "attention": GatedAttention}
        self.learned = pool in makers
        self.pool = makers[pool](width) if self.learned else create(pool, nd=1)

    def forward(self, instances: Tensor, sizes: Tensor) -> Tensor:
        if self.learned:
            return self.pool(instances, sizes=sizes)
        return self.pool(instances.transpose(1, 2), sizes=sizes.unsqueeze(1))

    def weights(self, instances: Tensor, sizes: Tensor) -> Tensor | None:
        """How much each instance counts, (N, S), where the pooling learns such a thing."""
        if isinstance(self.pool, HopfieldPooling):
            return self.pool.get_association_matrix(instances, sizes=sizes)[:, 0, 0]
        return self.pool.weights(instances, sizes) if isinstance(self.pool, GatedAttention) else None


class BagNet(nn.Module):
    """One hidden layer for each instance, the pooling, and a linear layer for the bag.

    >>> BagNet("avg", 4)(torch.zeros(5, 4), torch.tensor([2, 3])).shape
    torch.Size([2, 2])
    """

    def __init__(self, pool: str, features: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU())
        self.pool = BagPool(pool, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, instances: Tensor, sizes: Tensor) -> Tensor:
        """The instances (all, features) of some bags one after the other, and how many each has."""
        embedded = self.embed(instances).split(sizes.tolist())
        answer: Tensor = self.head(self.pool(pad_sequence(embedded, batch_first=True), sizes))
        return answer


def folded(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test bags of fold `seed % 5`; every five seeds divide the bags anew, classes in equal shares."""
    from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]

    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed // FOLDS).split(labels, labels)
    train, test = list(splits)[seed % FOLDS]
    return torch.from_numpy(train), torch.from_numpy(test)


def standardised(samples: list[Tensor], train: Tensor) -> list[Tensor]:
    """The bags less the mean and over the deviation of the training bags' instances; features that never vary stay 0."""
    known = torch.cat([samples[i] for i in train.tolist()])
    spread = known.std(0, correction=0)
    spread[spread == 0] = torch.inf
    return [(bag - known.mean(0)) / spread for bag in samples]


def run(trial: Trial, context: Context) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    measures = {}
    for number, name in enumerate(BAGS):
        torch.manual_seed(trial.seed)  # first weights that do not depend on how much the data sets before have drawn
        generator = torch.Generator().manual_seed(trial.seed)
        raw, labels = bags.load(name)
        train, test = folded(labels, trial.seed)
        samples = standardised(raw, train)
        model = BagNet(trial.variant, raw[0].shape[1])

        def stage(done: float, number: int = number) -> None:
            context.tick((number + done) / len(BAGS))

        own = Context(stage, context.device, context.fabric)
        fit(
            model,
            batches(samples, train),
            labels[train],
            epochs=trial["epochs"],
            generator=generator,
            context=own,
            batch=BATCH,
            rate=RATE,
        )
        answers = predict(model, batches(samples, test), len(test), batch=BATCH)
        scores = answers[:, 1] - answers[:, 0]
        measures[f"{name} auc"] = 100 * float(roc_auc_score(labels[test].numpy(), scores.numpy()))
        measures[f"{name} accuracy"] = 100 * ((scores > 0) == labels[test]).to(torch.float64).mean().item()
    return measures


def batches(samples: list[Tensor], chosen: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What makes `BagNet`'s arguments of the numbers of bags, counted within `chosen`."""
    own = [samples[i] for i in chosen.tolist()]

    def made(numbers: Tensor) -> tuple[Tensor, Tensor]:
        some = [own[i] for i in numbers.tolist()]
        return torch.cat(some), torch.tensor([len(bag) for bag in some])

    return made


def auc_step(name: str) -> float:
    """Half a pair of test bags, one of each class: the least by which an area changes (a tie counts half)."""
    count = BAGS[name] / FOLDS
    return 100 / (2 * (count / 2) ** 2)


EXPERIMENT = register(
    Experiment(
        name="bags",
        summary="Classify bags of instances; one hidden layer each, then the pooling over the bag, then a linear layer.",
        data=f"{bags.CREDIT}: {'; '.join(bags.NAMES.values())}; five folds, standardised by what is trained on",
        variants={
            "avg": "the mean",
            "max": "the largest value",
            "soft": "SoftPool",
            "gem": "the generalised mean, p learned",
            "logsumexp": "the log of the mean of exponentials",
            "attention": "gated attention",
            "hopfield": "Hopfield pooling with one learned query",
        },
        measures={
            **{f"{name} auc": Measure(f"area under the ROC curve on {name}", step=auc_step(name)) for name in BAGS},
            **{f"{name} accuracy": Measure(f"accuracy on {name}", step=100 * FOLDS / BAGS[name]) for name in BAGS},
        },
        run=run,
        recipe=1,
        full=Scale(seeds=15, settings={"epochs": 30}),
        quick=Scale(seeds=10, settings={"epochs": 10}),
        overlap=1 / (FOLDS - 1),
        needs=("mil", "sklearn"),
    )
)
