"""How budget, temperature, noise and hardening change over the steps of mask learning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_shear.masks import MaskPhase, MaskSchedule
from hf_shear.masks.hard_concrete import HardConcrete
from hf_shear.masks.relaxed_topk import RelaxedTopK

STRATEGY = RelaxedTopK()


def test_budget_falls_linearly_over_the_warmup_as_in_the_paper():
    schedule = MaskSchedule(total_steps=3200, budget_warmup_steps=640)
    progress = [schedule.budget_progress(step) for step in (0, 64, 320, 639, 640, 641, 3200)]
    assert progress == pytest.approx([0.0, 0.1, 0.5, 639 / 640, 1.0, 1.0, 1.0])


def test_without_a_warmup_the_target_holds_from_the_first_step():
    assert MaskSchedule(total_steps=10).budget_progress(0) == 1.0


def test_temperature_falls_geometrically_until_hardening():
    schedule = MaskSchedule(total_steps=120, hardening_steps=20, start_temperature=1.0, end_temperature=0.01)
    temperatures = [STRATEGY.phase(schedule, step).temperature for step in (0, 25, 50, 100, 110, 120)]
    assert temperatures == pytest.approx([1.0, 0.1**0.5, 0.1, 0.01, 0.01, 0.01])


def test_noise_falls_linearly_to_zero_at_the_start_of_hardening():
    schedule = MaskSchedule(total_steps=120, hardening_steps=20, start_noise=0.4)
    assert [STRATEGY.phase(schedule, step).noise_scale for step in (0, 25, 50, 100, 119)] == pytest.approx(
        [0.4, 0.3, 0.2, 0.0, 0.0]
    )


def test_the_last_trained_step_is_fully_hard():
    schedule = MaskSchedule(total_steps=10, hardening_steps=4)
    assert [schedule.hardening(step) for step in range(11)] == [0] * 6 + [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.hardening_start == 6


def test_without_hardening_steps_masks_stay_soft():
    schedule = MaskSchedule(total_steps=10)
    assert schedule.hardening_start == 10
    assert [schedule.hardening(step) for step in (0, 9, 10)] == [0.0, 0.0, 0.0]


def test_hardening_may_fill_the_whole_run():
    schedule = MaskSchedule(total_steps=2, hardening_steps=2)
    assert [schedule.hardening(step) for step in range(3)] == [0.5, 1.0, 1.0]


def test_phase_carries_step_and_micro_batch():
    phase = STRATEGY.phase(MaskSchedule(total_steps=10), 7, micro_batch=3)
    assert (phase.optimizer_step, phase.micro_batch) == (7, 3)


@given(total=st.integers(1, 300), data=st.data())
def test_every_phase_is_in_range_and_moves_one_way(total, data):
    warmup = data.draw(st.integers(0, total))
    hardening = data.draw(st.integers(0, total - warmup))
    schedule = MaskSchedule(total, warmup, hardening, start_noise=0.3)
    phases = [STRATEGY.phase(schedule, step) for step in range(total + 1)]
    assert all(isinstance(phase, MaskPhase) for phase in phases)
    for name, falls in (("budget_progress", False), ("temperature", True), ("noise_scale", True), ("hardening", False)):
        values = [getattr(phase, name) for phase in phases]
        assert values == sorted(values, reverse=falls), name
    last = phases[total - 1]
    assert last.hardening == (1.0 if hardening else 0.0)
    assert phases[0].temperature == 1.0 and phases[total].temperature == pytest.approx(0.05)
    # Nothing hardens before the target size is reached.
    assert all(phase.budget_progress == 1.0 for phase in phases if phase.hardening > 0)
    # Noise is over when hardening starts, and at the end in any case.
    assert phases[max(schedule.hardening_start, 1)].noise_scale == 0.0


def test_hard_concrete_gates_have_neither_temperature_nor_noise():
    schedule = MaskSchedule(total_steps=10, budget_warmup_steps=4, hardening_steps=4, start_noise=0.3)
    assert HardConcrete().phase(schedule, 3) == MaskPhase(optimizer_step=3, budget_progress=0.75)


def test_warmup_and_hardening_must_fit():
    with pytest.raises(ValueError, match=r"`budget_warmup_steps` \(8\) and `hardening_steps` \(3\).*10 steps"):
        MaskSchedule(total_steps=10, budget_warmup_steps=8, hardening_steps=3)
    MaskSchedule(total_steps=10, budget_warmup_steps=7, hardening_steps=3)
