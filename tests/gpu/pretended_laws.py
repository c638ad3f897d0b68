"""What CUDA refuses and what it allows, asked of the pretended card: `python -m tests.gpu.pretended_laws`."""

from __future__ import annotations

from tests.gpu.pretend import begin

begin()  # before torch is imported

import copy  # noqa: E402

import numpy  # noqa: E402
import torch  # noqa: E402

HERE, THERE, NUMPY, NOISE = "same device", "indices should be", "to numpy", "generator"
card, host = torch.arange(4.0, device="cuda"), torch.arange(4.0)
two, some = torch.tensor([0, 2]), torch.nn.Linear(4, 2)
on_card, on_host = torch.Generator("cuda").manual_seed(1), torch.Generator().manual_seed(1)
REFUSED = [
    (HERE, lambda: card + host),
    (HERE, lambda: host + card),
    (HERE, lambda: host.clone().add_(card)),
    (HERE, lambda: host * card[0]),
    (HERE, lambda: torch.cat([card, host])),
    (HERE, lambda: torch.stack([card[0], host[0]])),
    (HERE, lambda: torch.where(card > 1, host, 0.0)),
    (HERE, lambda: card.index_add(0, two, card[:2])),
    (HERE, lambda: card.clone().__setitem__(two, host[:2])),
    (HERE, lambda: copy.deepcopy(some).cuda()(host)),
    (HERE, lambda: some(card)),
    (THERE, lambda: host[two.cuda()]),
    (NUMPY, card.numpy),
    (NUMPY, lambda: numpy.asarray(card)),
    (NOISE, lambda: torch.rand(2, device="cuda", generator=on_host)),
    (NOISE, lambda: torch.rand(2, generator=on_card)),
    (NOISE, lambda: torch.randperm(3, generator=on_card)),
    ("not implemented", lambda: card.int() @ card.int()),
    ("Could not run", lambda: torch.histogram(card, 4)),
    ("driver", lambda: torch.linalg.lstsq(card[:, None], card[:, None], driver="gelsd")),
]
ALLOWED = [
    lambda: card + host[0],
    lambda: card * 2.0,
    lambda: card[two] + card[[0, 2]] + card[range(2)],
    lambda: card[host > 1],
    lambda: card.clone().__setitem__(two, 1.0),
    lambda: card.masked_fill(card > 1, host[0]),
    lambda: torch.linalg.lstsq(card[:, None], card[:, None]).solution,
    lambda: torch.histc(card, 4),
    lambda: host.to("cuda") + card,
    lambda: host.to(card) + torch.linspace(0, 1, 4, device="cuda"),
    lambda: card.new_tensor([1.0]) + card,
    lambda: torch.tensor([1, 2], device="cuda").repeat_interleave(2) + card,
    lambda: torch.empty(0, device="cuda").resize_(4) + card,
]


class Twice(torch.autograd.Function):
    """Doubles, and adds a CPU tensor on the way back."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, v):
        assert v.is_cuda and ctx.saved_tensors[0].is_cuda
        return v + host


def refuses(message: str, act) -> None:
    """Assert that something is refused, and why."""
    try:
        act()
    except (RuntimeError, TypeError) as error:  # NotImplementedError is one of the former
        assert message in str(error), f"{message} is not in: {error}"
    else:
        raise AssertionError(f"not refused, though it should be for '{message}'")


def check_models() -> None:
    """Assert that modules keep their parameters when moved, and learn on the card as on the CPU."""
    layers, seen = [torch.nn.Linear(4, 2), None], []
    layers[1] = copy.deepcopy(layers[0])
    weight = layers[1].weight
    assert layers[1].to("cuda").weight is weight and weight.is_cuda
    for layer, x in zip(layers, (host, card), strict=True):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer(x).square().sum().backward()
        optimizer.step()
        seen.append([layer.weight.detach().cpu(), layer.weight.grad.cpu()])
    assert weight.grad.is_cuda and copy.deepcopy(layers[1]).weight.is_cuda
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def check_libraries() -> None:
    """Assert that gsplat and nerfacc draw on the card, with gradients where density control looks for them."""
    import gsplat
    import nerfacc

    n = 20
    eye, K = torch.eye(4, device="cuda")[None], torch.tensor([[[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]], device="cuda")
    means = (torch.rand(n, 3, device="cuda", generator=on_card) + torch.tensor([-0.5, -0.5, 2.0], device="cuda")).requires_grad_()
    ones = torch.ones(n, 4, device="cuda")
    splats = (means, ones, 0.1 * ones[:, :3], 0.5 * ones[:, 0], ones[:, :3])
    picture, _, meta = gsplat.rasterization(*splats, eye, K, 16, 16, packed=False, absgrad=True)
    meta["means2d"].retain_grad()
    picture.square().sum().backward()
    assert picture.is_cuda and bool(means.grad.any()) and bool(meta["means2d"].grad.any()) and bool(meta["means2d"].absgrad.any())
    refuses(HERE, lambda: gsplat.rasterization(*splats[:4], host.new_ones(n, 3), eye, K, 16, 16))
    grid = nerfacc.OccGridEstimator([-1.0, -1, -1, 1, 1, 1], 8).to("cuda")
    grid.binaries = torch.ones_like(grid.binaries)
    origins, directions = torch.tensor([[0.0, 0, -3]], device="cuda"), torch.tensor([[0.0, 0, 1]], device="cuda")
    rays, starts, _ = grid.sampling(origins, directions, render_step_size=0.1)
    assert rays.is_cuda and len(starts) > 10
    refuses(HERE, lambda: grid.sampling(origins.cpu(), directions, render_step_size=0.1))


def check_colours() -> None:
    """Assert that charts and heat maps take numbers from the card, as they take them from the CPU."""
    from nsw.renderers.heat_colours import coloured
    from nsw.widgets.charts import css

    assert css(card[None, :3] / 4) == css(host[None, :3] / 4) and (coloured(card[None], 0, 3) == coloured(host[None], 0, 3)).all()


def main() -> None:
    """Ask for all of it."""
    for message, act in REFUSED:
        refuses(message, act)
    for act in ALLOWED:
        assert act() is None or act().is_cuda
    assert torch.equal(host.copy_(card), card.cpu()) and not card.cpu().is_cuda
    made = (card[1:], card.double(), torch.zeros_like(card), torch.eye(2, device="cuda"), torch.arange(3, device="cuda"))
    assert all(x.device == torch.device("cuda:0") for x in made) and len(made[-1]) == 3
    on_card.manual_seed(1)
    assert torch.equal(torch.rand(3, device="cuda", generator=on_card).cpu(), torch.rand(3, generator=on_host))
    refuses(HERE, lambda: Twice.apply(card.clone().requires_grad_()).sum().backward())
    check_models()
    check_libraries()
    check_colours()


if __name__ == "__main__":
    main()
