"""Costs and updates of the Surgeon's structures against brute-force constrained minimisation of the quadratic form."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_shear.sparsity.costs import (
    PAIRS,
    column_costs,
    entry_costs,
    pair_costs,
    pair_matrices_damage,
    pair_matrices_surgeon,
    removed_by_pairs,
    row_costs,
)
from hf_shear.sparsity.factors import KroneckerFactors
from hf_shear.sparsity.layer import LayerSurgery
from hf_shear.sparsity.selection import cheapest, cheapest_rows_and_columns
from hf_shear.sparsity.settings import SurgeonSettings
from hf_shear.sparsity.updates import (
    quadratic_form,
    remove_entries_in_blocks,
    remove_entries_jointly,
    remove_rows_and_columns,
)

SEEDS = st.integers(0, 2**31)
ROWS, COLUMNS, GROUPS = st.integers(1, 7), st.integers(1, 9), st.integers(1, 3)
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


class Problem:
    """A random layer with factors of full rank, in float64."""

    def __init__(self, seed: int, rows: int, columns: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = self.normal(rows, columns)
        self.inputs, self.outputs = self.factor(columns), self.factor(rows)
        self.inverse_inputs, self.inverse_outputs = torch.linalg.inv(self.inputs), torch.linalg.inv(self.outputs)
        self.input_scales = 1 / self.inverse_inputs.diagonal()
        self.output_scales = 1 / self.inverse_outputs.diagonal()

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def factor(self, size: int) -> torch.Tensor:
        samples = self.normal(2 * size + 1, size)
        factor = samples.t() @ samples / len(samples)
        return factor + 0.05 * torch.eye(size)

    def some(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator) < 0.6

    def brute_force(self, removed: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The minimum of the quadratic form with ``removed`` [R, C] at zero, and the weight: by the KKT system."""
        hessian = torch.kron(self.outputs, self.inputs)  # of vec by rows
        gone, size = removed.flatten().nonzero().flatten(), removed.numel()
        constraints = torch.eye(size, dtype=torch.float64)[gone]
        system = torch.zeros(size + len(gone), size + len(gone), dtype=torch.float64)
        system[:size, :size], system[:size, size:], system[size:, :size] = hessian, constraints.t(), constraints
        right = torch.cat([torch.zeros(size, dtype=torch.float64), -self.weight.flatten()[gone]])
        change = torch.linalg.solve(system, right)[:size]
        return float(0.5 * change @ hessian @ change), self.weight + change.view_as(self.weight)

    def damage(self, removed: torch.Tensor) -> float:
        change = torch.where(removed, -self.weight, 0.0).flatten()
        return float(0.5 * change @ torch.kron(self.outputs, self.inputs) @ change)


def one(shape: tuple[int, ...], index) -> torch.Tensor:
    removed = torch.zeros(shape, dtype=torch.bool)
    removed[index] = True
    return removed


@given(SEEDS, ROWS, COLUMNS)
@settings(max_examples=25, deadline=None)
def test_costs_of_rows_columns_and_entries(seed, rows, columns):
    p = Problem(seed, rows, columns)
    g, a = p.outputs.diagonal(), p.inputs.diagonal()
    found = {
        "rows": (row_costs(p.weight, p.inputs, p.output_scales), row_costs(p.weight, p.inputs, g)),
        "columns": (column_costs(p.weight, p.outputs, p.input_scales), column_costs(p.weight, p.outputs, a)),
        "entries": (entry_costs(p.weight, p.output_scales, p.input_scales), entry_costs(p.weight, g, a)),
    }
    places = {
        "rows": [(r, slice(None)) for r in range(rows)],
        "columns": [(slice(None), c) for c in range(columns)],
        "entries": list(itertools.product(range(rows), range(columns))),
    }
    for kind, (surgeon, damage) in found.items():
        sets = [one(p.weight.shape, place) for place in places[kind]]
        expected = torch.tensor([p.brute_force(removed)[0] for removed in sets], dtype=torch.float64)
        torch.testing.assert_close(surgeon.flatten(), expected, **TOLERANCE)
        expected = torch.tensor([p.damage(removed) for removed in sets], dtype=torch.float64)
        torch.testing.assert_close(damage.flatten(), expected, **TOLERANCE)


@given(SEEDS, st.integers(1, 4), GROUPS)
@settings(max_examples=15, deadline=None)
def test_the_cheapest_pair_of_each_group_of_four(seed, rows, groups):
    p = Problem(seed, rows, 4 * groups)
    ways = {
        "surgeon": (p.output_scales, pair_matrices_surgeon(p.inverse_inputs), lambda gone: p.brute_force(gone)[0]),
        "damage": (p.outputs.diagonal(), pair_matrices_damage(p.inputs), p.damage),
    }
    for scales, matrices, brute in ways.values():
        costs, which = pair_costs(p.weight, scales, matrices)
        for row, group in itertools.product(range(rows), range(groups)):
            chosen = one(costs.shape, (row, group))
            all_pairs = []
            for index, pair in enumerate(PAIRS):
                gone = one(p.weight.shape, (row, [4 * group + place for place in pair]))
                all_pairs.append(brute(gone))
                assert torch.equal(removed_by_pairs(chosen, torch.full_like(which, index)), gone)
            assert abs(min(all_pairs) - float(costs[row, group])) < 1e-8 * (1 + min(all_pairs))
            assert all_pairs[int(which[row, group])] == min(all_pairs)


@given(SEEDS, ROWS, COLUMNS, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_update_of_rows_and_columns(seed, rows, columns, some_rows, some_columns):
    p = Problem(seed, rows, columns)
    kept_rows = p.some(rows) if some_rows else torch.ones(rows, dtype=torch.bool)
    kept_columns = p.some(columns) if some_columns else torch.ones(columns, dtype=torch.bool)
    kept = kept_rows[:, None] & kept_columns
    new = remove_rows_and_columns(p.weight, p.inputs, p.outputs, kept_rows, kept_columns)
    rise, expected = p.brute_force(~kept)
    torch.testing.assert_close(new, expected, **TOLERANCE)
    assert not new[~kept].any()
    torch.testing.assert_close(float(quadratic_form(new - p.weight, p.inputs, p.outputs)), rise, **TOLERANCE)


@given(SEEDS, ROWS, COLUMNS, st.sampled_from(["joint", "none"]))
@settings(max_examples=25, deadline=None)
def test_a_layer_that_has_lost_rows_and_columns_before(seed, rows, columns, update):
    """Costs are those of removing one more while what was removed stays zero, with damped factors, to float32."""
    p = Problem(seed, rows, columns)
    kept = p.some(rows)[:, None] & p.some(columns)
    p.weight[~kept] = 0
    layer = LayerSurgery(p.weight, kept, KroneckerFactors(p.inputs, p.outputs), SurgeonSettings(update=update))
    damping = 0.01 if update == "joint" else 0.0
    for name in ("inputs", "outputs"):
        factor = getattr(p, name)
        setattr(p, name, factor + damping * factor.diagonal().mean() * torch.eye(len(factor)))
    cost = p.damage if update == "none" else lambda removed: p.brute_force(removed)[0]
    of_rows, of_columns = layer.row_and_column_costs()
    places = [(r, slice(None)) for r in range(rows)] + [(slice(None), c) for c in range(columns)]
    for place, found in zip(places, torch.cat([of_rows, of_columns]), strict=True):
        if kept[place].any():
            assert float(found) == pytest.approx(cost(~kept | one(kept.shape, place)), rel=1e-5, abs=1e-7)
        else:
            assert found == torch.inf
    smaller = kept & p.some(rows)[:, None]
    new, rise, _ = layer.remove(smaller)
    expected = p.damage(~smaller) if update == "none" else p.brute_force(~smaller)[0]
    assert rise == pytest.approx(expected, rel=1e-8, abs=1e-8) and not new[~smaller].any()


@given(SEEDS, ROWS, COLUMNS)
@settings(max_examples=40, deadline=None)
def test_the_joint_update_of_entries(seed, rows, columns):
    """Of entries, also where some were removed before; by conjugate gradients and by one block."""
    p = Problem(seed, rows, columns)
    p.weight[~p.some(rows, columns)] = 0
    kept = p.some(rows, columns) & (p.weight != 0)
    rise, expected = p.brute_force(~kept)
    factors = p.inverse_inputs, p.inverse_outputs
    solved, _ = remove_entries_jointly(p.weight, p.inputs, p.outputs, kept, *factors, 1e-11, 500)
    torch.testing.assert_close(solved, expected, **TOLERANCE)
    block = remove_entries_in_blocks(p.weight, *factors, kept, block_size=rows * columns)
    torch.testing.assert_close(block, expected, **TOLERANCE)
    assert not solved[~kept].any() and not block[~kept].any()
    torch.testing.assert_close(float(quadratic_form(solved - p.weight, p.inputs, p.outputs)), rise, **TOLERANCE)


@given(SEEDS, st.integers(1, 4), GROUPS)
@settings(max_examples=20, deadline=None)
def test_the_joint_update_of_pairs(seed, rows, groups):
    p = Problem(seed, rows, 4 * groups)
    costs, which = pair_costs(p.weight, p.output_scales, pair_matrices_surgeon(p.inverse_inputs))
    removed = removed_by_pairs(p.some(*costs.shape), which)
    _, expected = p.brute_force(removed)
    factors = p.inverse_inputs, p.inverse_outputs
    solved, _ = remove_entries_jointly(p.weight, p.inputs, p.outputs, ~removed, *factors, 1e-11, 500)
    torch.testing.assert_close(solved, expected, **TOLERANCE)


@given(SEEDS, ROWS, COLUMNS, st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_blocks_are_each_removed_as_if_alone(seed, rows, columns, block_size):
    p = Problem(seed, rows, columns)
    kept = p.some(rows, columns)
    places, total = (~kept).nonzero(), torch.zeros_like(p.weight)
    for block in places.split(block_size) if len(places) else []:
        removed = torch.zeros_like(kept)
        removed[block[:, 0], block[:, 1]] = True
        total += p.brute_force(removed)[1] - p.weight
    expected = torch.where(kept, p.weight + total, 0.0)
    new = remove_entries_in_blocks(p.weight, p.inverse_inputs, p.inverse_outputs, kept, block_size)
    torch.testing.assert_close(new, expected, **TOLERANCE)


def test_stopping_early_is_never_worse_than_no_update():
    p = Problem(3, 12, 20)
    kept = p.some(12, 20)
    rises = []
    for iterations in range(6):
        factors = p.inverse_inputs, p.inverse_outputs
        new, used = remove_entries_jointly(p.weight, p.inputs, p.outputs, kept, *factors, 0.0, iterations)
        assert used == iterations and not new[~kept].any()
        rises.append(float(quadratic_form(new - p.weight, p.inputs, p.outputs)))
    assert rises[0] == pytest.approx(p.damage(~kept))
    assert rises == sorted(rises, reverse=True) and rises[-1] < 0.9 * rises[0]


@given(SEEDS, st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_exactly_the_cheapest_are_chosen_and_ties_do_not_overshoot(seed, sizes, count):
    generator = torch.Generator().manual_seed(seed)
    costs = {str(i): torch.randint(0, 5, (size,), generator=generator) / 4 for i, size in enumerate(sizes)}
    for cost in costs.values():
        cost[torch.rand(len(cost), generator=generator) < 0.2] = torch.inf
    together = torch.cat(list(costs.values()))
    count = min(count, int(together.isfinite().sum()))
    chosen = torch.cat(list(cheapest(costs, count).values()))
    expected = torch.zeros_like(chosen)
    expected[together.argsort(stable=True)[:count]] = True
    assert torch.equal(chosen, expected)


@given(SEEDS, st.lists(st.tuples(ROWS, COLUMNS), min_size=1, max_size=4), st.floats(0, 1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_rows_and_columns_are_counted_with_their_overlap(seed, shapes, share, columns_too):
    """Against a loop that removes one after the other and counts entries."""
    generator = torch.Generator().manual_seed(seed)
    costs, kept = ({}, {}), ({}, {})
    for index, sizes in enumerate(shapes):
        for kind in (0, 1):
            costs[kind][index] = torch.randint(0, 6, (sizes[kind],), generator=generator) / 4
            kept[kind][index] = torch.rand(sizes[kind], generator=generator) < 0.8
            if kind == 1 and not columns_too:
                costs[1][index] = torch.full((sizes[1],), torch.inf)
    grids = {index: kept[0][index][:, None] & kept[1][index] for index in kept[0]}
    budget = int(share * sum(int(grid.sum()) for grid in grids.values()))
    before = sum(int(grid.sum()) for grid in grids.values())

    units = [(index, kind, unit) for index in grids for kind in (0, 1) for unit in range(shapes[index][kind])]
    units = [(i, kind, u) for i, kind, u in units if kept[kind][i][u] and costs[kind][i][u] < torch.inf]
    for index, kind, unit in sorted(units, key=lambda unit: float(costs[unit[1]][unit[0]][unit[2]])):
        trial = grids[index].clone()
        trial[(unit, slice(None)) if kind == 0 else (slice(None), unit)] = False
        after = sum(int((trial if i == index else grid).sum()) for i, grid in grids.items())
        if before - after > budget:
            break
        grids[index] = trial

    rows, columns = cheapest_rows_and_columns(costs, kept, budget)
    for index, grid in grids.items():
        assert torch.equal(rows[index][:, None] & columns[index], grid)
    assert before - sum(int(grid.sum()) for grid in grids.values()) <= budget
