"""One contribution against the tensor that it names: the steps it becomes, or why it does not fit. Pure."""

from collections.abc import Mapping

from merge import encodings
from merge.adapters import Adapter
from merge.adapters.contract import Addend, Addition, Contribution, Stacked, TokenRows
from merge.catalog import Tensor
from merge.errors import AdapterError
from merge.names import Names
from merge.nametable import Layout, Owner, Piece, Weight
from merge.operation import Magnitude, Part, Read, Rows, Shift, Step

ALWAYS_TRANSPOSED = (0, 19, 0)  # PEFT before it: lora_A over a stack's second axis, whatever its module says
INVERTED = (0, 19, 1)  # PEFT before it, from 0.19.0: the rule of today upside down
UNSCALED = (0, 18, 0)  # PEFT before it forgot the factor by which some embeddings multiply their rows (PR 2825, 2839)


def refuse_foreign(contribution: Contribution) -> None:
    """Raises AdapterError where the adapter's own tensors are stored in a way that is not computed with."""
    foreign = [str(given) for given in contribution.tensors if encodings.of(given) is None]
    if foreign:
        raise AdapterError(f"{foreign[0]}: adapter tensors of this dtype are not merged by this version")


def refuse_storage(tensor: Tensor, quantised: frozenset[str]) -> None:
    """Raises AdapterError where the base's tensor is stored in a way that is carried but not computed with."""
    if encodings.of(tensor) is None and tensor.name not in quantised:
        missing = " without a scale that config.json speaks of" if tensor.dtype == encodings.CODES else ""
        raise AdapterError(f"{tensor}: stored as {tensor.dtype}{missing}, which this version carries but does not merge into")


def refuse_forward(adapter: Adapter, contribution: Addition | Addend | TokenRows, parameter: str, names: Names) -> None:
    """Raises AdapterError where what was trained beside a module is no change of its weight."""
    module = parameter.removesuffix(".weight")
    if isinstance(contribution, Addend):
        return
    if module in names.table.foreign:
        raise AdapterError(
            f"{parameter}: {names.table.foreign[module]} does more with its weight than the class that it derives from, "
            "so that no weight is what the adapter learned beside it; train it whole (modules_to_save), or leave it out"
        )
    if isinstance(contribution, TokenRows) and contribution.twin and parameter not in names.table.tied:
        raise AdapterError(f"{parameter}: trainable_token_indices names no rows of it, nor is it tied to what it names")
    if isinstance(contribution, TokenRows) and (head := _biased(parameter, names)):
        raise AdapterError(
            f"{parameter}: {head} has a bias, which PEFT leaves out of its answers where single rows of its weight are trained, "
            "so that no checkpoint is what was trained: train it whole (modules_to_save), or leave it out"
        )
    if parameter in names.table.scaled and (adapter.settings.version or (0,)) < UNSCALED:
        raise AdapterError(
            f"{parameter}: the model multiplies what it looks up there, and PEFT before 0.18 did not multiply what it added; as "
            "adapter_config.json names no later peft_version, what was trained cannot be known: train it with a later PEFT, or leave it out"
        )


def _biased(parameter: str, names: Names) -> str:
    """The linear module with a bias that works with this weight, if there is one: by itself, or tied to it."""
    sharing = names.sharing(parameter) if parameter not in names.table.tied else (parameter,)  # rows of an embedding are shared
    modules = [name.removesuffix(".weight") for name in sharing]
    return next((path for path in modules if names.table.modules.get(path) == "linear" and names.exists(f"{path}.bias")), "")


def steps(
    adapter: Adapter,
    contribution: Addition | Addend | TokenRows,
    layout: Layout,
    piece: Piece | None,
    tensor: Tensor,
    shape: tuple[int, ...],
) -> tuple[Step, ...]:
    """What one contribution does to one tensor.

    layout  how its module stores the weight      piece  the expert it speaks of, where the base stores all of them in this tensor
    shape   of the tensor as the training saw it

    Raises AdapterError if it does not fit.
    """
    match contribution:
        case Addend(value=value):
            if value.shape != shape:
                raise AdapterError(f"{tensor}: the adapter adds a bias of shape {value.shape}")
            return (Shift(_read(adapter, value), contribution.scaling * adapter.weight),)
        case TokenRows(value=value, indices=indices):
            if layout not in ("embedding", "linear") or len(shape) != 2 or value.shape[1] != shape[1] or max(indices) >= shape[0]:
                raise AdapterError(f"{tensor}: the adapter trains rows up to {max(indices)} of {value.shape[1]} values")
            return (Rows(_read(adapter, value), indices),)
        case Addition():
            return _product(adapter, contribution, layout, piece, tensor, shape)


def _product(
    adapter: Adapter, addition: Addition, layout: Layout, piece: Piece | None, tensor: Tensor, shape: tuple[int, ...]
) -> tuple[Step, ...]:
    columns, rows = addition.a.shape[1:], addition.b.shape[0]
    transposed = layout in ("conv1d", "embedding")
    if addition.embedding != (layout == "embedding"):
        raise AdapterError(f"{tensor}: {'not an embedding' if addition.embedding else 'an embedding'}, and the adapter took it for another")
    if layout == "other" or (layout == "parameter" and len(shape) != 2 and piece is None):
        raise AdapterError(f"{tensor}: not a linear layer; not merged by this version")
    expected = (columns[0], rows) if transposed else (rows, *columns)
    if layout == "unknown" and rows == columns[0] and adapter.settings.fan_in_fan_out is not False:
        raise AdapterError(
            f"{tensor}: square, of an architecture that nobody knows, and fan_in_fan_out is not false: "
            "which way round it is stored cannot be known"
        )
    at, height = (0, rows) if piece is None else _window(piece, shape)
    if (shape if piece is None else (height, shape[-1])) != expected:
        raise AdapterError(f"{tensor}: lora_A {addition.a.shape} and lora_B {addition.b.shape} make a delta of shape {expected}")
    part = Part(
        _read(adapter, addition.a),
        _read(adapter, addition.b),
        scaling=addition.scaling * adapter.weight,
        transposed=transposed,
        columns=(0, 1),
        rows=(0, expected[0]),
        at=at,
        whole=0 if layout == "conv1d" else 1,
    )
    if addition.magnitude is None:
        return (part,)
    if piece is not None or addition.magnitude.elements != rows:
        raise AdapterError(f"{tensor}: lora_magnitude_vector {addition.magnitude.shape} does not hold one length per output")
    return part, Magnitude(_read(adapter, addition.magnitude), axis=0 if transposed else 1)


def _window(piece: Piece, shape: tuple[int, ...]) -> tuple[int, int]:
    """(first row, rows) of one expert's matrix in the tensor that stacks them."""
    height = shape[1] // piece.parts
    return piece.expert * shape[1] + piece.part * height, height


def stack(adapter: Adapter, stacked: Stacked, names: Names, base: Mapping[str, Tensor]) -> dict[str, tuple[Step, ...]]:
    """Disk key → steps, for every tensor that holds experts of one adapted parameter; raises AdapterError if it does not fit."""
    name, parameter, shape, owner = _chosen(stacked, names)
    experts = shape[0] if len(shape) == 3 else 1
    rank, rest = divmod(stacked.a.shape[0], experts)
    if rest or len(stacked.a.shape) != 2 or len(stacked.b.shape) != 2 or stacked.b.shape[1] != rank * experts or not rank:
        raise AdapterError(f"{name}: lora_A {stacked.a.shape} and lora_B {stacked.b.shape} do not hold {experts} experts")
    scaling = adapter.settings.scaling(name, rank) * adapter.weight
    transposed = len(shape) == 3 and _transposed(adapter, stacked, name, shape, owner)
    rows, columns = shape[-2:]
    if (stacked.b.shape[0], stacked.a.shape[1]) != ((columns, rows) if transposed else (rows, columns)):
        raise AdapterError(f"{name} {shape}: lora_A {stacked.a.shape} and lora_B {stacked.b.shape} do not fit")
    fillers = names.fillers[parameter]
    if len(fillers) not in (1, experts * (fillers[0].piece.parts if fillers[0].piece else 1)):
        raise AdapterError(f"{name}: {len(fillers)} tensors of the base for {experts} experts")
    found: dict[str, tuple[Step, ...]] = {}
    for weight in fillers:
        if weight.fused and weight.piece is None:
            raise AdapterError(f"{weight.key}: fused into {parameter} in a way that this version does not undo")
        flipped = base[weight.key].shape != shape if weight.flipped is None else weight.flipped
        for expert in range(experts) if weight.piece is None else (weight.piece.expert,):
            window, at = _rows_of(expert, weight.piece, (columns, rows) if flipped else (rows, columns))
            part = Part(
                _of_expert(adapter, stacked.a, expert, rank),
                _read(adapter, stacked.b),
                scaling=scaling,
                transposed=transposed != flipped,
                columns=(expert * rank, 1) if adapter.settings.grouped else (expert, experts),
                rows=window,
                at=at,
                whole=0 if transposed != flipped else 1,
            )
            found[weight.key] = (*found.get(weight.key, ()), part)
    return found


def _rows_of(expert: int, piece: Piece | None, stored: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(rows of one expert's delta that a tensor holds, the row of the tensor that takes the first of them)."""
    if piece is None:
        return (0, stored[0]), expert * stored[0]
    height = stored[0] // piece.parts
    return (piece.part * height, (piece.part + 1) * height), 0


def _chosen(stacked: Stacked, names: Names) -> tuple[str, str, tuple[int, ...], Owner]:
    """(name as the adapter's tree spells it, parameter, shape, owner) of the one parameter that lies at this depth."""
    meant = {names.table.aliases[name].parameter: name for name in stacked.names}
    spelled = {parameter: name for parameter, name in meant.items() if names.fillers.get(parameter)}
    module = next(iter(spelled)).rpartition(".")[0]
    owner = names.table.owners.get(module)
    if owner is None:
        raise AdapterError(f"{stacked.a}: {module} holds no parameters that target_parameters could mean")
    order = [f"{module}.{leaf}" for leaf in owner.parameters if f"{module}.{leaf}" in spelled]
    if stacked.depth >= len(order):
        raise AdapterError(f"{stacked.a}: wrapped {stacked.depth + 1} times, and {len(order)} parameters of {module} are targeted")
    parameter = order[len(order) - 1 - stacked.depth]
    return spelled[parameter], parameter, owner.parameters[parameter.rpartition(".")[2]], owner


def _transposed(adapter: Adapter, stacked: Stacked, name: str, shape: tuple[int, ...], owner: Owner) -> bool:
    """True where an expert's delta is (B · A)ᵀ: by shape where one reading fits, by the version of PEFT where both do."""
    rows, columns = shape[-2:]
    if rows != columns:
        return (stacked.b.shape[0], stacked.a.shape[1]) == (columns, rows)
    version = adapter.settings.version
    if version is None:
        raise AdapterError(
            f"{name} {shape}: square experts, and adapter_config.json names no peft_version: "
            "which way round they were trained cannot be known"
        )
    if version < ALWAYS_TRANSPOSED:
        return True
    return not owner.transposed if version < INVERTED else owner.transposed


def _read(adapter: Adapter, tensor: Tensor) -> Read:
    return Read("adapter", adapter.index, tensor)


def _of_expert(adapter: Adapter, a: Tensor, expert: int, rank: int) -> Read:
    """One expert's rows of lora_A, which lie together."""
    unit = a.size // a.shape[0] * rank
    start = a.start + expert * unit
    return _read(adapter, Tensor(a.name, a.dtype, (rank, *a.shape[1:]), a.file, start, start + unit))


def layout_of(weight: Weight | None, parameter: str, names: Names) -> Layout:
    """How the weight is stored; one that the base has not lies in its module's own layout."""
    return weight.layout if weight else names.table.modules.get(parameter.rpartition(".")[0], "other")
