"""Reading what must be waited for, without waiting long for the slowest.

All nodes are asked at once. When nodes of other processes take much longer than such reads took
lately, they are given up for this batch, and ``Batch.plan`` asks for parity instead; for a while
after, a node that was too slow is asked only when nothing else is left. One whose blocks are coming
in gets twice the time: asking for others would make what is busy busier. A slow answer costs one
reader one such delay, once in a while; nobody waits for a time-out.

Local drives are never given up: their reads are in threads, which cannot be cancelled while they
fill a buffer. Source: Dean and Barroso, "The Tail at Scale" (2013), "hedged requests".
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine.data.batch import Batch, Job
from engine.data.context import Context, first_error
from engine.ids import NodeId, fragment_id
from engine.node.contract import NodeError


class _Group:
    """The jobs of one node, read one after another."""

    __slots__ = ("done", "jobs", "scope", "spared")

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.done = 0
        self.scope = trio.CancelScope()
        self.spared = False
        """It was late already, and delivered."""

    @property
    def local(self) -> bool:
        return self.jobs[0].node.blocking is not None

    @property
    def left(self) -> list[Job]:
        return self.jobs[self.done :]

    @property
    def delivers(self) -> bool:
        """Whether a block of what is being read has come: its hash stands behind it."""
        return any(self.jobs[self.done].hashes[0])


async def read_cold(context: Context, batch: Batch, jobs: Sequence[Job]) -> None:
    """Read the jobs, all nodes at once; what fails or is given up, the batch is told of."""
    by_node: dict[NodeId, _Group] = {}
    for job in jobs:
        group = by_node.get(job.node.node_id)
        if group is None:
            by_node[job.node.node_id] = _Group([job])
        else:
            group.jobs.append(job)
    groups = list(by_node.values())
    if len(groups) == 1 and groups[0].local:
        await trio.to_thread.run_sync(batch.read, groups[0].jobs, limiter=context.limiters.disk)
        return
    try:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as reading:
                for group in groups:
                    reading.start_soon(_read_group, context, batch, group)
                remote = [group for group in groups if not group.local]
                if remote:
                    nursery.start_soon(_lose_patience, context, batch, remote)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


async def _read_group(context: Context, batch: Batch, group: _Group) -> None:
    if group.local:
        await trio.to_thread.run_sync(batch.read, group.jobs, limiter=context.limiters.disk)
        group.done = len(group.jobs)
        return
    started = trio.current_time()
    with group.scope:
        for job in group.jobs:
            fragment = fragment_id(batch.chunk_id, job.index)
            try:
                await job.node.read_into(fragment, job.offset, job.buffers)
            except NodeError as error:
                batch.fail(job, error)
            else:
                batch.verify(job)
            group.done += 1
    node_id = group.jobs[0].node.node_id
    if group.scope.cancelled_caught:
        context.pace.gave_up(node_id)
        for job in group.left:
            batch.defer(job)
    else:
        context.pace.took(node_id, trio.current_time() - started)


async def _lose_patience(context: Context, batch: Batch, groups: Sequence[_Group]) -> None:
    """Give up whoever is late, if the batch can do without; then look again a while later, for
    those whom it could not do without, and those who had begun to deliver."""
    while groups:
        await trio.sleep(context.pace.patience_s)
        # This process may be late itself: what came meanwhile is taken in first.
        await trio.lowlevel.checkpoint()
        late = [group for group in groups if group.left]
        # Who delivers is no slow node: more likely this process, or the way, has much to do.
        stuck = [group for group in late if group.spared or not group.delivers]
        for group in late:
            group.spared = True
        if stuck and batch.can_do_without([job for group in stuck for job in group.left]):
            for group in stuck:
                group.scope.cancel()
            groups = [group for group in late if group not in stuck]
