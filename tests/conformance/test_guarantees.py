"""Every transport keeps every guarantee; and the guarantees notice a transport that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventmesh.testing import conformance
from eventmesh.testing.conformance import GUARANTEES, Guarantee, GuaranteeBroken, NotApplicable, Rig
from tests.conformance import broken
from tests.conformance.broken import BrokenTransport
from tests.conformance.rigs import rig_in_memory


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_a_transport_keeps_a_guarantee(rig: Rig, guarantee: Guarantee) -> None:
    try:
        await guarantee(rig)
    except NotApplicable as reason:
        pytest.skip(f"not applicable: {reason}")


BROKEN: tuple[tuple[Guarantee, type[BrokenTransport]], ...] = (
    (conformance.round_trip, broken.KnowsOnlyAscii),
    (conformance.fan_out, broken.LosesEverySecond),
    (conformance.order_for_one_consumer, broken.PublishesBackwards),
    (conformance.order_within_a_key_survives_a_stop, broken.ReturnsToTheEnd),
    (conformance.competing_consumers, broken.DeliversToTwo),
    (conformance.backlog_before_the_first_consumer, broken.BeginsAtTheEnd),
    (conformance.backlog_before_the_first_subscription, broken.DropsTheUnrouted),
    (conformance.batches_of_any_size, broken.CutsShortTheBig),
    (conformance.a_refusal_leaves_the_rest, broken.StopsAtARefusal),
    (conformance.nothing_overtakes_what_is_refused, broken.StoresWhatIsBehindARefusal),
    (conformance.many_tasks_share_a_transport, broken.PublishesForOneTaskOnly),
    (conformance.prefetch_is_a_bound, broken.HasNoPrefetch),
    (conformance.prefetch_counts_all_messages_of_a_subscription, broken.CountsEachMessageAlone),
    (conformance.receive_can_be_cancelled, broken.AcknowledgesOnReceipt),
    (conformance.unsettled_goes_back_on_leaving, broken.NeverGivesBack),
    (conformance.what_was_not_handed_out_does_not_count, broken.CountsWhatIsFetched),
    (conformance.a_slow_consumer_keeps_its_deliveries, broken.StealsFromTheSlow),
    (conformance.a_killed_consumer_gives_up_its_deliveries, broken.NeverGivesBack),
    (conformance.deaths_are_counted, broken.CountsNoDeaths),
    (conformance.settled_is_gone, broken.ForgetsWhatIsDone),
    (conformance.settling_out_of_order, broken.SettlesAllBefore),
    (conformance.settling_twice_is_harmless, broken.RetriesTheSettled),
    (conformance.delayed_retry, broken.RetriesAtOnce),
    (conformance.delays_do_not_block_each_other, broken.HasOneQueueForAllDelays),
    (conformance.dead_letters_are_kept, broken.DropsTheDead),
    (conformance.one_letter_for_each_message, broken.ListsEveryLetter),
    (conformance.settling_is_always_possible, broken.StoresShortTextsOnly),
    (conformance.stats_count_what_is_there, broken.TellsZeroForUnknown),
    (conformance.a_census_counts_what_is_there, broken.ForgetsTheDelayed),
    (conformance.a_census_disturbs_nobody, broken.CountsByTakingOut),
    (conformance.unrouted_messages_are_listed_kept_and_purged, broken.PurgesTheNewest),
    (conformance.what_was_kept_for_a_first_subscription_comes_once, broken.KeepsWhatItRoutes),
    (conformance.closing_ends_what_waits, broken.WaitsOnWhenClosed),
    (conformance.a_closed_transport_says_so, broken.ConnectsAgainUnasked),
    (conformance.a_cut_connection_is_made_anew, broken.SleepsThroughALoss),
    (conformance.lost_topology_is_made_again, broken.DeclaresOnlyOnce),
    (conformance.topology_lost_while_running_is_restored, broken.SleepsThroughALoss),
    (conformance.a_restarted_broker_has_everything, broken.KeepsDelaysToItself),
)


def test_each_guarantee_has_a_transport_that_breaks_it() -> None:
    assert [guarantee for guarantee, _ in BROKEN] == list(GUARANTEES)


@pytest.mark.parametrize(
    ("guarantee", "transport"),
    [
        pytest.param(guarantee, transport, id=f"{guarantee.__name__}-{transport.__name__}")
        for guarantee, transport in BROKEN
    ],
)
async def test_a_guarantee_notices_a_transport_that_breaks_it(
    guarantee: Guarantee, transport: type[BrokenTransport]
) -> None:
    with pytest.raises(GuaranteeBroken):
        await guarantee(rig_in_memory(transport, transport.made_by(), patience=1.0))


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_it_is_not_the_way_of_breaking_that_is_noticed(guarantee: Guarantee) -> None:
    """The broken transports' scaffolding, which by itself breaks nothing, keeps every guarantee."""
    await guarantee(rig_in_memory(BrokenTransport, BrokenTransport.made_by()))


@pytest.mark.parametrize(
    ("guarantee", "part"),
    [
        (conformance.a_cut_connection_is_made_anew, "cut"),
        (conformance.a_restarted_broker_has_everything, "restart"),
        (conformance.lost_topology_is_made_again, "lose_data"),
        (conformance.nothing_overtakes_what_is_refused, "refuse"),
        (conformance.topology_lost_while_running_is_restored, "lose_topology"),
    ],
)
async def test_a_guarantee_without_what_it_needs_is_not_passed(
    guarantee: Guarantee, part: str
) -> None:
    bare = replace(
        rig_in_memory(), cut=None, restart=None, lose_data=None, lose_topology=None, refuse=None
    )
    with pytest.raises(NotApplicable, match=part):
        await guarantee(bare)
