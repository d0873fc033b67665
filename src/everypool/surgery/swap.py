"""Other poolings in the places of a model's own: by rules, checked, reported, and undone on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from everypool import _check as check
from everypool import blocks
from everypool.pool import parse_settings
from everypool.surgery import rewrite
from everypool.surgery.calibrate import Drift, calibrated, drifted, outputs
from everypool.surgery.find import Pooling, aligned, find, picked, there
from everypool.surgery.layers import BLURRED, Scaled
from everypool.surgery.replacement import BLUR, OPEN, Rule, made
from everypool.surgery.trace import arguments, kind, looking, tensors, traced

__all__ = ["Change", "Swap", "swap"]

HOOKS = tuple(
    name for name, item in vars(nn.Module()).items() if name.endswith(("_hook", "_hooks", "_with_kwargs", "_always_called"))
)


@dataclass
class Change:
    """One pooling that was swapped.

    Args:
        name: where it stands.
        old: the pooling that stood there.
        new: the module that stands there now.
        rule: what the rules say for it.
        parameters: how many it has that are learned.
        open: the numbers that calibration may choose, by name.
        fitted: what it chose.
        notes: what else should be known.
    """

    name: str
    old: Pooling
    new: nn.Module
    rule: str
    parameters: int = 0
    open: dict[str, nn.Parameter] = field(default_factory=dict, repr=False)
    fitted: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Swap:
    """What was swapped; printed as a table. `undo` puts everything back, and so does the end of a `with` block.

    Args:
        model: the one that was given.
        changes: one for each pooling.
        drift: how far the model's answers have moved, where there was something to run it on.
        dry_run: the changes were tried and taken back.
    """

    model: nn.Module = field(repr=False)
    changes: tuple[Change, ...]
    drift: Drift | None = None
    dry_run: bool = False
    backs: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the old poolings back, the objects that they were; a second time does nothing."""
        while self.backs:
            self.backs.pop()()

    def __enter__(self) -> Swap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.undo()

    def __str__(self) -> str:
        rows = [("name", "was", "is", "fitted")]
        for change in self.changes:
            fitted = ", ".join(f"{name}={value:.4g}" for name, value in change.fitted.items())
            rows.append((change.name, f"{change.old.what} {change.old.described()}", shown(change.new), fitted))
        lines = [aligned(rows if any(row[3] for row in rows[1:]) else [row[:3] for row in rows])]
        lines += [f"{change.name}: {note}" for change in self.changes for note in change.notes]
        added = sum(change.parameters for change in self.changes)
        lines.append(f"{len(self.changes)} swapped, {added} parameter{'s' * (added != 1)} added" + ", dry run" * self.dry_run)
        return "\n".join(lines + ([str(self.drift)] if self.drift is not None else []))


def swap(
    model: nn.Module,
    rules: Mapping[Any, Rule] | Callable[[Pooling], Rule | None],
    example: Any = None,
    *,
    calibrate: Any = None,
    preserve: bool = False,
    dry_run: bool = False,
) -> Swap:
    """Put other poolings in the places of a model's own.

    Windows, shape of the output, device, type, training flag, hooks and every name that a module has stay. A pooling that is
    called as a function becomes a module: the call is replaced in a copy of the method's source, and the module's class
    becomes a subclass of what it was. A function of the method's that calls it becomes a method of that class.

    Args:
        model: it is changed in place.
        rules: from which poolings to what stands there instead; the first that fits counts, and each must fit one.
            Keys are classes (`nn.MaxPool2d`), torch's functions (`F.max_pool2d`), places ("stem", "stage", "head",
            "inside"), names with wildcards ("layer?.pool"; a module's name means all in it), or a test that takes a
            `Pooling`. Values are reducers with their settings if any ("soft", "gem:p=3"); "blur" for the anti-aliased
            variant (maximum, then blur; blur instead of average; of a convolution with a stride: without the stride, and
            the blur with it before the module that comes next); a module, copied for every place; or what takes a `Pooling`
            and returns a module. Or, instead of a mapping, a function from a `Pooling` to such a value or None.
        example: what the model takes, as in `find`. Without it, modules of torch.nn and everypool alone are swapped, and no
            shape is checked.
        calibrate: an input, or a sequence of inputs, such as the example. The output of each new pooling is scaled by one
            number, and p, beta or r are chosen unless the rule says them, so that the model's answers come closest to what
            they were; the report has the distance before and after.
        preserve: start from the same answers: GeM at p = 1, SoftPool at beta = 0, log-sum-exp at r = 0 in the place of an
            average, and otherwise a `MixedPool` of old and new whose gate is closed.
        dry_run: try all of it, report, and take it back.

    Returns:
        `Swap`: the changes, how far the answers moved, and `undo`.

    Raises:
        ValueError: a rule fits nothing or does not parse, or another shape would come out; the model is then as it was.
        NotImplementedError: a function is called where its call cannot be replaced, or gives places that are used.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> report = swap(model, {nn.MaxPool2d: "soft", "head": "gem:p=3"}, torch.rand(2, 3, 9, 9))
    >>> model[1]
    SoftPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=True, beta=1.0)
    >>> report.undo()
    >>> model[1]
    MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=True)
    """
    check_rules(rules, calibrate, preserve)
    batches = () if calibrate is None else tuple(calibrate) if isinstance(calibrate, (list, tuple)) else (calibrate,)
    example = batches[0] if example is None and batches else example
    found = find(model, example)
    plan = planned(model, found, rules, example)
    probes = batches or (() if example is None else (example,))
    before = outputs(model, probes)
    done = Swap(model, (), dry_run=dry_run)
    try:
        done.changes = tuple(exchanged(model, plan, example, done.backs, preserve, bool(batches)))
        if example is not None:
            verify(model, done.changes, example)
        if batches:
            done.drift = calibrated(model, done.changes, batches, before)
        elif probes:
            done.drift = drifted(before, outputs(model, probes))
    except BaseException:
        done.undo()
        raise
    if dry_run:
        done.undo()
    return done


def check_rules(rules: Any, calibrate: Any, preserve: Any) -> None:
    rule = "a mapping from places, names, classes, functions or tests to poolings, or a function"
    if not isinstance(rules, Mapping) and not callable(rules):
        raise check.wrong_type("rules", rule, rules)
    if isinstance(rules, Mapping) and not rules:
        raise check.invalid("rules", rule + "; one at least", rules)
    check.boolean("preserve", preserve)
    if calibrate is not None and next(tensors(calibrate), None) is None:
        raise check.wrong_type("calibrate", "an input of the model, or a sequence of inputs", calibrate)


def planned(model: nn.Module, found: Sequence[Pooling], rules: Any, example: Any) -> list[tuple[Pooling, Rule]]:
    """Which poolings, and convolutions to be blurred, become what."""
    if not isinstance(rules, Mapping):
        asked = [(p, rule) for p in found if (rule := rules(p)) is not None]
        if not asked:
            raise check.invalid("rules", f"for one of the poolings ({there(found)}) at least", rules)
        return asked
    plan: list[tuple[Pooling, Rule]] = []
    taken: set[str] = set()
    strided = convolutions(model, example) if BLUR in rules.values() else ()
    for key, rule in rules.items():
        here = list(matching([*found, *strided] if rule == BLUR else found, key))
        if not here:
            raise check.invalid("rules", f"for poolings that the model has ({there(found)})", key)
        plan += [(p, rule) for p in here if p.name not in taken]
        taken.update(p.name for p in here)
    return plan


def matching(found: Sequence[Pooling], key: Any) -> Iterable[Pooling]:
    try:
        return list(picked(found, key))
    except check.InvalidValue as error:
        raise check.invalid("rules", f"for poolings that the model has ({there(found)})", key) from error


def convolutions(model: nn.Module, example: Any) -> tuple[Pooling, ...]:
    """Convolutions with a stride, each with the module that comes next as its `after`."""
    if example is None:
        return ()
    names = {module: name for name, module in model.named_modules()}
    runs = [run for run in traced(model, example) if run.module is not None]
    result = []
    for n, run in enumerate(runs):
        module: Any = run.module
        if type(module) not in BLURRED or max(module.stride) == 1:
            continue
        later = (
            r.module for r in runs[n + 1 :] if r.input == run.output and (type(r.module) in BLURRED or kind(r) is not None)
        )
        after = module if max(module.kernel_size) == 1 else next(later, None)
        if after is not None:
            result.append(
                Pooling(names[module], type(module).__name__, "", "convolution", "", {"stride": module.stride}, run.input,
                        run.output, after=names[after], module=module, like=run.like)
            )  # fmt: skip
    return tuple(result)


def exchanged(
    model: nn.Module, plan: list[tuple[Pooling, Rule]], example: Any, backs: list[Callable[[], None]], preserve: bool, fit: bool
) -> Iterable[Change]:
    """Make the changes; what takes each of them back is added to `backs`."""
    like = next(model.parameters(), None) if example is None else None
    for place, rule in plan:
        if getattr(place.module, "return_indices", False):
            raise NotImplementedError(f"`{place.name}` must be a pooling that gives values alone, got places too")
        if place.kind == "convolution":
            yield blurred(model, place, backs)
            continue
        new, notes = made(place, rule, preserve, fit)
        reference = place.like if place.like is not None else like
        if reference is not None:
            new = new.to(reference.device, reference.dtype if reference.is_floating_point() else None)
        text = rule if isinstance(rule, str) else type(new).__name__
        numbers = dict(left_open(new, rule))
        if fit:
            new = Scaled(new).to(reference.device if reference is not None else None)
            numbers["scale"] = new.scale
        if place.module is not None:
            new.train(place.module.training)
            for name in HOOKS:  # the same dictionaries: handles still remove what they have added
                setattr(new, name, getattr(place.module, name))
            put(model, place.module, new, backs)
        else:
            new.train(place.owner.training if place.owner is not None else model.training)
            notes += (called_instead(place, new, backs),)
        yield Change(
            place.name, place, new, text, sum(p.numel() for p in new.parameters() if p.requires_grad), numbers, {}, notes
        )


def left_open(new: nn.Module, rule: Rule) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one number that the rule does not settle."""
    settled = parse_settings(rule)[1] if isinstance(rule, str) and rule != BLUR else {}
    for name, parameter in new.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.numel() == 1 and last in OPEN.values() and last not in settled:
            yield last, parameter


def put(model: nn.Module, old: nn.Module, new: nn.Module, backs: list[Callable[[], None]]) -> None:
    """The new module under every name that the old one has."""
    if old is model:
        raise check.invalid("model", "one that holds its poolings; a pooling itself has none that could be swapped", model)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
                backs.append(partial(parent._modules.__setitem__, key, old))


def called_instead(place: Pooling, new: nn.Module, backs: list[Callable[[], None]]) -> str:
    """The module in the place of a function's call; returns what has changed in the source."""
    owner, call = place.owner, place.call
    if owner is None or call is None:
        raise TypeError(place.name)
    attribute = place.name.rpartition(".")[2]
    edit = rewrite.edit(owner, call, attribute)
    old = rewrite.edits_of(owner)
    backs.append(partial(rewrite.apply, owner, old))
    owner.add_module(attribute, new)
    backs.append(partial(owner._modules.pop, attribute))  # type: ignore[arg-type]
    rewrite.apply(owner, (*old, edit))
    return f"{edit.text} is now self.{attribute}(...) ({place.source})"


def blurred(model: nn.Module, place: Pooling, backs: list[Callable[[], None]]) -> Change:
    """The convolution without its stride, and a blur with it before the module that comes next."""
    module: Any = place.module
    stride, nd = module.stride, len(module.stride)
    after: Any = model.get_submodule(place.after)
    blur = getattr(blocks, f"BlurPool{nd}d")(stride=stride)
    if place.like is not None:
        blur = blur.to(place.like.device, place.like.dtype)
    backs.append(partial(setattr, module, "stride", stride))
    module.stride = (1,) * nd
    if type(after) in BLURRED:
        backs.append(partial(setattr, after, "__class__", type(after)))
        after.__class__ = BLURRED[type(after)]
        after.add_module("blur", blur)
        backs.append(partial(after._modules.pop, "blur"))
    else:
        put(model, after, nn.Sequential(blur, after), backs)
    return Change(place.name, place, module, BLUR, notes=(f"stride {stride[0]} is now a blur before {place.after}",))


def verify(model: nn.Module, changes: Sequence[Change], example: Any) -> None:
    """Every new pooling runs, and gives the shape that the old one gave."""
    ran: set[nn.Module] = set()

    def compare(change: Change, module: nn.Module, inputs: Any, output: Any) -> None:
        if module in ran:
            return  # a module that runs again is given another map
        ran.add(module)
        expected = change.old.output if change.old.kind != "convolution" else None
        if expected is not None and (not isinstance(output, Tensor) or output.shape != expected):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            rule = f"to poolings that keep the shape {tuple(expected)} at {change.name}"
            raise check.invalid("rules", rule, check.Shown(f"{got} from {change.rule!r}"))

    args, kwargs = arguments(example)
    with looking(model):
        handles = [change.new.register_forward_hook(partial(compare, change)) for change in changes]
        try:
            model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    for change in changes:
        if change.new not in ran:
            raise RuntimeError(f"{change.name} did not run after it was swapped")


def shown(module: nn.Module) -> str:
    return repr(module).replace("\n", " ")
