"""Heads trained vectorized: each as it would be alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from pipeline.heads.dropout import DrawnDropout, DropoutMask, HashedDropout
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import dropout_rng, init_rng

MEMBERS = [
    HeadHyperparameters(lr=1e-2, seed=1),
    HeadHyperparameters(lr=3e-3, weight_decay=0.1, dropout=0.2, seed=2),
    HeadHyperparameters(lr=1e-3, weight_decay=0.01, dropout=0.0, seed=1),
]
STEPS = 12
SHAPE = HeadShape(in_features=8, hidden=5, num_classes=3, steps=STEPS)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Rows of eight features in three classes; the last batch is smaller."""
    generator = torch.Generator().manual_seed(0)
    sizes = [7] * (STEPS - 1) + [3]
    return [
        (torch.randn(n, 8, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def trained(
    members: list[HeadHyperparameters], dtype: torch.dtype = torch.float64, vectorized: bool = False, hidden: int = 5
) -> tuple[HeadGroup, Tensor]:
    """A group after all steps, and the losses (steps, G); `vectorized` is how it is done anywhere but on a CPU."""
    shape = replace(SHAPE, hidden=hidden)
    group = HeadGroup([HeadState.new(member, shape, dtype) for member in members], shape, vectorized=vectorized)
    return group, torch.stack([group.step(x.to(dtype), labels) for x, labels in batches()])


def by_hand(member: HeadHyperparameters) -> tuple[dict[str, Tensor], Tensor]:
    """The same head by automatic differentiation, torch's AdamW and its cosine schedule."""
    noise = dropout_rng(member.seed)
    head = Head.new(8, 5, 3, member.dropout, init_rng(member.seed)).double()
    optimizer = torch.optim.AdamW(head.parameters(), lr=member.lr, weight_decay=member.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for x, labels in batches():
        hidden = torch.relu(head[0](x))
        drawn = noise.random_raw(-(-hidden.numel() // 4)).view(np.uint16)[: hidden.numel()] / 65536
        kept = torch.from_numpy(drawn >= round(member.dropout * 65536) / 65536).view(hidden.shape)
        loss = nll_loss(head[4](head[3](hidden * kept / (1 - round(member.dropout * 65536) / 65536))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return {name: tensor.detach() for name, tensor in head.state_dict().items()}, torch.stack(losses)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_heads_without_a_hidden_layer_do_what_torch_does(dtype: torch.dtype, most: float, vectorized: bool) -> None:
    """Logistic regression, each head as by automatic differentiation; dropout has no hidden units and is ignored."""
    shape = replace(SHAPE, hidden=0)
    group = HeadGroup([HeadState.new(member, shape, dtype) for member in MEMBERS], shape, vectorized=vectorized)
    losses = torch.stack([group.step(x.to(dtype), labels) for x, labels in batches()])
    for number, member in enumerate(MEMBERS):
        head = Head.new(8, 0, 3, member.dropout, init_rng(member.seed)).to(dtype)
        assert [type(layer).__name__ for layer in head] == ["Linear", "LogSoftmax"]
        optimizer = torch.optim.AdamW(head.parameters(), lr=member.lr, weight_decay=member.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step, (x, labels) in enumerate(batches()):
            loss = nll_loss(head(x.to(dtype)), labels)
            assert abs(float(loss.detach() - losses[step, number])) < most
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = group.weights(number)
        assert found.keys() == head.state_dict().keys() == {"0.weight", "0.bias"}
        assert all((found[name] - tensor).abs().max() < most for name, tensor in head.state_dict().items())
        assert torch.allclose(group.log_probs(x.to(dtype))[number], head(x.to(dtype)).detach(), atol=most)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_a_head_in_a_group_is_the_head_alone(number: int, vectorized: bool, hidden: int) -> None:
    """In float64 to 1e-10, whatever the others' settings are; the first and the last share a seed and stay apart."""
    group, losses = trained(MEMBERS, vectorized=vectorized, hidden=hidden)
    alone, own = trained([MEMBERS[number]], vectorized=vectorized, hidden=hidden)
    assert (losses[:, number] - own[:, 0]).abs().max() < 1e-10
    for name, tensor in alone.weights(0).items():
        assert (group.weights(number)[name] - tensor).abs().max() < 1e-10
    assert not torch.equal(group.weights(0)["0.weight"], group.weights(2)["0.weight"])


def test_all_heads_at_once_step_as_head_by_head() -> None:
    """Gradients, AdamW and schedule are the same to 1e-10; only what dropout leaves out is drawn otherwise."""
    members = [replace(member, dropout=0.0) for member in MEMBERS]
    (one, losses), (other, others) = (trained(members, vectorized=vectorized) for vectorized in (False, True))
    assert (losses - others).abs().max() < 1e-10
    for name, tensor in one.tensors.items():
        assert (tensor - other.tensors[name]).abs().max() < 1e-10


def test_a_group_stays_on_its_device() -> None:
    """Nothing in a step, an epoch or the log-probabilities is made elsewhere: the meta device meets no other."""
    meta = torch.device("meta")
    states = [HeadState.new(member, SHAPE) for member in MEMBERS]
    group = HeadGroup(states, SHAPE, torch.ones(3), torch.bfloat16, meta)
    losses = group.epoch([(x.float(), labels) for x, labels in batches()])
    assert losses.shape == (3,)
    assert group.log_probs(torch.empty(4, 8, device=meta)).shape == (3, 4, 3)
    tensors = [losses, *group.tensors.values(), *group.state(1).tensors.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_a_group_on_cuda_is_the_group_on_the_cpu() -> None:
    """The same noise, and the same steps to rounding."""
    cpu, losses = trained(MEMBERS, vectorized=True)
    states = [HeadState.new(member, SHAPE, torch.float64) for member in MEMBERS]
    cuda = HeadGroup(states, SHAPE, device=torch.device("cuda"))
    found = torch.stack([cuda.step(x.cuda(), labels.cuda()) for x, labels in batches()])
    assert (found.cpu() - losses).abs().max() < 1e-8
    for name, tensor in cpu.tensors.items():
        assert (cuda.tensors[name].cpu() - tensor).abs().max() < 1e-8


@pytest.mark.parametrize("number", range(3))
def test_a_group_does_what_torch_does(number: int) -> None:
    """Gradients, AdamW, schedule and dropout, in float64 to 1e-10."""
    group, losses = trained(MEMBERS)
    expected, own = by_hand(MEMBERS[number])
    assert (losses[:, number] - own).abs().max() < 1e-10
    for name, tensor in expected.items():
        assert (group.weights(number)[name] - tensor).abs().max() < 1e-10


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
        head = Head.new(8, 5, 3).double().eval()
        head.load_state_dict(group.weights(number))
        with torch.inference_mode():
            assert torch.allclose(found[number], head(x))


def drawn(seeds: list[int], dropouts: list[float]) -> DropoutMask:
    """Head by head."""
    return DrawnDropout(seeds, dropouts, [None] * len(seeds))


def hashed(seeds: list[int], dropouts: list[float]) -> DropoutMask:
    """All at once."""
    return HashedDropout(seeds, dropouts, torch.device("cpu"))


@pytest.mark.parametrize("noise", [drawn, hashed])
def test_dropout_keeps_the_mean_and_is_drawn_head_by_head(
    noise: Callable[[list[int], list[float]], DropoutMask],
) -> None:
    """Half of the units doubled, none at rate 0; equal seeds draw alike, others do not, nor does the next step."""
    made = noise([1, 1, 2, 3], [0.5, 0.5, 0.5, 0.0])
    kept = made.sample(torch.empty(4, 200, 50), 0)
    after = made.sample(torch.empty(4, 200, 50), 1)
    assert 0.45 < float((kept[0] == after[0]).double().mean()) < 0.55
    assert abs(float(kept[0].mean()) - 1) < 0.05
    assert set(kept[0].unique().tolist()) == {0, 2}
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert torch.equal(kept[3], torch.ones(200, 50))


def test_an_epoch_means_over_rows_and_a_score_counts_them() -> None:
    """A smaller last batch weighs less."""
    states = [HeadState.new(member, SHAPE, torch.float64) for member in MEMBERS]
    group, single = HeadGroup(states, SHAPE), HeadGroup(states, SHAPE)
    losses = torch.stack([single.step(x, labels) * len(x) for x, labels in batches()])
    assert torch.allclose(group.epoch(batches()), losses.sum(0) / sum(len(x) for x, _ in batches()))
    everything = torch.cat([x for x, _ in batches()]), torch.cat([labels for _, labels in batches()])
    hits = group.log_probs(everything[0]).argmax(2) == everything[1]
    losses = -group.log_probs(everything[0])[:, torch.arange(len(everything[1])), everything[1]].mean(1)
    scored = group.score(batches())
    assert torch.equal(scored[0], hits)
    assert torch.allclose(scored[1], losses)
    group.tensors["0.bias"][1, 0] = torch.nan
    scored = group.score(batches())
    assert not scored[0][1].any()
    assert scored[1][1] == torch.inf


@pytest.mark.parametrize("seed", [0, 1, 7, (1 << 32) - 1])
def test_hashed_noise_is_as_good_as_random(seed: int) -> None:
    """Uniform, with no link between neighbouring units, steps or seeds."""
    shape = (2, 512, 512)
    pair = hashed([seed, seed ^ 1], [0.25, 0.25])
    kept = torch.cat([pair.sample(torch.empty(shape), step) for step in (0, 1)]).flatten(1) > 0
    means = kept.double().mean(1)
    assert (means - 0.75).abs().max() < 5 * (0.1875 / kept.shape[1]) ** 0.5
    x = kept.double() - 0.75
    links = [x[0] * x[1], x[0] * x[2], *(x[0] * x[0].roll(shift) for shift in (1, 2, 512))]
    assert max(abs(float(link.mean())) for link in links) < 5 * 0.1875 / kept.shape[1] ** 0.5


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_head_goes_on_in_another_group_as_if_nothing_had_happened(vectorized: bool) -> None:
    """Stopped, put beside others and carried on: its weights, moments, dropout and schedule come with it."""
    whole, losses = trained(MEMBERS, vectorized=vectorized)
    states = [HeadState.new(member, SHAPE, torch.float64) for member in MEMBERS]
    first = HeadGroup(states, SHAPE, vectorized=vectorized)
    for x, labels in batches()[:5]:
        first.step(x, labels)
    second = HeadGroup([first.state(2), first.state(0)], SHAPE, vectorized=vectorized)
    later = torch.stack([second.step(x, labels) for x, labels in batches()[5:]])
    assert (later - losses[5:, [2, 0]]).abs().max() < 1e-10
    for place, number in enumerate((2, 0)):
        for name, tensor in whole.weights(number).items():
            assert (second.weights(place)[name] - tensor).abs().max() < 1e-10


def test_a_state_is_a_copy() -> None:
    """Further steps leave it alone."""
    group = HeadGroup([HeadState.new(member, SHAPE) for member in MEMBERS], SHAPE)
    before = group.state(1)
    kept = {name: tensor.clone() for name, tensor in before.tensors.items()}
    x, labels = batches()[0]
    group.step(x.float(), labels)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.tensors.items())


def test_class_weights_are_those_of_nll_loss() -> None:
    """A weighted mean over each batch; equal weights are none."""
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    states = [HeadState.new(member, SHAPE, torch.float64) for member in MEMBERS]
    x, labels = batches()[0]
    group = HeadGroup(states, SHAPE, weights)
    found = group.log_probs(x)
    losses = HeadGroup([replace(s, member=replace(s.member, dropout=0.0)) for s in states], SHAPE, weights).step(
        x, labels
    )
    expected = torch.stack([nll_loss(one, labels, weights) for one in found])
    assert torch.allclose(losses, expected)
    by_row = HeadGroup([replace(s, member=replace(s.member, dropout=0.0)) for s in states], SHAPE)
    assert torch.allclose(by_row.step(x, labels, weights[labels] / weights[labels].mean()), losses)
    even = HeadGroup(states, SHAPE, torch.full((3,), 7.0))
    plain = HeadGroup(states, SHAPE)
    assert torch.allclose(even.step(x, labels), plain.step(x, labels))
    assert torch.allclose(even.weights(0)["0.weight"], plain.weights(0)["0.weight"])


def test_products_in_bfloat16_are_near() -> None:
    """The weights stay in float32; only what multiplications see is rounded."""
    states = [HeadState.new(member, SHAPE) for member in MEMBERS]
    exact, near = HeadGroup(states, SHAPE), HeadGroup(states, SHAPE, products=torch.bfloat16)
    pairs = [(x.float(), labels) for x, labels in batches()]
    assert torch.allclose(exact.epoch(pairs), near.epoch(pairs), rtol=0.02)
    assert near.tensors["0.weight"].dtype == torch.float32
