"""What all modules from map to map share: memory layout, statistics, the least maps, what is refused and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import everypool

MODULES: dict[str, Any] = {
    "corner": lambda: everypool.TopLeftCornerPool(8, 4),
    "corner, other": lambda: everypool.BottomRightCornerPool(8, 4),
    "cascade": lambda: everypool.CascadeTopLeftPool(8, 4),
    "cascade, other": lambda: everypool.CascadeBottomRightPool(8, 4),
    "center": lambda: everypool.CenterNetCenterPool(8, 4),
    "strip": lambda: everypool.StripPoolingModule(8),
    "gate alone": lambda: everypool.StripPoolingModule(8, gated=False),
    "mixed": lambda: everypool.MixedPoolingModule(8, (3, 2)),
    "pyramid": lambda: everypool.PyramidPoolingModule(8),
    "spp": lambda: everypool.YOLOSPP(8),
    "sppf": lambda: everypool.SPPF(8),
}
every = pytest.mark.parametrize("made", MODULES.values(), ids=MODULES.keys())


@every
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept(made: Any, layout: torch.memory_format) -> None:
    module = made().eval()
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=layout)
    for sizes in (None, [[6, 5], [2, 3]]):
        y = module(x, sizes=sizes)
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, module(x.contiguous(), sizes=sizes), rtol=1e-4, atol=1e-5)


@every
def test_sizes_depend_on_the_statistics_and_not_on_the_mode(made: Any) -> None:
    """Batch normalisation that is frozen while the rest trains joins no samples; one that still learns does, in eval too."""
    x = torch.randn(2, 8, 6, 5)
    sizes = [[6, 5], [3, 4]]
    module = made().train()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    y = module(x, sizes=sizes)
    torch.testing.assert_close(y[1:, :, :3, :4], module(x[1:, :, :3, :4]), rtol=1e-4, atol=1e-5)
    module.eval()
    norms[-1].train()
    with pytest.raises(NotImplementedError, match=r"^`sizes` must be None in training.+eval\(\).+, got \[\["):
        module(x, sizes=sizes)
    norms[-1].eval()
    norms[-1].track_running_stats, norms[-1].running_mean, norms[-1].running_var = False, None, None
    with pytest.raises(NotImplementedError, match=r"^`sizes` must be None in training"):
        module(x, sizes=sizes)


LEAST = {"strip": (2, 2), "gate alone": (2, 2), "mixed": (2, 2)}


@pytest.mark.parametrize("name", MODULES)
def test_the_least_map(name: str) -> None:
    """One value per channel has no variance: refused in training by name, wherever in the module it would be met."""
    x = torch.randn(2, 8, 4, 4)
    module = MODULES[name]()
    assert module.train()(x[..., :1, :1]).shape[2:] == (1, 1)
    for shape in [(1, 1), (1, 4), (4, 1), (2, 2)]:
        one = x[:1, :, : shape[0], : shape[1]]
        refused = name == "pyramid" or shape == (1, 1) or (name in LEAST and 1 in shape)
        if refused:
            with pytest.raises(ValueError, match=r"^`input` must be more than one value per channel .+, got "):
                module.train()(one)
        else:
            assert module.train()(one).shape[2:] == shape
        assert bool(module.eval()(one).isfinite().all())


@every
def test_empty_batches_leave_the_statistics_alone(made: Any) -> None:
    module = made().train()
    before = {key: value.clone() for key, value in module.state_dict().items() if "running" in key}
    y = module(torch.zeros(0, 8, 6, 5))
    y.sum().backward()
    assert y.shape[0] == 0
    assert y.shape[2:] == (6, 5)
    for key, value in before.items():
        assert torch.equal(module.state_dict()[key], value), key
    assert module.eval()(torch.zeros(0, 8, 6, 5), sizes=torch.zeros(0, 2, dtype=torch.long)).shape == y.shape


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast(made: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = made().eval(), torch.randn(2, 8, 6, 5)
    expected = module(x)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(module(x).float(), expected, rtol=0.05, atol=0.05)
    y = module.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@every
def test_vmap(made: Any) -> None:
    module, x = made().eval(), torch.randn(3, 8, 6, 5)
    torch.testing.assert_close(torch.func.vmap(lambda own: module(own[None])[0])(x), module(x), rtol=1e-4, atol=1e-5)


@every
def test_a_recorded_graph_takes_no_sizes(made: Any) -> None:
    """Compiled whole it is refused, with the reason; where graphs may break, it runs outside of one."""
    module, x, sizes = made().eval(), torch.randn(2, 8, 6, 5), torch.tensor([[6, 5], [3, 4]])
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"must be None in a recorded graph"):
        torch.compile(module, fullgraph=True, backend="eager")(x, sizes=sizes)
    with pytest.raises(NotImplementedError, match=r"^`sizes` must be None in a recorded graph"):
        torch.export.export(module, (x, sizes))
    torch._dynamo.reset()
    broken = torch.compile(module, backend="eager")(x, sizes=sizes)
    torch.testing.assert_close(broken, module(x, sizes=sizes), rtol=1e-4, atol=1e-5)


@every
def test_bad_input(made: Any) -> None:
    module, x = made().eval(), torch.ones(1, 8, 5, 4)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((x[0],), ValueError, "input"),
        ((x[:, :7],), ValueError, "input"),
        ((x[..., :0],), ValueError, "input"),
        ((x.int(),), TypeError, "input"),
        ((x.to(torch.complex64),), TypeError, "input"),
        ((x.bool(),), TypeError, "input"),
        ((x.to_sparse(),), TypeError, "input"),
        (([x],), TypeError, "input"),
        ((None,), TypeError, "input"),
        ((x, [[6, 4]]), ValueError, "sizes"),
        ((x, [[0, 4]]), ValueError, "sizes"),
        ((x, [[5, 4], [5, 4]]), ValueError, "sizes"),
        ((x, [[5.0, 4.0]]), TypeError, "sizes"),
        ((x, None, torch.ones(1, 1, 5, 4, dtype=torch.bool)), NotImplementedError, "mask"),
    ]
    for arguments, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            module(*arguments)


def test_fewer_channels_than_grids() -> None:
    with pytest.raises(ValueError, match=r"^`channels` must be at least the number of grids 4 .+, got 3"):
        everypool.PyramidPoolingModule(3)
    assert everypool.PyramidPoolingModule(3, 1).eval()(torch.ones(1, 3, 4, 4)).shape == (1, 7, 4, 4)
