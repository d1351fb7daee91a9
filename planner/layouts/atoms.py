"""Which tensor dims move together: a union-find over the *atoms* of every tensor dim of a block.

A dim is an ordered run of atoms (outer to inner) whose sizes multiply to its size. Two dims that an operation relates
element by element share atoms; a view that splits a dim splits its atoms for everybody who shares them. Sharding an
atom over a mesh axis then means: every tensor dim that holds the atom is sharded, and no operation notices, except
those that contract the atom (their result is a partial sum) or for which it was marked *fixed*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Factors = tuple[int, ...]
"""Atoms of one dim, outer to inner."""


class Atoms:
    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._split: dict[int, Factors] = {}
        self._fixed: dict[int, set[int]] = {}

    def new(self, size: int) -> Factors:
        """A dim of its own; size 1 (or none) needs no atom."""
        if size <= 1:
            return ()
        self._parent.append(len(self._parent))
        self._size.append(size)
        return (len(self._parent) - 1,)

    def size(self, atom: int) -> int:
        return self._size[self._root(atom)]

    def leaves(self, factors: Iterable[int]) -> Factors:
        """The finest known atoms of a run of atoms."""
        found: list[int] = []
        for atom in factors:
            root = self._root(atom)
            found.extend(self.leaves(self._split[root]) if root in self._split else (root,))
        return tuple(found)

    def fix(self, factors: Iterable[int], op: int) -> None:
        """Operation ``op`` needs these atoms whole (it normalises over them, sorts along them, ...)."""
        for leaf in self.leaves(factors):
            self._fixed.setdefault(leaf, set()).add(op)

    def fixed_by(self, atom: int) -> frozenset[int]:
        return frozenset(self._fixed.get(self._root(atom), ()))

    def unify(self, a: Iterable[int], b: Iterable[int], op: int) -> None:
        """State that two runs are the same elements in the same order; where their factors do not align, both are
        fixed."""
        left, right = list(self.leaves(a)), list(self.leaves(b))
        while left and right:
            x, y = left.pop(0), right.pop(0)
            if x == y:
                continue
            if self.size(x) == self.size(y):
                self._union(x, y)
            elif self.size(x) % self.size(y) == 0:
                head, tail = self._halve(x, self.size(y))
                self._union(head, y)
                left, right = [tail, *self.leaves(left)], list(self.leaves(right))
            elif self.size(y) % self.size(x) == 0:
                head, tail = self._halve(y, self.size(x))
                self._union(head, x)
                left, right = list(self.leaves(left)), [tail, *self.leaves(right)]
            else:
                self.fix((x, y, *left, *right), op)
                return
            left, right = list(self.leaves(left)), list(self.leaves(right))
        self.fix((*left, *right), op)

    def regroup(self, factors: Iterable[int], sizes: Sequence[int], op: int) -> list[Factors]:
        """Atoms of a view: the same elements in the same order, cut into dims of other sizes. From where sizes do not
        divide each other, both sides are fixed."""
        rest = list(self.leaves(factors))
        dims: list[Factors] = []
        for size in sizes:
            taken: list[int] = []
            left = size
            while left > 1 and rest:
                atom = rest.pop(0)
                if left % self.size(atom) == 0:
                    left //= self.size(atom)
                    taken.append(atom)
                elif self.size(atom) % left == 0:
                    head, tail = self._halve(atom, left)
                    left = 1
                    taken.append(head)
                    rest = [tail, *self.leaves(rest)]
                else:
                    others = [self.new(s) for s in sizes[len(dims) :]]
                    self.fix((atom, *taken, *rest, *(a for other in others for a in other)), op)
                    return [*dims, *others]
            dims.append(tuple(taken))
        return dims

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _union(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self._parent[b] = a
            if b in self._fixed:
                self._fixed.setdefault(a, set()).update(self._fixed.pop(b))

    def _halve(self, leaf: int, outer: int) -> tuple[int, int]:
        """Split an atom into (outer, inner) for all who share it; what fixed it fixes both."""
        root = self._root(leaf)
        pair = (*self.new(outer), *self.new(self.size(root) // outer))
        for op in self._fixed.pop(root, set()):
            for part in pair:
                self._fixed.setdefault(part, set()).add(op)
        self._split[root] = pair
        return pair[0], pair[1]
