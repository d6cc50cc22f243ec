"""Heads trained together: each as it would be alone."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from pipeline.group import HEAD_SEEDS, HeadGroup, Member
from pipeline.head import HeadConfig, build_head

MEMBERS = [
    Member(lr=1e-2, seed=1),
    Member(lr=3e-3, weight_decay=0.1, dropout=0.2, seed=2),
    Member(lr=1e-3, weight_decay=0.01, dropout=0.0, seed=1),
]
STEPS = 12


def batches() -> list[tuple[Tensor, Tensor]]:
    """Rows of eight features in three classes; the last batch is smaller."""
    generator = torch.Generator().manual_seed(0)
    sizes = [7] * (STEPS - 1) + [3]
    return [
        (torch.randn(n, 8, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def trained(members: list[Member], dtype: torch.dtype = torch.float64) -> tuple[HeadGroup, Tensor]:
    """A group after all steps, and the losses (steps, G)."""
    group = HeadGroup(members, 8, 5, 3, STEPS, dtype)
    return group, torch.stack([group.step(x.to(dtype), labels) for x, labels in batches()])


def by_hand(member: Member) -> tuple[dict[str, Tensor], Tensor]:
    """The same head by automatic differentiation, torch's AdamW and its cosine schedule."""
    noise = torch.Generator().manual_seed(member.seed + HEAD_SEEDS)
    head = build_head(HeadConfig(8, 5, 3, member.dropout), noise).double()
    optimizer = torch.optim.AdamW(head.parameters(), lr=member.lr, weight_decay=member.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for x, labels in batches():
        hidden = torch.relu(head[0](x))
        kept = torch.rand(hidden.shape, generator=noise) >= member.dropout
        loss = nll_loss(head[4](head[3](hidden * kept / (1 - member.dropout))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return {name: tensor.detach() for name, tensor in head.state_dict().items()}, torch.stack(losses)


@pytest.mark.parametrize("number", range(3))
def test_a_head_in_a_group_is_the_head_alone(number: int) -> None:
    """In float64 to 1e-10, whatever the others' settings are; the first and the last share a seed and stay apart."""
    together, losses = trained(MEMBERS)
    alone, own = trained([MEMBERS[number]])
    assert (losses[:, number] - own[:, 0]).abs().max() < 1e-10
    for name, tensor in alone.state(0).items():
        assert (together.state(number)[name] - tensor).abs().max() < 1e-10
    assert not torch.equal(together.state(0)["0.weight"], together.state(2)["0.weight"])


@pytest.mark.parametrize("number", range(3))
def test_a_group_does_what_torch_does(number: int) -> None:
    """Gradients, AdamW, schedule and dropout, in float64 to 1e-10."""
    group, losses = trained(MEMBERS)
    expected, own = by_hand(MEMBERS[number])
    assert (losses[:, number] - own).abs().max() < 1e-10
    for name, tensor in expected.items():
        assert (group.state(number)[name] - tensor).abs().max() < 1e-10


def test_float32_is_near() -> None:
    """Within the tolerance of its arithmetic."""
    exact, _ = trained(MEMBERS)
    near, _ = trained(MEMBERS, torch.float32)
    for name, tensor in exact.tensors.items():
        assert torch.allclose(tensor, near.tensors[name].double(), atol=1e-3)


def test_log_probabilities_are_those_of_each_head() -> None:
    """Nothing is left out when predicting, and they add up to 1."""
    group, _ = trained(MEMBERS)
    x, _ = batches()[0]
    found = group.log_probs(x)
    assert torch.allclose(found.exp().sum(2), torch.ones(3, 7, dtype=torch.float64))
    for number in range(3):
        head = build_head(HeadConfig(8, 5, 3)).double().eval()
        head.load_state_dict(group.state(number))
        with torch.inference_mode():
            assert torch.allclose(found[number], head(x))


def test_dropout_keeps_the_mean_and_is_drawn_head_by_head() -> None:
    """Half of the units doubled, none at rate 0; equal seeds draw alike, others do not."""
    members = [Member(1e-3, dropout=rate, seed=seed) for rate, seed in ((0.5, 1), (0.5, 1), (0.5, 2), (0.0, 3))]
    kept = HeadGroup(members, 8, 50, 3, STEPS)._dropout(torch.empty(4, 200, 50))
    assert abs(float(kept[0].mean()) - 1) < 0.05
    assert set(kept[0].unique().tolist()) == {0, 2}
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert torch.equal(kept[3], torch.ones(200, 50))


def test_an_epoch_means_over_rows_and_accuracy_counts_them() -> None:
    """A smaller last batch weighs less."""
    group, single = (HeadGroup(MEMBERS, 8, 5, 3, STEPS, torch.float64) for _ in range(2))
    losses = torch.stack([single.step(x, labels) * len(x) for x, labels in batches()])
    assert torch.allclose(group.epoch(batches()), losses.sum(0) / sum(len(x) for x, _ in batches()))
    everything = torch.cat([x for x, _ in batches()]), torch.cat([labels for _, labels in batches()])
    hits = (group.log_probs(everything[0]).argmax(2) == everything[1]).double().mean(1)
    assert torch.allclose(group.accuracy(batches()), hits)
