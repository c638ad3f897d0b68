"""Tensors of the pretended card, and what happens to them.

Autograd runs on the Cards themselves; what stands below it, every single operation, comes to `answer`, which refuses or does it on
the CPU tensors inside. Factories have no Card among their arguments: `made` stands where CUDA's kernels would.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

COPIES = {"copy_", "copy", "_to_copy", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
SCALARS_TOO = {"masked_fill", "masked_fill_", "fill", "fill_", "lerp", "index_fill", "index_fill_", "where"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot"}  # of integers CUDA knows none
HOST_ALONE = {"histogram", "_histogramdd_bin_edges", "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"}
CARD = torch.device("cuda:0")
AS_TENSOR = torch.as_tensor
_keep = []


class Card(torch.Tensor):
    """A tensor that is on `cuda:0` for everybody but this file; `raw` is the CPU tensor with its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        layout = dict(strides=raw.stride(), storage_offset=raw.storage_offset()) if raw.layout == torch.strided else {}
        card = torch.Tensor._make_wrapper_subclass(cls, raw.size(), dtype=raw.dtype, layout=raw.layout, device=CARD, **layout)
        card.raw = raw
        return card

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return answer(func, args, kwargs or {})

    def __repr__(self):
        return f"Card({self.raw})"

    def __format__(self, how):
        return format(self.item(), how) if self.dim() == 0 else object.__format__(self, how)

    def numpy(self, *_, **__):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.raw.data_ptr()

    def __getitem__(self, index):
        return torch.Tensor.__getitem__(self, of_tensors(index))

    def __setitem__(self, index, value):
        torch.Tensor.__setitem__(self, of_tensors(index), value)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = Card(self.raw.detach().clone())
            copy = torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
            copy.requires_grad_(self.requires_grad).grad = None if self.grad is None else self.grad.detach().clone()
            memo[id(self)] = copy
        return memo[id(self)]

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        if not isinstance(other, Card):
            raise NotImplementedError("`.data` of a tensor on the card was set to one on the CPU.")
        self.raw = other.raw
        torch.Tensor.data.__set__(self, other)


def of_tensors(index):
    """Return an index without lists, ranges and arrays, of which torch makes tensors below the level at which Cards are seen."""
    if isinstance(index, tuple):
        return tuple(of_tensors(part) for part in index)
    return torch.as_tensor(index) if isinstance(index, (list, range, np.ndarray)) else index


def put_in_place() -> None:
    """Let factories and moves make Cards, and gsplat's and nerfacc's calls take them."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(made, "CUDA")
    _keep.append(library)  # what it says is unsaid when it is collected
    torch.tensor, torch.as_tensor = functools.partial(from_data, torch.tensor), functools.partial(from_data, torch.as_tensor)
    torch.Tensor.new_tensor = lambda self, data, **how: torch.tensor(data, **{"device": self.device, "dtype": self.dtype, **how})
    # a CPU parameter moved to the card must stay the same object, as optimizers know it
    torch.__future__.set_swap_module_params_on_conversion(True)
    from nsw.kernels import installing, triton_launch

    triton_launch.runs_triton = lambda: False  # it would read the addresses of a card that has none
    installing.dispatch = functools.partial(served, installing.dispatch)
    installing.install()


def made(func, *args, **kwargs):
    """Answer a factory's call for the card; whatever else comes here is no Card and yet is said to be there."""
    lost = [x for x in flat((args, kwargs)) if isinstance(x, torch.Tensor) and x.is_cuda]
    if lost:
        raise RuntimeError(f"{func}: a tensor on the card lost what it pretends.")
    return answer(func, args, kwargs)


def from_data(own, data, *, device=None, **how):
    """Do what `torch.tensor` does, which fills a tensor below the level at which Cards are seen."""
    place = device if device is not None else getattr(data, "device", "cpu")
    if isinstance(data, Card):
        out = data if own is AS_TENSOR else data.detach().clone()
        out = out.to(device=place, dtype=how.get("dtype"))
    else:
        data = tree_map(lambda x: x.item() if isinstance(x, Card) else x, data) if isinstance(data, (list, tuple)) else data
        if torch.device(place).type == "cpu":
            return own(data, **({} if device is None else {"device": device}), **how)
        wants = how.pop("requires_grad", False)
        return own(data, **how).to(place).requires_grad_(wants)
    return out.requires_grad_(how.get("requires_grad", False)) if own is not AS_TENSOR else out


def flat(value):
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in flat(part)]
    return flat(list(value.values())) if isinstance(value, dict) else [value]


@functools.cache
def about(func) -> tuple[str, bool, bool]:
    """The name of an operation, whether it is pointwise, whether it returns or changes what it was given."""
    name = func._schema.name.rpartition(":")[2]
    aliases = any(a.alias_info is not None for a in func._schema.arguments)
    return name, torch.Tag.pointwise in func.tags, aliases


@functools.cache
def written(func) -> list[tuple[int, str]]:
    return [(i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def refuse_mixtures(func, args, kwargs) -> None:
    """Raise what CUDA raises where tensors on the CPU and on the card meet."""
    name, pointwise, _ = about(func)
    values = flat((args, kwargs))
    plain = [x for x in values if isinstance(x, torch.Tensor) and not isinstance(x, Card)]
    cards = [x for x in values if isinstance(x, Card)]
    if not plain or not cards or name in COPIES:
        return
    if name in INDEXING:
        if not isinstance(args[0], Card):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if len(args) > 2 and not isinstance(args[2], Card) and args[2].dim() > 0:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")
        return
    changed = [kwargs.get(n, args[i] if i < len(args) else None) for i, n in written(func)]
    scalars = all(x.dim() == 0 for x in plain) and not any(x is y for x in plain for y in flat(changed))
    if scalars and (pointwise or name in SCALARS_TOO):
        return
    shapes = ", ".join(
        f"{'cuda:0' if isinstance(x, Card) else 'cpu'} {list(x.shape)}" for x in values if isinstance(x, torch.Tensor)
    )
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices in {name}: {shapes}")


def refuse_what_is_missing(func, args, kwargs) -> None:
    """Raise what CUDA raises for operations of which it has no kernel, or only one of several."""
    name = about(func)[0]
    if not any(isinstance(x, Card) for x in flat((args, kwargs))):
        return
    if name in HOST_ALONE:
        raise NotImplementedError(f"Could not run 'aten::{name}' with arguments from the 'CUDA' backend.")
    if name in PRODUCTS and not args[0].is_floating_point() and not args[0].is_complex():
        raise RuntimeError(f'"{name}_cuda" not implemented for {args[0].dtype}')
    if name == "linalg_lstsq" and kwargs.get("driver") not in (None, "gels"):
        raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be one of (gels)")


def bare(value):
    return value.raw if isinstance(value, Card) else value


def answer(func, args, kwargs):
    """Do an operation on the numbers and return what it gives as Cards."""
    refuse_mixtures(func, args, kwargs)
    refuse_what_is_missing(func, args, kwargs)
    inner, place = dict(kwargs), kwargs.get("device")
    place = None if place is None else torch.device(place).type
    if place == "cuda":
        inner["device"] = torch.device("cpu")
    inner.pop("pin_memory", None) if place == "cuda" else None
    noise = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)), None)
    args_inner = tree_map(bare, args)
    inner = tree_map(bare, inner)
    if noise is not None:
        if noise.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if place == "cpu" or any(type(x) is torch.Tensor for x in args):
            raise RuntimeError("Expected a 'cpu' device type for generator but found 'cuda'")
        twin = torch.Generator()
        twin.set_state(noise.get_state())
        args_inner = [twin if x is noise else x for x in args_inner]
        inner = {k: twin if x is noise else x for k, x in inner.items()}
    out = func(*args_inner, **inner)
    if noise is not None:
        noise.set_state(twin.get_state())
    name, _, aliases = about(func)
    for i, n in written(func):  # an `out=` or a `resize_` may have changed the size
        card = kwargs.get(n, args[i] if i < len(args) else None)
        if isinstance(card, Card) and (card.size() != card.raw.size() or card.stride() != card.raw.stride()):
            card.data = Card(card.raw)
    if place == "cpu" or (name == "copy_" and not isinstance(args[0], Card)):
        return args[0] if name == "copy_" else out
    out = tree_map(lambda x: Card(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliases else out


def moved(value, device: str):
    """Return a value of a library's call with its tensors moved, with gradients."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value):
        fields = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(moved(v, device) for v in value)
    return value


def served(plain_dispatch, key: str, args: tuple, kwargs: dict):
    """Serve a call of gsplat or nerfacc: its own code where that is Python, else the twin, from copies on the CPU."""
    from nsw import kernels
    from nsw.kernels import installing

    tensors = [t for value in (*args, *kwargs.values()) for t in installing._tensors(value)]
    if not any(isinstance(t, Card) for t in tensors):
        return plain_dispatch(key, args, kwargs)
    detour = installing._served[key]
    if detour.twin.startswith("rasterization"):
        return detour.original(*args, **kwargs)
    if not all(isinstance(t, Card) for t in tensors):
        raise RuntimeError(f"{key}: expected all tensors to be on the same device, and some are on the CPU")
    inner, inner_named = moved(args, "cpu"), moved(kwargs, "cpu")
    out = getattr(kernels, detour.twin)(*inner, **inner_named)
    if detour.twin.startswith("rasterize_to_pixels"):
        ours = args[0] if args else kwargs["means2d"]
        theirs = inner[0] if args else inner_named["means2d"]
        if ours.requires_grad:
            ours.register_hook(
                lambda _: hasattr(theirs, "absgrad") and setattr(ours, "absgrad", theirs.absgrad.to("cuda:0")) or None
            )
    return moved(out, "cuda:0")
