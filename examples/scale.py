"""Simulate conversions of 70B and 405B with 1 to 1,024 workers, to see where more workers stop paying.

The scheduler and its limits are the real ones, the chunks are those of the real plans. Modelled are the
storage (a bandwidth that all share, a limit for each node), slow nodes, lost and hung ones, storage that
stands still and a driver that is held up. A worker speaks when what it wrote is durable. No clock and no
threads: the same numbers every time. Run it as ``python examples/scale.py``; it prints two tables and draws
``scale.png``.
"""

import heapq
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distconv.families.translate import Decisions
from distconv.formats.meta.shards import default_part_bytes
from distconv.formats.safetensors.chunks import default_chunk_bytes, group_tensors
from distconv.layout.dtypes import BFLOAT16, contiguous_strides
from distconv.layout.files import OutputTensor
from distconv.layout.regions import Region
from distconv.layout.stripes import group_runs
from distconv.layout.tensors import view_tensor
from distconv.layout.units import find_chains, find_order
from distconv.moving.executor import TICK_SECONDS, make_limits
from distconv.moving.scheduler import Action, Assign, Finish, GiveUp, Replace, Scheduler
from distconv.planning.plan import make_plan
from distconv.storage.local_files import FLUSH_BYTES

GB = 1e9
WORKERS = tuple(2**power for power in range(11))


@dataclass(frozen=True, slots=True)
class Pause:
    """From when, for how long; in seconds."""

    begin: float = 0.0
    length: float = 0.0

    @property
    def end(self) -> float:
        """When it is over."""
        return self.begin + self.length

    def holds(self, seconds: float) -> bool:
        """Whether it is on."""
        return self.begin <= seconds < self.end


@dataclass(frozen=True, slots=True)
class Cluster:
    """What bytes can move through; rates in GB/s, reading and writing together."""

    shared: float = 80.0
    """Of the storage, for everybody together."""
    node: float = 5.0
    """Of each node, with one worker on it."""
    slow_share: float = 0.0
    """How many of the nodes reach only ``slow_factor`` of a node's rate."""
    slow_factor: float = 0.25
    lost_share: float = 0.0
    """How many of the nodes die, at moments spread over the run."""
    detect_seconds: float = 9.0
    """From the death of a node to the driver's hearing of it, with Ray's health checks set short."""
    boot_seconds: float = 60.0
    """From a loss to another node's first request."""
    hung_share: float = 0.0
    """How many of the nodes stop without a word, at moments spread over the run."""
    storage_stands: Pause = field(default_factory=Pause)
    driver_stands: Pause = field(default_factory=Pause)
    flush_bytes: float = FLUSH_BYTES
    """How much of a chunk a worker writes before it makes that durable, and speaks."""

    def rates(self, workers: int) -> list[float]:
        """Give each node's rate, the slow ones first."""
        slow = round(workers * self.slow_share)
        return [self.node * self.slow_factor] * slow + [self.node] * (workers - slow)


@dataclass(slots=True)
class Node:
    """One worker: its rate, its unit in bytes moved, and its last word."""

    rate: float
    unit: str | None = None
    whole: float = 0.0
    left: float = 0.0
    dead: bool = False
    flushes: int = 0
    spoke_at: float = 0.0

    def speaks(self, flush_bytes: float) -> bool:
        """Whether more of its unit is durable than it has told of; each byte is read and written."""
        flushes = int((self.whole - self.left) // (2 * flush_bytes))
        told, self.flushes = self.flushes, flushes
        return self.unit is not None and not self.dead and flushes > told


@dataclass(slots=True)
class Simulation:
    """One run; ``seconds`` is the moment at which the last chunk was done."""

    sizes_bytes: dict[str, int]
    workers: int
    cluster: Cluster
    after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Units that only read what others wrote, and these."""
    follows: Mapping[str, str] = field(default_factory=dict)
    """Units that go on in a file where others end."""
    seconds: float = 0.0
    moved_bytes: float = 0.0
    lost: int = 0
    """Workers that the scheduler had replaced."""
    longest_silence: float = 0.0
    """In seconds, of those that spoke again."""
    _nodes: dict[int, Node] = field(default_factory=dict)
    _events: list[tuple[float, int, str, int]] = field(default_factory=list)
    _unheard: list[tuple[str, int]] = field(default_factory=list)
    _seen: dict[str, int] = field(default_factory=dict)
    """Parts of files, and who has seen their files from the first byte to their last one."""
    _finished: bool = False
    _number: int = 0

    def run(self) -> "Simulation":
        """Go from event to event until the scheduler says that all is done."""
        chance = random.Random(self.workers)
        limits = make_limits(self.workers)
        scheduler = Scheduler(self.sizes_bytes, limits, 0.0, self.after, self.follows)
        for rate in self.cluster.rates(self.workers):
            self._at(0.0, "up", self._start(rate))
        expected = self.bound()
        for share, event in ((self.cluster.lost_share, "dies"), (self.cluster.hung_share, "hangs")):
            for number in chance.sample(range(1, self.workers + 1), round(self.workers * share)):
                self._at(chance.uniform(0.05, 0.9) * expected, event, number)
        for pause in (self.cluster.storage_stands, self.cluster.driver_stands):
            # What holds in a pause is looked at anew when it begins and when it ends.
            for moment in (pause.begin, pause.end) if pause.length else ():
                self._at(moment, "pause", 0)
        self._carry_out(scheduler.tick(0.0))
        self._at(TICK_SECONDS, "tick", 0)
        while not self._finished:
            self._advance(scheduler)
        return self

    def bound(self) -> float:
        """Give the seconds below which nothing can get, no node being lost."""
        return max(self.limits().values())

    def limits(self) -> dict[str, float]:
        """Give the seconds that the nodes' links, the storage and the largest chunk take by themselves."""
        rates = self.cluster.rates(self.workers)
        moved = [size for unit, size in self.sizes_bytes.items() if unit not in self.after]
        total = 2 * sum(moved) / GB
        return {
            "work": total / sum(rates),
            "storage": total / self.cluster.shared,
            "largest chunk": 2 * max(moved) / GB / min(max(rates), self.cluster.shared),
        }

    def whole_chunks_bound(self) -> float:
        """Give the seconds below which no schedule can get that has every chunk written by one node, none lost.

        For each n the n largest chunks must end somewhere, and take no less than n chunks of the size
        of the smallest of them.
        """
        sizes = sorted(self.sizes_bytes.values(), reverse=True)
        rates = self.cluster.rates(self.workers)
        ends = sorted(number / rate for rate in rates for number in range(1, len(sizes) + 1))
        return max(self.bound(), *(2 * size / GB * end for size, end in zip(sizes, ends, strict=False)))

    def _start(self, rate: float) -> int:
        self._number += 1
        self._nodes[self._number] = Node(rate * GB)
        return self._number

    def _at(self, seconds: float, event: str, node: int) -> None:
        heapq.heappush(self._events, (seconds, len(self._events), event, node))

    def _advance(self, scheduler: Scheduler) -> None:
        """Move bytes up to the next event or the next finished unit, whichever is first."""
        rates = self._share_out()
        ends = {number: self._nodes[number].left / rate for number, rate in rates.items() if rate}
        first = min(ends, key=lambda number: ends[number], default=None)
        until_end = math.inf if first is None else ends[first]
        until_event = self._events[0][0] - self.seconds if self._events else math.inf
        step = min(until_end, until_event)
        for number, rate in rates.items():
            self._nodes[number].left -= rate * step
            self.moved_bytes += rate * step
        self.seconds += step
        if until_end <= until_event and first is not None:
            self._nodes[first].unit = None
            self._tell(scheduler, "done", first)
            return
        _seconds, _order, event, number = heapq.heappop(self._events)
        self._happen(scheduler, event, number)

    def _happen(self, scheduler: Scheduler, event: str, number: int) -> None:
        if event == "tick":
            self._turn(scheduler)
        elif event in {"dies", "hangs"} and number in self._nodes:
            self._nodes[number].dead = True
            if event == "dies":
                self._at(self.seconds + self.cluster.detect_seconds, "lost", number)
        elif event in {"up", "lost"}:
            self._tell(scheduler, event, number)

    def _turn(self, scheduler: Scheduler) -> None:
        """Let the driver hear what was said, and tick; while it stands it does so as soon as it goes on."""
        pause = self.cluster.driver_stands
        if pause.holds(self.seconds):
            self._at(pause.end, "tick", 0)
            return
        unheard, self._unheard = self._unheard, []
        for event, number in unheard:
            self._tell(scheduler, event, number)
        for number, node in tuple(self._nodes.items()):
            if node.speaks(self.cluster.flush_bytes):
                self._tell(scheduler, "progress", number)
        self._carry_out(scheduler.tick(self.seconds))
        self._at(self.seconds + TICK_SECONDS, "tick", 0)

    def _tell(self, scheduler: Scheduler, event: str, number: int) -> None:
        """Tell the scheduler of an event, once the driver hears it."""
        if self.cluster.driver_stands.holds(self.seconds):
            self._unheard.append((event, number))
        elif event == "up":
            self._carry_out(scheduler.idle(number, self.seconds))
        elif event == "lost":
            self._carry_out(scheduler.lost(number, "node lost", self.seconds))
        elif number in self._nodes:
            node = self._nodes[number]
            self.longest_silence = max(self.longest_silence, self.seconds - node.spoke_at)
            node.spoke_at = self.seconds
            tell = scheduler.done if event == "done" else scheduler.progress
            self._carry_out(tell(number, self.seconds))

    def _share_out(self) -> dict[int, float]:
        """Share the storage fairly: nobody gets more than its node takes, the rest is split again."""
        busy = sorted(
            (number for number, node in self._nodes.items() if node.unit is not None and not node.dead),
            key=lambda number: self._nodes[number].rate,
        )
        left = 0.0 if self.cluster.storage_stands.holds(self.seconds) else self.cluster.shared * GB
        rates = {}
        for place, number in enumerate(busy):
            rates[number] = min(self._nodes[number].rate, left / (len(busy) - place))
            left -= rates[number]
        return rates

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Assign(worker, unit):
                    node = self._nodes[worker]
                    node.unit, node.flushes, node.spoke_at = unit, 0, self.seconds
                    node.whole = node.left = self._find_work(unit, worker)
                case Replace(worker):
                    self.lost += 1
                    del self._nodes[worker]
                    self._at(self.seconds + self.cluster.boot_seconds, "up", self._start(self.cluster.node))
                case GiveUp(error):
                    raise error
                case Finish():
                    self._finished = True

    def _find_work(self, unit: str, worker: int) -> float:
        """Give what a unit reads and writes, in bytes; digests read what their worker has not seen."""
        before = self.follows.get(unit)
        if unit not in self.after:
            if before is None or self._seen.get(before) == worker:
                self._seen[unit] = worker
            return 2.0 * self.sizes_bytes[unit]
        left = 0.0
        while before is not None and self._seen.get(before) != worker:
            left += self.sizes_bytes[before]
            before = self.follows.get(before)
        return left


def tensor_sizes(dim: int, layers: int, ffn: int, kv_heads: int, head_dim: int, vocab: int) -> dict[str, int]:
    """Give the sizes of a bf16 model's tensors, in bytes."""
    sizes = {
        "model.embed_tokens.weight": vocab * dim,
        "lm_head.weight": vocab * dim,
        "model.norm.weight": dim,
    }
    for layer in range(layers):
        here = f"model.layers.{layer}."
        sizes |= {here + f"self_attn.{name}_proj.weight": dim * dim for name in "qo"}
        sizes |= {here + f"self_attn.{name}_proj.weight": kv_heads * head_dim * dim for name in "kv"}
        sizes |= {here + f"mlp.{name}_proj.weight": ffn * dim for name in ("gate", "up", "down")}
        sizes |= {here + name: dim for name in ("input_layernorm.weight", "post_attention_layernorm.weight")}
    return {name: 2 * elements for name, elements in sizes.items()}


def group_chunks(sizes: dict[str, int]) -> dict[str, int]:
    """Give the sizes of a plan's chunks, grouped as the planner groups them."""
    groups = group_tensors(sizes, default_chunk_bytes(sum(sizes.values())))
    return {f"chunk{number}": sum(sizes[name] for name in group) for number, group in enumerate(groups)}


def group_stripes(sizes: dict[str, int]) -> dict[str, int]:
    """Give the sizes of the stripes in which Meta's shards are written, however many, in the order of their tensors."""
    limit, ordered = default_part_bytes(sum(sizes.values())), list(sizes.values())
    runs = group_runs(ordered, limit)
    return {f"stripe{number}": sum(ordered[run.start : run.stop]) for number, run in enumerate(runs)}


_70B = tensor_sizes(8192, 80, 28672, 8, 128, 32000)
_405B = tensor_sizes(16384, 126, 53248, 8, 128, 128256)
MODELS = {
    "70B": group_chunks(_70B),
    "405B": group_chunks(_405B),
    "70B to 1": group_stripes(_70B),
    "405B to 8": group_stripes(_405B),
}
"""To Transformers; and to Meta's layout, in stripes of all its shards."""
CLUSTERS = {
    "even": Cluster(),
    "storage of 1 TB/s": Cluster(shared=1000.0),
    "one node in 8 slow": Cluster(slow_share=0.125),
    "one node in 32 lost": Cluster(lost_share=1 / 32),
}
TROUBLES = (
    ("405B", "storage of 1 GB/s", 191, Cluster(shared=1.0)),
    ("70B", "storage of 0.2 GB/s", 81, Cluster(shared=0.2)),
    ("405B", "storage of 0.2 GB/s", 191, Cluster(shared=0.2)),
    ("405B", "1 GB/s, stands for 30 min", 191, Cluster(shared=1.0, storage_stands=Pause(500, 1800))),
    ("405B", "driver held up for 11 min", 64, Cluster(driver_stands=Pause(5, 660))),
    ("405B", "1 GB/s, held up for 11 min", 191, Cluster(shared=1.0, driver_stands=Pause(500, 660))),
    ("405B", "one node in 32 hangs", 64, Cluster(hung_share=1 / 32)),
    ("405B", "1 GB/s, 1 in 32 hangs", 191, Cluster(shared=1.0, hung_share=1 / 32)),
)
"""What may look like dead workers: model, name, workers, cluster. Only those that hang are to be replaced."""


def list_maverick() -> Iterator[OutputTensor]:
    """Give the tensors of Llama 4 Maverick's text model, with 128 experts in every other layer."""
    dim, ffn, keys, vocab, experts = 5120, 8192, 1024, 202_048, 128
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, dim), "lm_head.weight": (vocab, dim), "model.norm.weight": (dim,),
    }  # fmt: skip
    for layer in range(48):
        here = f"model.layers.{layer}."
        shapes |= {f"{here}self_attn.{name}_proj.weight": (dim, dim) for name in "qo"}
        shapes |= {f"{here}self_attn.{name}_proj.weight": (keys, dim) for name in "kv"}
        shapes |= {
            here + name: (dim,) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
        }
        ours, rows = (
            (f"{here}feed_forward.shared_expert.", ffn) if layer % 2 else (f"{here}feed_forward.", 2 * ffn)
        )
        shapes |= {f"{ours}{name}_proj.weight": (rows, dim) for name in ("gate", "up", "down")}
        if layer % 2:
            shapes[f"{here}feed_forward.router.weight"] = (experts, dim)
            shapes[f"{here}feed_forward.experts.gate_up_proj"] = (experts, dim, 2 * ffn)
            shapes[f"{here}feed_forward.experts.down_proj"] = (experts, ffn, dim)
    for name, shape in shapes.items():
        region = Region(name, 0, 2 * math.prod(shape), 0, zipped=False)
        whole = view_tensor(name, BFLOAT16, region, 0, shape, contiguous_strides(shape))
        yield OutputTensor(name, name, shape, BFLOAT16, BFLOAT16, whole.copies)


def run_maverick(workers: Iterable[int] = WORKERS) -> Iterator[tuple[str, Simulation, Simulation]]:
    """Run Maverick on even clusters with every chunk as one unit, and as it is: large ones in parts."""
    plan = make_plan(tuple(list_maverick()), Decisions(tied=False, kv_replication=1))
    units = plan.list_units()
    all_units = (*units, *plan.list_checksums(units, md5s=False))
    whole = {file.name: file.size_bytes for file in plan.files}
    parts = {unit.name: unit.size_bytes for unit in all_units}
    after, follows = find_order(all_units), find_chains(all_units)
    for name in ("even", "storage of 1 TB/s"):
        for number in workers:
            cluster = CLUSTERS[name]
            yield (
                name,
                Simulation(whole, number, cluster).run(),
                Simulation(parts, number, cluster, after, follows).run(),
            )


def print_maverick(rows: Iterable[tuple[str, Simulation, Simulation]]) -> None:
    """Print seconds of both, and what is read once more of chunks in parts."""
    print(
        f"{'cluster':<20}{'workers':>8}{'whole chunks':>14}{'in parts':>10}{'bound':>8}{'read again, GB':>16}"
    )
    for name, whole, parts in rows:
        again = max(0.0, parts.moved_bytes - whole.moved_bytes) / GB
        print(
            f"{name:<20}{parts.workers:>8}{whole.seconds:>14.1f}{parts.seconds:>10.1f}{parts.bound():>8.1f}{again:>16.1f}"
        )


Row = tuple[str, str, Simulation]


def tabulate(workers: Callable[[int], Iterable[int]] = lambda _chunks: WORKERS) -> Iterator[Row]:
    """Run every model on every cluster with the numbers of workers that are wanted for so many chunks."""
    for model, sizes in MODELS.items():
        for name, cluster in CLUSTERS.items():
            for number in workers(len(sizes)):
                yield model, name, Simulation(sizes, number, cluster).run()


def with_8_chunks_each(chunks: int) -> Iterable[int]:
    """Give every number of workers that has at least 8 chunks a worker."""
    return range(1, chunks // 8 + 1)


def main() -> None:
    """Print the table and draw the picture."""
    rows = list(tabulate())
    print_rows(rows)
    many = list(tabulate(with_8_chunks_each))
    above = [row for row in many if row[2].seconds > 1.05 * row[2].bound()]
    print(f"\nAll {len(many)} runs with at least 8 chunks a worker are within 1.05, but for")
    print_rows(above)
    print("\nWorkers that say nothing: only those that hang are lost")
    print_troubles(run_troubles())
    print("\nMaverick, of whose chunks 48 are of 10.7 and 21.5 GB")
    print_maverick(run_maverick())
    draw(rows, sys.argv[1] if len(sys.argv) > 1 else "scale.png")


def print_rows(rows: Iterable[Row]) -> None:
    """Print seconds beside the two bounds."""
    print(
        f"{'model':<10}{'cluster':<20}{'workers':>8}{'chunks each':>12}{'seconds':>9}"
        f"{'bound':>8}{'ratio':>7}{'whole chunks':>14}{'ratio':>7}  limited by"
    )
    for model, name, done in rows:
        limits, whole = done.limits(), done.whole_chunks_bound()
        print(
            f"{model:<10}{name:<20}{done.workers:>8}{len(done.sizes_bytes) / done.workers:>12.1f}{done.seconds:>9.1f}"
            f"{done.bound():>8.1f}{done.seconds / done.bound():>7.2f}{whole:>14.1f}{done.seconds / whole:>7.2f}"
            f"  {max(limits, key=lambda limit: limits[limit])}"
        )


def run_troubles() -> Iterator[Row]:
    """Run what may look like dead workers."""
    for model, name, workers, cluster in TROUBLES:
        yield model, name, Simulation(MODELS[model], workers, cluster).run()


def print_troubles(rows: Iterable[Row]) -> None:
    """Print who was taken for dead, and for how long others said nothing."""
    print(
        f"{'model':<10}{'cluster':<28}{'workers':>8}{'seconds':>9}{'bound':>8}{'longest silence':>17}{'lost':>6}"
    )
    for model, name, done in rows:
        print(
            f"{model:<10}{name:<28}{done.workers:>8}{done.seconds:>9.1f}{done.bound():>8.1f}"
            f"{done.longest_silence:>17.1f}{done.lost:>6}"
        )


def draw(rows: Sequence[Row], path: str) -> None:
    """Draw seconds against workers, a panel a model, with the bound of the even cluster."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(MODELS), figsize=(11, 4), sharey=True)
    for axis, model in zip(axes, MODELS, strict=True):
        for name in CLUSTERS:
            mine = [done for row_model, row_name, done in rows if (row_model, row_name) == (model, name)]
            workers = [done.workers for done in mine]
            axis.plot(workers, [done.seconds for done in mine], "o-", label=name)
            if name in ("even", "storage of 1 TB/s"):
                axis.plot(workers, [done.bound() for done in mine], "k:", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(f"{model}, {len(MODELS[model])} chunks; dotted: what no schedule can beat")
        axis.set_xlabel("workers, one a node of 5 GB/s; storage of 80 GB/s")
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
