from __future__ import annotations

from itertools import pairwise
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from planner.layouts.atoms import Atoms

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def sizes(atoms: Atoms, factors: tuple[int, ...]) -> list[int]:
    return [atoms.size(atom) for atom in atoms.leaves(factors)]


def test_a_dim_of_size_one_needs_no_atom() -> None:
    assert Atoms().new(1) == ()


def test_equal_dims_become_one_atom() -> None:
    atoms = Atoms()
    a, b = atoms.new(8), atoms.new(8)
    atoms.unify(a, b, op=0)
    assert atoms.leaves(a) == atoms.leaves(b)
    assert not atoms.fixed_by(a[0])


def test_a_view_splits_the_atom_for_all_who_share_it() -> None:
    atoms = Atoms()
    a, b = atoms.new(32), atoms.new(32)
    atoms.unify(a, b, op=0)
    heads, inner = atoms.regroup(a, (4, 8), op=1)
    assert sizes(atoms, b) == [4, 8]
    assert atoms.leaves(b) == atoms.leaves((*heads, *inner))


def test_a_view_joins_atoms_in_order() -> None:
    atoms = Atoms()
    a, b = atoms.new(4), atoms.new(8)
    (joined,) = atoms.regroup((*a, *b), (32,), op=0)
    assert atoms.leaves(joined) == (*a, *b)


def test_a_split_that_does_not_align_fixes_what_it_tears() -> None:
    atoms = Atoms()
    a, b = atoms.new(4), atoms.new(6)
    dims = atoms.regroup((*a, *b), (3, 8), op=5)
    assert atoms.fixed_by(a[0]) == atoms.fixed_by(b[0]) == {5}
    assert [sizes(atoms, dim) for dim in dims] == [[3], [8]]
    assert not {*atoms.leaves(a), *atoms.leaves(b)} & {*atoms.leaves(dims[0]), *atoms.leaves(dims[1])}


def test_unlike_factors_that_align_are_split_on_both_sides() -> None:
    atoms = Atoms()
    two_six, six_two = (*atoms.new(2), *atoms.new(6)), (*atoms.new(6), *atoms.new(2))
    atoms.unify(two_six, six_two, op=0)
    assert sizes(atoms, two_six) == sizes(atoms, six_two) == [2, 3, 2]
    assert atoms.leaves(two_six) == atoms.leaves(six_two)


def test_factors_that_do_not_align_are_fixed_by_the_operation() -> None:
    atoms = Atoms()
    a, b = atoms.new(4), atoms.new(6)
    atoms.unify(a, b, op=7)
    assert atoms.fixed_by(a[0]) == atoms.fixed_by(b[0]) == {7}


def test_what_is_fixed_stays_fixed_through_union_and_split() -> None:
    atoms = Atoms()
    a, b = atoms.new(8), atoms.new(8)
    atoms.fix(a, op=1)
    atoms.fix(b, op=2)
    atoms.unify(a, b, op=3)
    assert atoms.fixed_by(a[0]) == {1, 2}
    outer, inner = atoms.regroup(b, (2, 4), op=4)
    assert atoms.fixed_by(outer[0]) == atoms.fixed_by(inner[0]) == {1, 2}


@given(SIZES)
def test_regrouping_keeps_the_elements_and_there_and_back_is_the_same(shape: list[int]) -> None:
    atoms = Atoms()
    whole = tuple(atom for size in shape for atom in atoms.new(size))
    other = sorted(shape)
    dims = atoms.regroup(whole, other, op=0)
    assert [prod(sizes(atoms, dim)) for dim in dims] == other
    flat = tuple(atom for dim in dims for atom in dim)
    if not any(atoms.fixed_by(atom) for atom in atoms.leaves(whole)):
        assert atoms.leaves(flat) == atoms.leaves(whole)


@given(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=5), st.data())
def test_regrouping_along_whole_factors_fixes_nothing(shape: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(shape)), max_size=3)) | {0, len(shape)})
    wanted = [prod(shape[a:b]) for a, b in pairwise(cuts)]
    atoms = Atoms()
    whole = tuple(atom for size in shape for atom in atoms.new(size))
    dims = atoms.regroup(whole, wanted, op=0)
    assert [prod(sizes(atoms, dim)) for dim in dims] == wanted
    assert not any(atoms.fixed_by(atom) for atom in whole)
    assert [atom for dim in dims for atom in atoms.leaves(dim)] == list(atoms.leaves(whole))


@given(SIZES, SIZES)
def test_unifying_keeps_both_products_and_agrees_or_fixes(left: list[int], right: list[int]) -> None:
    atoms = Atoms()
    a = tuple(atom for size in left for atom in atoms.new(size))
    b = tuple(atom for size in right for atom in atoms.new(size))
    atoms.unify(a, b, op=0)
    assert prod(sizes(atoms, a)) == prod(left)
    assert prod(sizes(atoms, b)) == prod(right)
    free_a = [atom for atom in atoms.leaves(a) if not atoms.fixed_by(atom)]
    free_b = [atom for atom in atoms.leaves(b) if not atoms.fixed_by(atom)]
    assert free_a == free_b
