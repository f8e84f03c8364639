"""Costs and updates of the LLM Surgeon against brute-force constrained minimisation of its quadratic form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.calibration import ColumnCosts, least_squares_columns
from hf_shear.calibration.factors import damped

TOLERANCE = 1e-8  # relative, float64
EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw):
    """(W [R, C], A, G, damping, generator): A and G of few or many random vectors."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(2, 7))

    def moment(size):
        vectors = torch.randn(draw(st.integers(1, 12)), size, generator=generator, dtype=torch.float64)
        return vectors.t() @ vectors / len(vectors)

    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, moment(columns), moment(rows), draw(st.sampled_from([0.01, 0.1, 1.0])), generator


def minimum(weight, gram, gradients, removed):
    """(cost, change of the weight) that brings the entries ``removed`` (bool [R, C]) to 0 at the least cost.

    Minimises 1/2 d^T F d, F = G (x) A over the row-major entries of d, by solving the equations of its Lagrangian.
    """
    fisher = torch.kron(gradients, gram)
    places = removed.flatten().nonzero().flatten()
    size, number = len(fisher), len(places)
    system = torch.zeros(size + number, size + number, dtype=torch.float64)
    system[:size, :size] = fisher
    system[size + torch.arange(number), places] = 1
    system[places, size + torch.arange(number)] = 1
    target = torch.cat([torch.zeros(size, dtype=torch.float64), -weight.flatten()[places]])
    change = torch.linalg.solve(system, target)[:size]
    return 0.5 * change @ fisher @ change, change.view_as(weight)


def removed_columns(weight, columns):
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, columns] = True
    return mask


def subset(size, generator, least=1, most=None):
    number = int(torch.randint(least, (size if most is None else most) + 1, (1,), generator=generator))
    return torch.randperm(size, generator=generator)[:number]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * (1 + float(expected.abs().max())))


@EXAMPLES
@given(problems())
def test_cost_of_a_column_is_the_constrained_minimum(problem):
    weight, gram, gradients, damping, _ = problem
    found = ColumnCosts(weight, gram, gradients, damping=damping).single()
    wide = damped(gram, damping), damped(gradients, damping)
    expected = [minimum(weight, *wide, removed_columns(weight, [c]))[0] for c in range(weight.shape[1])]
    assert_close(found, torch.stack(expected))


@EXAMPLES
@given(problems())
def test_cost_of_a_set_of_columns_is_joint(problem):
    weight, gram, gradients, damping, generator = problem
    members = subset(weight.shape[1], generator)
    found = ColumnCosts(weight, gram, gradients, damping=damping).sets([members])
    wide = damped(gram, damping), damped(gradients, damping)
    assert_close(found[0], minimum(weight, *wide, removed_columns(weight, members))[0])


@EXAMPLES
@given(problems())
def test_cost_of_everything_leaves_nothing_to_update(problem):
    weight, gram, gradients, damping, _ = problem
    found = ColumnCosts(weight, gram, gradients, damping=damping)
    wide = damped(gram, damping), damped(gradients, damping)
    assert_close(found.everything(), 0.5 * weight.flatten() @ torch.kron(*reversed(wide)) @ weight.flatten())
    assert_close(found.everything(), found.sets([torch.arange(weight.shape[1])])[0])


@EXAMPLES
@given(problems())
def test_costs_without_update_are_the_form_at_the_removed_weights(problem):
    weight, gram, gradients, _, generator = problem
    members = subset(weight.shape[1], generator)
    costs = ColumnCosts(weight, gram, gradients, update=False)
    fisher = torch.kron(gradients, gram)

    def form(mask):
        change = (weight * mask).flatten()
        return 0.5 * change @ fisher @ change

    assert_close(costs.sets([members])[0], form(removed_columns(weight, members)))
    singles = [form(removed_columns(weight, [c])) for c in range(weight.shape[1])]
    assert_close(costs.single(), torch.stack(singles))
    assert_close(costs.everything(), form(torch.ones_like(weight)))


@EXAMPLES
@given(problems())
def test_without_gradients_costs_are_half_the_squared_error(problem):
    weight, gram, _, damping, generator = problem
    members = subset(weight.shape[1], generator, most=weight.shape[1] - 1)
    kept = torch.tensor([c for c in range(weight.shape[1]) if c not in members.tolist()])
    new = torch.zeros_like(weight)
    new[:, kept] = least_squares_columns(weight, gram, kept, members, damping)
    gap = weight - new
    expected = 0.5 * torch.trace(gap @ damped(gram, damping) @ gap.t())
    assert_close(ColumnCosts(weight, gram, damping=damping).sets([members])[0], expected)


@EXAMPLES
@given(problems())
def test_the_update_of_columns_is_the_joint_minimum(problem):
    weight, gram, gradients, damping, generator = problem
    columns = subset(weight.shape[1], generator, 0, weight.shape[1] - 1)
    kept = torch.tensor([c for c in range(weight.shape[1]) if c not in columns.tolist()])
    wide = damped(gram, damping), damped(gradients, damping)
    _, change = minimum(weight, *wide, removed_columns(weight, columns))
    assert_close(least_squares_columns(weight, gram, kept, columns, damping), (weight + change)[:, kept])


@EXAMPLES
@given(problems())
def test_independent_updates_are_sums_of_single_ones_and_never_better(problem):
    weight, gram, gradients, damping, generator = problem
    columns = subset(weight.shape[1], generator, 1, weight.shape[1] - 1)
    kept = torch.tensor([c for c in range(weight.shape[1]) if c not in columns.tolist()])
    wide = damped(gram, damping), damped(gradients, damping)
    expected = weight + sum(minimum(weight, *wide, removed_columns(weight, [c]))[1] for c in columns.tolist())
    found = least_squares_columns(weight, gram, kept, columns, damping, joint=False)
    assert_close(found, expected[:, kept])

    def error(new):
        gap = weight.clone()
        gap[:, kept] -= new
        return float(((gap @ wide[0]) * gap).sum())

    joint = least_squares_columns(weight, gram, kept, columns, damping)
    assert error(joint) <= error(found) * (1 + 1e-9) + 1e-12


def example(dead=(), tokens=50):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    inputs[:, list(dead)] = 0
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    gradients = torch.randn(tokens, 4, generator=generator, dtype=torch.float64)
    return weight, inputs.t() @ inputs / tokens, gradients.t() @ gradients / tokens


@pytest.mark.parametrize("update", [True, False])
def test_dead_columns_cost_nothing_and_change_nothing(update):
    weight, gram, gradients = example(dead=(1, 4))
    costs, live = ColumnCosts(weight, gram, gradients, update=update), torch.tensor([0, 2, 3, 5])
    alone = ColumnCosts(weight[:, live], gram[live][:, live], gradients, update=update)
    assert costs.single()[[1, 4]].tolist() == [0, 0]
    assert_close(costs.single()[live], alone.single())
    assert costs.sets([torch.tensor([1, 4])]).item() == 0
    assert_close(costs.sets([torch.tensor([0, 1])]), alone.sets([torch.tensor([0])]))
    assert_close(costs.everything(), alone.everything())


def test_columns_that_are_closed_take_no_part():
    weight, gram, gradients = example()
    is_open = torch.tensor([True, False, True, True, False, True])
    costs, live = ColumnCosts(weight, gram, gradients, is_open), torch.tensor([0, 2, 3, 5])
    alone = ColumnCosts(weight[:, live], gram[live][:, live], gradients)
    assert_close(costs.single()[live], alone.single())
    assert costs.single()[[1, 4]].tolist() == [0, 0]


def test_rows_without_gradients_take_no_part():
    """As hidden dimensions that are closed: costs are those of the layer without them."""
    weight, gram, gradients = example()
    rows = torch.tensor([0, 2, 3])
    gradients[1] = gradients[:, 1] = 0
    alone = ColumnCosts(weight[rows], gram, gradients[rows][:, rows])
    assert_close(ColumnCosts(weight, gram, gradients).single(), alone.single())


def test_nothing_alive_costs_nothing():
    weight, gram, gradients = example(dead=range(6))
    costs = ColumnCosts(weight, gram, gradients)
    assert costs.single().tolist() == [0] * 6 and costs.everything().item() == 0
    kept, removed = torch.arange(3), torch.arange(3, 6)
    assert torch.equal(least_squares_columns(weight, gram, kept, removed), weight[:, kept])


def test_an_update_leaves_dead_inputs_alone():
    weight, gram, _ = example(dead=(1, 4))
    kept, removed = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    found = least_squares_columns(weight, gram, kept, removed)
    assert torch.equal(found[:, 1], weight[:, 1]) and not torch.equal(found[:, 0], weight[:, 0])
    assert_close(found[:, [0, 2]], least_squares_columns(weight, gram, torch.tensor([0, 2]), torch.tensor([3, 5])))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_factors_that_are_not_finite_are_refused(bad):
    weight, gram, gradients = example()
    broken = gram.clone()
    broken[0, 1] = bad
    kept, removed = torch.arange(3), torch.arange(3, 6)
    with pytest.raises(ValueError, match="A, the second moment of the inputs of down, is not finite"):
        ColumnCosts(weight, broken, gradients, name="down")
    with pytest.raises(ValueError, match="A, the second moment of the inputs is not finite"):
        least_squares_columns(weight, broken, kept, removed)
    broken = gradients.clone()
    broken[2, 2] = bad
    with pytest.raises(ValueError, match="G, the second moment of the gradients .* of down, is not finite"):
        ColumnCosts(weight, gram, broken, name="down")


def test_a_singular_matrix_needs_damping():
    weight, gram, gradients = example(tokens=2)
    with pytest.raises(ValueError, match="A of the layer is not positive definite.*too few tokens for its 6 rows"):
        ColumnCosts(weight, gram, gradients, damping=0.0).single()
    assert bool((ColumnCosts(weight, gram, gradients).single() > 0).all())
    with pytest.raises(ValueError, match="`damping` must be 0 or more, but it is -1"):
        ColumnCosts(weight, gram, gradients, damping=-1)
