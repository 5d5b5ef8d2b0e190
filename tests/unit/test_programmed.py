"""The agent's word to the plugin."""

from __future__ import annotations

import asyncio

from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.model.kinds import ResourceKey

KEY = ResourceKey("WorkloadEndpoint", "node-libnetwork-libnetwork-1", "libnetwork")


async def test_a_programmed_endpoint_is_not_waited_for() -> None:
    programmed = ProgrammedEndpoints()
    programmed.add(KEY)
    assert await programmed.wait(KEY, 0)


async def test_all_who_wait_are_told() -> None:
    programmed = ProgrammedEndpoints()
    waiting = [asyncio.create_task(programmed.wait(KEY, 10)) for _ in range(2)]
    await asyncio.sleep(0)
    programmed.add(KEY)
    assert await asyncio.gather(*waiting) == [True, True]


async def test_waiting_is_bounded() -> None:
    assert not await ProgrammedEndpoints().wait(KEY, 0.01)


async def test_one_who_gives_up_does_not_take_the_word_from_the_next() -> None:
    programmed = ProgrammedEndpoints()
    impatient = asyncio.create_task(programmed.wait(KEY, 0.01))
    patient = asyncio.create_task(programmed.wait(KEY, 10))
    assert not await impatient
    programmed.add(KEY)
    assert await patient


async def test_a_forgotten_endpoint_is_waited_for_again() -> None:
    programmed = ProgrammedEndpoints()
    programmed.add(KEY)
    programmed.retain(())
    assert KEY not in programmed
    assert not await programmed.wait(KEY, 0.01)
