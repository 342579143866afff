"""The schema of a spec. Sections of components are derived from the registries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..data import DATASETS
from ..engine.settings import STEP_LENGTHS, Method, Settings
from ..errors import InputError, Problem
from ..losses import LOSSES
from ..models import MODELS
from ..optimizers import OPTIMIZERS
from ..options import Allowed, Options, Section, any_of, derived
from ..processes import PROCESSES
from ..registry import InputFile, Registry
from ..task import Evaluation
from .document import Node, dotted, dump
from .user_class import ClassOptions, FunctionOptions

COMPONENTS: dict[str, Registry] = {
    "data": DATASETS,
    "model": MODELS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
}
"""What the `type` of each section of components may name."""
IN_PLACE_OF = "data", "model", "loss"
"""Sections that a `task` does without."""


def _fits(value: int) -> int:
    if value > 2**31 - 1:
        raise PydanticCustomError("worded", "must be at most 2147483647")
    return value


_Fits = AfterValidator(_fits)
"""Compiled programs count in 32 bits."""
Count = Annotated[int, Ge(0), _Fits]
AtLeastOne = Annotated[int, Ge(1), _Fits]
Positive = Annotated[float, Gt(0)]

_DEFAULT = Settings()
_ONLY = "(other values are not supported by this version)"
NAME_LENGTH = 128
_NAME_BYTES = 240
"""Of the 255 that file systems take, without an ending such as .yaml."""
NAME_PATTERN = r"^\w[\w.=,+-]*$"


def _short_enough(name: str) -> str:
    size = len(name.encode())
    if size > _NAME_BYTES:
        words = {"most": _NAME_BYTES, "size": size}
        raise PydanticCustomError("worded", "must have {most} or fewer bytes, got {size}", words)
    return name


Name = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN, max_length=NAME_LENGTH),
    AfterValidator(_short_enough),
    Allowed(f"a plain directory name (letters, digits and ._-+=, up to {NAME_LENGTH} of them)"),
]


_Values = Annotated[tuple[Any, ...], MinLen(1), Allowed("a list of one or more values")]
_Entry = Annotated[dict[str, Any], Allowed("a mapping of keys to values")]
_GRID = "a mapping of one or more dotted keys, such as optimizer.lr, to lists of values"
_ENTRIES = "a list of one or more mappings of keys to values"


def _power_of_two(value: float) -> float:
    if value not in STEP_LENGTHS:
        raise PydanticCustomError("worded", "must be a power of two from 1/8 to 16, or null")
    return value


class Init(Section):
    """Initial weights from a file, instead of the model's own."""

    path: InputFile
    """An npz file, relative to the spec file."""
    key: str
    """Name of the array: all weights in one vector."""


class Eigen(Section):
    """Which eigenvalues of the effective Hessian (critical value 2) are tracked."""

    track_above: Positive = _DEFAULT.track_above
    """Track every eigenvalue above this."""
    initial: AtLeastOne = _DEFAULT.initial
    """Number of eigenvalues tracked from the start."""
    tol: Positive | None = None
    """Relative residual of critical eigenpairs; null: half of `flow.tol`, and with Euler's
    method 1e-4, which changed flows by up to 2e-6 of their path; at least twenty times the unit of
    rounding of `forward`. Of others only eigenvalues are used: 1e-3, or three times this if that is
    more."""


class Flow(Section):
    """How the flows are integrated."""

    method: Method = _DEFAULT.method
    """How central flows step: to second order, in steps of adaptive or of fixed length, or by
    Euler's method, which reproduces the paper. `state_rate: backward` is Euler's in any case."""
    tol: Positive = _DEFAULT.step_tol
    """Error that adaptive steps may make, relative to the distance they move."""
    max_step: Annotated[float, AfterValidator(_power_of_two)] | None = None
    """Optimizer steps that an adaptive step takes at most, and a midstep always; null: 4, and 1."""
    substeps: AtLeastOne = _DEFAULT.substeps
    """Euler steps per optimizer step."""
    critical_above: Annotated[float, Gt(0), Le(2)] = _DEFAULT.critical_above
    """Eigenvalues above this may oscillate."""
    state_rate: Literal["exponential", "backward"] = _DEFAULT.state_rate
    """How fast the optimizer's state follows."""
    restoration: Positive | None = _DEFAULT.restoration
    """Rate, per step, at which a central flow that starts unstable is made stable; null: 0.5 with
    exponential, within a substep with backward."""
    rods: Annotated[int, Ge(1), Le(8)] = _DEFAULT.rods
    """Rods of the rod and edge flows, each with a direction of its own, the last one with what
    oscillates in all others."""
    max_sharpness: Positive = _DEFAULT.max_sharpness
    """The stable flow stops when the effective sharpness passes this."""
    smoothing: Annotated[float, Ge(0)] = 15.0
    """Standard deviation, in recorded rows, of the Gaussian that smooths the discrete series."""


class Stop(Section):
    """Goals that end the run after the recorded row that first meets one; it counts as done."""

    process: str | None = None
    """The process whose rows are checked; null: the first of `processes`."""
    loss_below: float | None = None
    """End when the training loss is this or less; null: never."""
    accuracy_above: Annotated[float, Gt(0), Le(1)] | None = None
    """End when this share of the training examples, or more, is classified right; null: never."""
    diverged_above: Annotated[float, Gt(1)] | None = None
    """A process whose training loss is this many times that of the first row, or more, has
    diverged and ends; the run ends with the process that is checked. null: 10,000 times (10 where
    the first loss is below 0.001), as a numerical stop; 1e300: never."""


class Record(Section):
    """What is written, and how often."""

    every: AtLeastOne = 1
    """Steps between rows."""
    exact: bool = False
    """Central flows look at every optimizer step, at most one at a time; otherwise eigenvalues,
    variances and indicators of rows between two looks are interpolated, which costs nothing."""
    weights_every: Count = 0
    """Steps between stored weights; 0: never."""
    raw_spectra: bool = True
    """The Hessian's own eigenvalues, too; with a preconditioner they cost products of their own."""
    coordinates: Count | tuple[Count, ...] = 0
    """Weights whose squared gradient and statistics are followed and predicted: indices into the
    flat weights, or a number of weights spread evenly."""
    examples: tuple[Count, ...] = ()
    """Training examples, by number, on which the network's outputs are followed and predicted."""
    preconditioners_every: Count = 0
    """Steps between comparisons of the optimizer's preconditioner with the stationary one, a
    multiple of `every`; 0: never."""
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Tools that are sent the numbers of every row, too."""


def _as_switch(value: Any) -> Any:
    """The text that YAML 1.1 takes for true or false, as PyYAML does."""
    return ("off", "on")[value] if isinstance(value, bool) else value


class MinibatchOptions(Section):
    """What discrete_minibatch sees of the data in a step, and what central flows know of it."""

    size: Count = 0
    """Examples in a mini-batch. 0: not used."""
    draw: Literal["epochs", "fresh"] = "epochs"
    """Whether an epoch has every example once, or every mini-batch is drawn from all of them."""
    seeds: AtLeastOne = 1
    """Optimizers that run side by side in discrete_minibatch, each with mini-batches of its own:
    more than one are recorded by mean and spread."""
    sharpness_every: Count = 0
    """Steps between measurements of batch sharpness, the mean curvature of an epoch's mini-batches
    along their own steps, a multiple of `record.every`; 0: never."""
    noise: Annotated[Literal["off", "on"], BeforeValidator(_as_switch)] = "off"
    """Central flows know the noise of mini-batches of this size; they step by Euler's method."""
    sample: Count = 0
    """Examples from which that noise is estimated; 0: all, for as much as a gradient of all for
    each direction and twice for each pair of them, and for statistics the gradient of each."""
    critical_above: Annotated[float, Gt(0), Le(2)] = 1.0
    """With noise, eigenvalues above this oscillate, in place of `flow.critical_above`; what noise
    does along the others is left out."""


class Memory(Section):
    """Trading time for memory."""

    microbatch: Count = 0
    """Examples at a time; 0: all at once."""
    hvp_chunk: Annotated[Literal["auto"] | Count, Allowed('"auto", or a number, 0 or more')] = (
        _DEFAULT.hvp_chunk
    )
    """Hessian-vector products at a time; 0: one by one on CPUs and where weights are split, else
    all; auto: what is quickest and fits, by a measurement before the first step."""
    remat: bool = False
    """Recompute activations in the backward pass."""


class Forward(Section):
    """In which precision networks are evaluated; weights, losses and sums keep `precision`."""

    precision: Evaluation = "highest"
    """Also of gradients and products; tensorfloat32: matrix products alone, on GPUs that have it;
    bfloat16: all of the network. Both need float32, and an `eigen.tol` within their reach."""
    third_derivatives: Evaluation = "highest"
    """The same of third derivatives."""


class Output(Section):
    """Where the run directory goes."""

    dir: Annotated[str, MinLen(1)] = "runs"
    """Folder of run directories, relative to the working directory."""


class Checkpoint(Section):
    """Checkpoints in the run directory, from which `resume` goes on."""

    every: Count | None = None
    """Steps between checkpoints; 0: only at the end; null: about every five minutes, and then."""
    keep: AtLeastOne = 2
    """Number of checkpoints kept, the newest."""


class Cluster(Section):
    """The processes of a run, by hand; each is started with an index of its own."""

    coordinator: Annotated[str, StringConstraints(pattern=r"^[^\s:]+:\d+$")]
    """Address of the first process, host:port."""
    processes: AtLeastOne
    """How many there are."""
    index: Count
    """Which of them this is, from 0."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> "Cluster":
        if self.index >= self.processes:
            raise PydanticCustomError("worded", "must have an index below the number of processes")
        return self


class Sweep(Section):
    """Several runs in one spec: its members, into `<output.dir>/<name>/<member>`.

    Each is the spec without this section, with some keys of its own. Keys are dotted names, such
    as `optimizer.lr`, or whole sections. With entries and a grid there is a member for each pair
    of an entry and a combination.
    """

    grid: Annotated[dict[str, _Values], MinLen(1), Allowed(_GRID)] = {}
    """Lists of values by dotted key; every combination is a member, named as in lr=0.1,seed=0."""
    list: Annotated[tuple[_Entry, ...], MinLen(1), Allowed(_ENTRIES)] = ()
    """One mapping of keys to values per member; `name` names it."""

    @model_validator(mode="after")
    def _has_members(self) -> "Sweep":
        if not self.grid and not self.list:
            raise PydanticCustomError("worded", "must have a grid or a list of members, or both")
        return self


class Spec(Section):
    """An experiment: everything that determines a run. Made by `load_spec` or `load_plan`."""

    name: Name
    """Name of the run directory."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    """Seed of the data split and of the initial weights."""
    precision: Literal["float32", "float64"] = "float32"
    """Type of weights and data."""
    data: Options | None = None
    model: Options | None = None
    loss: Options | None = None
    task: FunctionOptions | None = None
    """A loss of your own on a flat vector, in place of data, model and loss; null: those."""
    init: Init | None = None
    optimizer: Options
    processes: tuple[str, ...]
    """What is run side by side."""
    steps: AtLeastOne
    """Number of recorded optimizer steps."""
    warm_start: Count = 0
    """Discrete steps before the processes start."""
    eigen: Eigen = Eigen()
    flow: Flow = Flow()
    stop: Stop = Stop()
    record: Record = Record()
    memory: Memory = Memory()
    forward: Forward = Forward()
    minibatch: MinibatchOptions = MinibatchOptions()
    devices: Annotated[
        Literal["auto", "all"] | AtLeastOne | Annotated[tuple[str, ...], MinLen(1)],
        Allowed('"auto", "all", a number, or a list of kinds such as [gpu]'),
    ] = "auto"
    """What shares the work; auto: all accelerators, or one CPU; all; so many; or kinds."""
    shard: Literal["auto", "examples", "weights", "both"] = "auto"
    """What the devices share out: examples, or the weights and what is as long as they are, such as
    eigenvectors, or both; auto: examples, and weights only where eigenvectors would not fit."""
    distributed: Annotated[
        Literal["auto", "off"] | Cluster,
        Allowed('"auto", "off", or {coordinator: host:port, processes: N, index: 0 to N - 1}'),
    ] = "off"
    """Processes that share the run; auto: those that the scheduler (SLURM, MPI) has started."""
    output: Output = Output()
    sweep: Annotated[Sweep | None, Field(exclude=True)] = None
    """Several runs instead of one; null: one run."""
    checkpoint: Checkpoint = Checkpoint()

    _document: Node = PrivateAttr()

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return Path(self.output.dir) / self.name

    @property
    def own_names(self) -> list[str]:
        """Dotted names of the user's classes and functions."""
        sections = (getattr(self, section) for section in COMPONENTS)
        classes = [options.type for options in sections if isinstance(options, ClassOptions)]
        return classes if self.task is None else [*classes, self.task.function]

    def to_yaml(self) -> str:
        """The resolved spec: every default filled in, every path absolute."""
        return dump(self.model_dump(mode="json"))

    def problem(self, path: str, message: str) -> Problem:
        """`message` about the key `path` ("data.path"), with the file and line it stands on."""
        return problem_at(self._document, tuple(path.split(".")), message)

    def error(self, path: str, message: str) -> InputError:
        """To be raised when the key `path` turns out impossible after loading."""
        return InputError([self.problem(path, message)])


def problem_at(document: Node, path: tuple[str | int, ...], message: str) -> Problem:
    """`message` at the value of the key `path`, or at its nearest ancestor that was given."""
    node, found = document.find(path)
    return Problem(node.at if found else node.key_at, dotted(path), message)


def spec_model(chosen: Mapping[str, type[Section]] | None = None) -> type[Spec]:
    """`Spec` with the options of everything registered so far.

    `chosen` has, by section, the one model that a section is checked against. The models of all
    components take a second to derive. With a `task` there are no data, model and loss.
    """
    chosen = chosen or {}
    sections: dict[str, Any] = {
        section: chosen.get(section) or any_of(registry)
        for section, registry in COMPONENTS.items()
        if "task" not in chosen or section not in IN_PLACE_OF
    }
    if "task" in chosen:
        sections["task"] = chosen["task"]
        nothing = Annotated[None, Allowed("left out beside `task`")]
        sections |= dict.fromkeys((*IN_PLACE_OF, "init"), (nothing, None))
    names = PROCESSES.names()
    words = Allowed(f"one of {', '.join(names)} {_ONLY}")
    process: Any = Annotated[Literal[names], words]
    described = Spec.model_fields["processes"].description
    return derived(
        "Spec",
        Spec,
        Spec.__doc__,
        processes=Annotated[tuple[process, ...], MinLen(1), Field(description=described)],
        **sections,
    )


def json_schema() -> dict[str, Any]:
    """JSON schema of a spec file, for editors."""
    schema = spec_model().model_json_schema()
    schema["$defs"]["ClassOptions"] = ClassOptions.model_json_schema()
    for section, registry in COMPONENTS.items():
        if registry.base is not None:
            named, dotted_name = schema["properties"][section], {"$ref": "#/$defs/ClassOptions"}
            schema["properties"][section] = {"anyOf": [named, dotted_name]}
    others = [name for name in schema["required"] if name not in IN_PLACE_OF]
    schema["required"] = others
    schema["anyOf"] = [{"required": list(IN_PLACE_OF)}, {"required": ["task"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "centralflow_eqx spec",
    }
