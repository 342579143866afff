"""Specs that somebody, or something, has damaged: files, and `--set` flags."""

import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from centralflow_eqx.spec.document import parse

SPECS = Path(__file__).parents[1] / "specs"
PWNED = "pwned"
"""The file that code in specs and data files would leave in the working directory."""

# Together these use every section, and components of every kind.
RICH = (
    """\
name: everything
seed: 3
precision: float64
data: {type: npz, path: data.npz, inputs: inputs, labels: labels, test_fraction: 0.25}
model: {type: mlp, widths: [3, 2], activation: tanh, output_scale: 2, bias: true, init: mup}
loss: {type: cross_entropy}
init: {path: data.npz, key: weights}
optimizer: {type: adamw, lr: {schedule: cosine_decay, init_value: 0.1, decay_steps: 9}, beta1: 0.8}
processes: [discrete, midpoint, stable, central, stationary, ablated, discrete_minibatch]
steps: 12
warm_start: 2
eigen: {track_above: 1.5, initial: 2, tol: 1e-4}
flow: {method: midstep, tol: 1e-3, max_step: 1, substeps: 4, critical_above: 1.95, smoothing: 5}
stop: {process: discrete, loss_below: 0.01, accuracy_above: 0.9, diverged_above: 10}
record: {every: 2, exact: true, weights_every: 4, coordinates: [0, 3], examples: [1, 2],
  preconditioners_every: 4, raw_spectra: false}
memory: {microbatch: 4, hvp_chunk: 1, remat: true}
minibatch: {size: 4, draw: fresh, seeds: 2, sharpness_every: 2, noise: off, sample: 8,
  critical_above: 1.0}
devices: auto
distributed: off
output: {dir: results/here}
checkpoint: {every: 0, keep: 2}
""",
    """\
name: functions
task: {function: mine.loss, start: [1.6, 0.3], args: {scale: 2.0}, folder: null}
optimizer:
  type: mine.Signed
  args: {lr: 0.1, power: 1.0, table: {a: 1.0}, nested: [1, [2, 3]]}
  folder: .
processes: [discrete, central]
steps: 5
""",
    """\
name: members
data: {type: moons, n: 20, noise: 0.2}
model: {type: mlp, widths: [3]}
loss: {type: mse}
optimizer: {type: gd, lr: 0.1, <<: {weight_decay: 0.01}}
processes: [discrete]
steps: 5
sweep:
  grid: {model.output_scale: [1, 0.5], model.activation: [tanh, gelu]}
  list:
    - {name: plain, seed: 1}
    - {name: own, optimizer: {type: mine.Signed, args: {lr: 0.1, power: 2}}, steps: 6}
""",
    """\
name: of_optax
data: {type: sst2, path: reviews.tsv, n: 4, test_n: 2, length: 5, vocabulary: 9}
model: {type: transformer, dim: 4, depth: 1, heads: 2, mlp_dim: 4, positions: sinusoidal}
loss: {type: mse}
optimizer:
  type: optax
  name: nadamw
  args: {learning_rate: {schedule: linear, init_value: 0.1, end_value: 0.01, transition_steps: 9}}
processes: [discrete]
steps: 5
sweep: {grid: {optimizer.args.b1: [0.8, 0.9]}}
""",
)

MINE = """\
import equinox as eqx
import jax
import jax.numpy as jnp

from centralflow_eqx.optimizers import AbstractOptimizer, LearningRate

open("imported", "w").close()


class Signed(AbstractOptimizer):
    lr: LearningRate
    power: float
    table: dict[str, float] = eqx.field(default_factory=dict)
    nested: list[int | list[int]] = eqx.field(default_factory=list)

    def init(self, params):
        return ()

    def update(self, grad, state, params):
        return jax.tree.map(lambda g: -self.lr(0) * g * abs(g) ** self.power, grad), state


def loss(w, scale=1.0, note=""):
    return scale * jnp.sum(jnp.cos(w)) + jnp.sum(w**2)
"""


def _pool(text: str) -> tuple[str, ...]:
    """What stands between line breaks or several spaces."""
    return tuple(re.split(r"\n|  +", text.strip()))


NUMBERS = (
    *_pool(
        """
0  -1  1  2  3  7  0.5  -0.0  1e-320  1e308  -1e308  1e999  1e-3  .nan  .inf  -.inf  +3  1_000
4294967296  2147483648  9223372036854775808  1000000000  1000000000000  -1000000000000000000
0o777  010  0b11  1:30  1e5
"""
    ),
    *("1" + 400 * "0", "1" + 5000 * "0", "0x" + 400 * "f", "0x" + 5000 * "f"),
)
TEXTS = (
    *_pool(
        r"""
null  ~  true  False  yes  off  ''  ' '  x  2024-01-01  a b  "a\nb"  "\0"  "a\0b"  "\e[31mred"
"\uD800"  "\UFFFFFFFF"  "\x07"  "\u202eabc"  é  日本語  '💥'  '%{x}'  '{{x}}'  'a\b'  C:x  a/b  x.1
../../up  /  /dev/null  /etc/passwd  ~  '~nobody-has-this-name/x'  .  ..  -  data.npz  reviews.tsv
mine.py  pickled.npz  pickled  mine.Signed  mine.loss  mine.Nothing  mine  min.Signed  mine..x
.mine  mine.  "mine.Signed\n"  日本.語  a.b.c.d  os.system  builtins.exec  builtins.max  math.hypot
pickle.loads  numpy.load  numpy.dot  operator.itemgetter  subprocess.Popen  optax.adam  __loader__
contrib.__loader__  adam.__globals__  contrib.x.__class__  __import__  adam  contrib.muon  sgd
losses.l2_loss  chain  inject_hyperparams  gd  optax  mlp  cnn  vit  lstm  mamba  digits  copying
npz  mse  classification  circles  chebyshev  cross_entropy  central  discrete
"""
    ),
    *("'" + 100_000 * "x" + "'", "'" + 300 * "é" + "'"),
)
MAPPINGS = _pool(
    r"""
{}  []  [[]]  [null]  [x]  [1, 2, 3]  [1, [2]]  {a: 1}  {type: null}  {type: gd, lr: 1}  {type: gd}
{type: os.system}  {type: mine.Nothing, args: 3}  {type: mine.Signed, args: {lr: 1, power: .nan}}
{type: mine.Signed, args: {lr: 1, power: 1}, folder: '~nobody-has-this-name'}
{type: mine.Signed, args: {lr: 1, power: 1}, folder: "\0"}
{schedule: __loader__}  {schedule: cosine_decay}  {schedule: constant, value: .inf}  {schedule: [x]}
{schedule: piecewise_constant}  {schedule: constant, value: 1}
{schedule: linear, init_value: 1e308, end_value: 0, transition_steps: 1000000000000000000}
{schedule: piecewise_constant, init_value: 1, boundaries_and_scales: {x: 1}}
{schedule: polynomial, init_value: 1, end_value: 0, power: -9, transition_steps: 3}
{type: optax, name: __loader__}  {type: optax, name: contrib.x.__class__}
{type: optax, name: [adam]}  {type: optax, name: adam, args: {learning_rate: [1]}}
{type: optax, name: sgd, args: {learning_rate: .nan, momentum: x}}
{type: optax, name: scale_by_adam, args: {mu_dtype: !!python/name:os.system ''}}
{type: optax, name: adam, args: {mu_dtype: nothing, learning_rate: 1}}
{type: cifar10, path: .}  {type: cifar10, path: pickled}  {type: npz, path: pickled.npz}
{type: npz, path: data.npz, inputs: "a\nb"}  {type: npz, path: reviews.tsv}
{type: copying, n: 1000000000}  {type: copying, length: 1000000000}  {type: moons, n: 1000000000}
{type: sorting, vocabulary: 1000000000000000000000}  {type: chebyshev, degree: 1000000000}
{type: classification, n: 100, features: 100000, informative: 100000}
{type: sst2, path: reviews.tsv, n: 4, length: 1000000000000}  {type: chebyshev, n: 1000000000}
{type: mlp, widths: [1000000000, 1000000000000]}  {type: cnn, depth: 1000000000}
{type: transformer, depth: 100000000}  {type: mamba, conv_width: 1000000000}
{function: mine.loss, start: []}  {function: mine.loss, start: [.nan]}
{function: os.system, start: [1]}  {function: builtins.exec, start: [1]}
{function: mine.loss, start: [1], args: {w: 1}}  {function: mine.loss, start: [x]}
{grid: {optimizer.lr: [1, 2]}}  {grid: {'../x': [1]}}  {grid: {seed: ['../../up']}}  {grid: {}}
{list: [{name: ../../up}]}  {list: [{name: '..'}, {name: /tmp/up}]}  {list: [{}]}
{list: [{name: "a\n", seed: 1}]}  {list: [{output: {dir: /tmp}}]}  {grid: {optimizer: [gd, sgd]}}
{list: [{name: figures, seed: 1}, {name: a.html}]}  {grid: {name: [a, b]}}
{grid: {seed: [1, 2], seed.x: [1]}}  {grid: {sweep.grid: [1]}}
{list: [{optimizer.type: os.system}, {task.function: os.system}]}
{list: [{optimizer: {type: mine.Signed, args: {lr: 1, power: 1}}}]}
"""
)
HOSTILE = (
    *_pool(
        """
!!python/object/apply:os.system ['touch pwned']  !!python/name:os.system ''
!!python/object/apply:subprocess.check_call [[touch, pwned]]
!!python/object/new:exec ['open("pwned", "w")']  !!python/module:os ''
!!binary aGVsbG8=  !!set {a, b}  !!omap [a: 1]  !!timestamp 2024-01-01  !!int many  !!bool maybe
!!null 3  !!float one  !local x  !<tag:x:map> {a: 1}  *missing  &a [*a]  &a {b: *a}
{<<: {a: 1}}  {<<: 3}  {<<: [{a: 1}, 4]}  {? [a] : b}  {a: 1, a: 2}  [&x [1, 2], *x, *x]
"""
    ),
    *("[" * 60 + "]" * 60, "[" * 250 + "]" * 250),
    *("{a: " * depth + "1" + "}" * depth for depth in (90, 4000)),
    "{<<: " * 200 + "{a: 1}" + "}" * 200,
    # Aliases that stand for 10, 100, ..., 10^7 values.
    "[&a0 [1], "
    + ", ".join(f"&a{i} [{', '.join(10 * [f'*a{i - 1}'])}]" for i in range(1, 8))
    + "]",
)
VALUES = NUMBERS + TEXTS + MAPPINGS + HOSTILE
KEYS = (
    *_pool(
        r"""
type  name  Name  lr  seeds  __class__  <<  a.b  optimizer.lr  é  path  args  null  1  sweep  task
data  ~  [x]  {  model_config  component  stop  folder
"""
    ),
    *("x" * 5000, "", "a\nb", "a\x00", "\u202e", " "),
)
FLAGS = ("", "=", "==", "a", "a.=1", ".=1", "a..b=1", "sweep.grid.=[1]", "steps", " = ", "\x00=1")
# Whole files, and what is put somewhere into one.
_FILES = _pool(r"""#  -  - a  3  ---  ...  ?  :  &a  *a  |  >  '  "  [  {  !!map  %TAG ! x""")
_SPLICES = _pool(r"""# x  &a  *a  !!str  !x  <<:  ?  -  |  >  %  @  `  :  {  }  [  ]  '  "  !<""")
_CHARACTERS = "\t\r\n\x00\x1b\x7f\x85\u2028\ufeff\u202e💥"


class Raw(str):
    """A value as YAML text."""


@dataclass(frozen=True)
class Mutant:
    """What a file holds, and what the command line adds to it."""

    content: bytes
    settings: tuple[str, ...]
    user_code: bool


def bases() -> list[str]:
    """All specs that the package comes with, and those above."""
    return [*RICH, *(path.read_text() for path in sorted(SPECS.rglob("*.yaml")))]


def mutants(seed: int, number: int) -> list[Mutant]:
    """The first `number` mutants of a seed; every second one is to be read without user code."""
    rng, texts = random.Random(seed), bases()
    rich = len(RICH)
    found = []
    for i in range(number):
        # A rich one is as likely as any of the others.
        text = texts[rng.randrange(rich)] if rng.random() < 0.4 else rng.choice(texts[rich:])
        found.append(_mutant(rng, text, user_code=i % 2 == 0))
    return found


def _mutant(rng: random.Random, text: str, user_code: bool) -> Mutant:
    kind, settings = rng.random(), ()
    tree = parse(text, "")[0].plain()
    if kind < 0.65:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _damage(rng, tree)
        text = _written(tree)
    if 0.55 < kind < 0.8:
        settings = tuple(_setting(rng, tree) for _ in range(rng.choice((1, 1, 2))))
    content = text.encode()
    return Mutant(_garbled(rng, content) if kind > 0.8 else content, settings, user_code)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every mapping or list in here, with each of its keys or indices."""
    if isinstance(tree, dict):
        children = list(tree.items())
    elif isinstance(tree, list):
        children = list(enumerate(tree))
    else:
        return []
    return [place for key, child in children for place in ((tree, key), *_places(child))]


def _damage(rng: random.Random, tree: dict[str, Any]) -> None:
    places = _places(tree)
    if not places:
        return
    parent, key = rng.choice(places)
    kinds = ("other", "other", "value", "value", "value", "drop", "name", "twice", "nest", "swap")
    match rng.choice(kinds):
        case "other":
            parent[key] = _other(rng, parent[key])
        case "value":
            parent[key] = Raw(rng.choice(_pool_for(rng, parent[key])))
        case "drop":
            del parent[key]
        case "name" if isinstance(parent, dict):
            parent[rng.choice(KEYS)] = parent.pop(key)
        case "twice" if isinstance(parent, dict):
            parent[Raw(f"{key}")] = Raw(rng.choice(VALUES))
        case "nest":
            parent[key] = rng.choice(([parent[key]], {key: parent[key]}, {"type": parent[key]}))
        case _:
            other, its = rng.choice(places)
            if isinstance(other, dict) or its < len(other):
                parent[key], other[its] = other[its], parent[key]


def _other(rng: random.Random, value: Any) -> Any:
    """A value that may well be as good."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(0, value + rng.choice((-2, -1, 1, 2)))
    if isinstance(value, float):
        return value * rng.choice((0.1, 0.9, 1.1, 2))
    if isinstance(value, list):
        return value[1:] or value
    if isinstance(value, dict):
        return dict(sorted(value.items()))
    return value


def _pool_for(rng: random.Random, value: Any) -> tuple[str, ...]:
    """As often as not values of the same kind, which more than the first checks have to refuse."""
    if rng.random() < 0.5:
        return rng.choice((NUMBERS, TEXTS, MAPPINGS, HOSTILE))
    if isinstance(value, str):
        return TEXTS
    return NUMBERS if isinstance(value, int | float) else MAPPINGS


def _written(value: Any, top: bool = True) -> str:
    """YAML with a line for each key at the top, and what is `Raw` as it is."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict) and top:
        return "".join(f"{_key(k)}: {_written(v, False)}\n" for k, v in value.items())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)}: {_written(v, False)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(v, False) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(key: Any) -> str:
    if isinstance(key, Raw) or key == "<<":
        return str(key)
    return json.dumps(str(key), ensure_ascii=False)


def _setting(rng: random.Random, tree: dict[str, Any]) -> str:
    if rng.random() < 0.1:
        return rng.choice(FLAGS)
    path = rng.choice(list(_paths(tree)) or ["steps"])
    if rng.random() < 0.2:
        path = f"{path}.{rng.choice(KEYS)}"
    return f"{path}={rng.choice(VALUES)}"


def _paths(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return []
    return [
        path
        for key, child in tree.items()
        for path in (f"{prefix}{key}", *_paths(child, f"{prefix}{key}."))
    ]


def _garbled(rng: random.Random, content: bytes) -> bytes:
    """The bytes as an editor, a disk or a download may leave them."""
    at, damaged = rng.randrange(len(content)), bytearray(content)
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    match rng.randrange(14):
        case 0:
            return content[:at]
        case 1:
            for _ in range(rng.choice((1, 3, 20))):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            return bytes(damaged)
        case 2:
            return content[:at] + rng.randbytes(rng.choice((1, 4, 40))) + content[at:]
        case 3:
            return b"\xef\xbb\xbf" + content
        case 4:
            return content.decode().encode(rng.choice(("utf-16", "utf-32-le", "utf-16-be")))
        case 5:
            return b"".join(lines[:number] + lines[number:][:1] + lines[number:])
        case 6:
            return b"".join(lines[:number] + lines[number + 1 :])
        case 7:
            return b"".join(lines[:number] + [b"\t" + line for line in lines[number:]])
        case 8:
            return b"".join(lines[:number] + [b"  " + lines[number]] + lines[number + 1 :])
        case 9:
            return content.replace(rng.choice((b": ", b"\n", b" ", b"{", b"}", b",")), b"", 1)
        case 10:
            return rng.choice((b"", b" ", b"\n", b"\x00", b"\xff", *map(str.encode, _FILES)))
        case 11:
            splice = rng.choice((rng.choice(_SPLICES) + " ", rng.choice(_CHARACTERS), "\n---\n"))
            return content[:at] + splice.encode() + content[at:]
        case 12:
            return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\xc2\x85", b"\n---\n")))
        case _:
            return content[:at] + content[at : at + 40] * rng.choice((2, 50)) + content[at:]


def surroundings(folder: Path) -> None:
    """The files that specs name, where mutants in `folder` find them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 12)
    arrays = {"inputs": rng.normal(size=(12, 4)), "labels": labels, "weights": np.zeros(26)}
    np.savez(folder / "data.npz", **arrays)
    np.savez(folder / "pickled.npz", inputs=np.array([_Boom()]), labels=np.array([0]))
    (folder / "pickled").write_bytes(_PICKLE)
    rows = "".join(f"word{i} and word{i % 3}\t{i % 2}\n" for i in range(9))
    (folder / "reviews.tsv").write_text(f"sentence\tlabel\n{rows}")
    (folder / "mine.py").write_text(MINE)
    there = folder.parent.parent / "data"
    there.mkdir(exist_ok=True)
    (there / "cifar-10-binary.tar.gz").write_bytes(_few_images())


class _Boom:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return open, (PWNED, "w")


_PICKLE = b"\x80\x04c__builtin__\nopen\n(X\x05\x00\x00\x00pwnedX\x01\x00\x00\x00wtR."


def _few_images() -> bytes:
    """Noise for CIFAR-10, in the form of an npz file, which takes little time to read."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    pixels = rng.integers(0, 256, (1100, 3, 32, 32), np.uint8)
    np.savez(file, x_train=pixels, y_train=np.arange(1100) % 4)
    return file.getvalue()
