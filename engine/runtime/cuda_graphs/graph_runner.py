"""Captured graphs of a pass: a cache of them by input shape, their output buffers, and the order of their replays.

A :class:`GraphRunner` replays one graph at a time. The outputs lie in an :class:`OutputBuffer` until that buffer is
written again. With two buffers the outputs of one step can be read on another stream while the next step is computed.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .capture import Capture
from .static_inputs import GraphInput, StaticInput, StaticInputs
from .stream_order import Event, StreamOrder

Tensors = Mapping[str, Tensor]


@dataclass(eq=False)
class CapturedGraph:
    """A captured graph with its static inputs and outputs.

    ``source`` is the graph whose outputs it reads in place, if any; ``number`` is unique among all graphs of a cache.
    """

    replay: Callable[[], Any]
    outputs: Any
    inputs: Mapping[str, StaticInput]
    source: CapturedGraph | None
    number: int

    @property
    def output_bytes(self) -> int:
        """Bytes of the outputs; intermediate values lie in memory that is shared by the pool."""
        storages = (leaf.untyped_storage() for leaf in tree_leaves(self.outputs) if leaf is not None)
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@dataclass(eq=False)
class OutputBuffer:
    """Memory for the outputs of one graph at a time, shared by all graphs of the memory pool ``pool``.

    ``graph`` is the last graph that wrote it, ``written`` the event after that, ``reads`` the events after the reads
    since. ``contexts`` are weak references to the contexts that the caller of the pass was given.
    """

    pool: Hashable
    graph: CapturedGraph | None = None
    contexts: list[weakref.ref[Tensor]] = field(default_factory=list)
    written: Event = None
    reads: list[Event] = field(default_factory=list)

    def set_contexts(self, contexts: Sequence[Tensor]) -> None:
        """Remember which tensors the caller is given."""
        self.contexts = [weakref.ref(context) for context in contexts]

    def has_contexts(self, contexts: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that the caller was given, which means that they still lie in this buffer."""
        pairs = zip(self.contexts, contexts, strict=False)
        same_length = len(self.contexts) == len(contexts)
        return bool(contexts) and same_length and all(ref() is context for ref, context in pairs)


class GraphCache:
    """The captured graphs of a model by key, with least-recently-used eviction.

    It evicts beyond ``max_graphs`` graphs, and beyond ``max_bytes`` of outputs and static inputs.
    """

    def __init__(self, capture: Capture, order: StreamOrder, max_graphs: int, max_bytes: int | None) -> None:
        self._capture, self.order, self.max_graphs, self.max_bytes = capture, order, max_graphs, max_bytes
        self.num_captures = 0
        self._graphs: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def bytes(self) -> int:
        """Bytes of all outputs and static inputs, without the intermediate values, whose memory each pool shares."""
        inputs = {
            id(static): static.tensor.nbytes for graph in self._graphs.values() for static in graph.inputs.values()
        }
        return sum(graph.output_bytes for graph in self._graphs.values()) + sum(inputs.values())

    def get(self, key: Hashable) -> CapturedGraph | None:
        """The graph of ``key``, now the most recently used one."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def capture(
        self,
        key: Hashable,
        pool: Hashable,
        function: Callable[[Tensors], Any],
        inputs: Mapping[str, StaticInput],
        source: CapturedGraph | None,
        restore: Callable[[], None],
    ) -> CapturedGraph:
        """Capture ``function`` of the static inputs, and replay it once.

        ``restore`` puts states back, which the warm-up of the capture has updated.
        """
        tensors = {name: static.tensor for name, static in inputs.items()}
        replay = self._capture(lambda: function(tensors), pool)
        restore()
        self.num_captures += 1
        graph = CapturedGraph(replay, replay(), dict(inputs), source, next(self._numbers))
        self._graphs[key] = graph
        self._evict(graph)
        return graph

    def _evict(self, newest: CapturedGraph) -> None:
        """Delete the least recently used graphs and those that read their outputs; keep the newest and its source."""
        keep = {newest.number} | ({newest.source.number} if newest.source is not None else set())
        while len(self._graphs) > self.max_graphs or (self.max_bytes is not None and self.bytes > self.max_bytes):
            oldest = next((graph for graph in self._graphs.values() if graph.number not in keep), None)
            if oldest is None:
                return
            self.order.synchronize()  # its memory may be allocated again at once
            self._graphs = OrderedDict(
                (key, graph)
                for key, graph in self._graphs.items()
                if graph is not oldest and graph.source is not oldest
            )


class GraphRunner:
    """Runs one pass by replaying the graph that was captured for the shapes of its inputs.

    Calls that return contexts alternate between ``num_buffers`` output buffers.
    """

    def __init__(self, name: str, cache: GraphCache, order: StreamOrder, num_buffers: int = 1) -> None:
        self.name, self.cache, self.order = name, cache, order
        self.buffers = [OutputBuffer((name, i)) for i in range(num_buffers)]
        self._static_inputs = StaticInputs()
        self._next_buffer = 0
        self._last_replay: Event = None

    def run(
        self,
        constants: Hashable,
        inputs: Mapping[str, GraphInput],
        function: Callable[[Tensors], Any],
        *,
        source: OutputBuffer | None = None,
        returns_contexts: bool = False,
    ) -> tuple[Any, OutputBuffer]:
        """``function`` of the static inputs, by replay. -> its outputs, and the buffer in which they lie.

        ``constants`` are all values besides the inputs on which the function depends. States among the inputs are
        copied back. ``source`` is a buffer of another
        runner whose current outputs the function reads in place. ``returns_contexts`` says that the outputs will be
        read after the next call.
        """
        buffer = self.buffers[self._next_buffer % len(self.buffers)]
        self._next_buffer += returns_contexts
        source_graph = None if source is None else source.graph
        self.order.wait_events(self._last_replay, *buffer.reads, None if source is None else source.written)
        static_inputs = self._static_inputs.copy_from(inputs)
        shapes = tuple((name, static.tensor.shape, static.tensor.dtype) for name, static in static_inputs.items())
        key = buffer.pool, constants, shapes, None if source_graph is None else source_graph.number
        states = {name: graph_input for name, graph_input in inputs.items() if graph_input.version is not None}

        def restore() -> None:
            for name, state in states.items():
                static_inputs[name].fill(state.value)

        graph = self.cache.get(key)
        if graph is None:
            graph = self.cache.capture(key, buffer.pool, function, static_inputs, source_graph, restore)
        else:
            graph.replay()
        for name, state in states.items():
            static_inputs[name].copy_back(state)
        buffer.graph, buffer.contexts, buffer.reads = graph, [], []
        buffer.written = self._last_replay = self.order.record_event()
        if source is not None:
            source.reads.append(buffer.written)
        return graph.outputs, buffer

    def buffer_of(self, contexts: Sequence[Tensor] | None) -> OutputBuffer | None:
        """The buffer in which these contexts still lie, if there is one."""
        if contexts is None:
            return None
        return next((buffer for buffer in self.buffers if buffer.has_contexts(contexts)), None)
