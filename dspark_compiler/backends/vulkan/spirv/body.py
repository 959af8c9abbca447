"""A function's instructions, in blocks of structured control flow."""

from collections.abc import Callable

from dspark_compiler.backends.vulkan.spirv.module import Module, instruction
from dspark_compiler.backends.vulkan.spirv.numbers import Op, Storage

Emit = Callable[[], None]


class Body:
    """The one function of a shader: void, without parameters.

    Instructions go to the end of the open block, or, inside ``at_entry``, in front of everything, where what
    they define can be used anywhere.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.function = module.new_id()
        self._variables: list[int] = []
        self._entry: list[int] = []
        self._words: list[int] = []
        self._target = self._words
        self._entry_label = module.new_id()
        self.block = self._entry_label
        self.ended = False  # whether the open block has its last instruction

    def emit(self, op: Op, result_type: int, *operands: int) -> int:
        """An instruction with a result."""
        result = self.module.new_id()
        self._target += instruction(op, result_type, result, *operands)
        return result

    def emit_void(self, op: Op, *operands: int) -> None:
        """An instruction without one."""
        self._target += instruction(op, *operands)

    def at_entry(self, emit: Callable[[], int]) -> int:
        """The id ``emit`` gives, its instructions at the start of the function."""
        before, self._target = self._target, self._entry
        try:
            return emit()
        finally:
            self._target = before

    def variable(self, pointer_type: int) -> int:
        """A variable private to the invocation."""
        result = self.module.new_id()
        self._variables += instruction(Op.VARIABLE, pointer_type, result, Storage.FUNCTION)
        return result

    def branch(self, label: int) -> None:
        """Ends the open block, unless it has ended."""
        if not self.ended:
            self.emit_void(Op.BRANCH, label)
            self.ended = True

    def end(self) -> None:
        """Ends the function here."""
        if not self.ended:
            self.emit_void(Op.RETURN)
            self.ended = True

    def start(self, label: int) -> None:
        """Opens a block."""
        self.emit_void(Op.LABEL, label)
        self.block, self.ended = label, False

    def either(self, condition: int, then: Emit, otherwise: Emit | None = None) -> None:
        """Statements under a condition."""
        then_label, merge = self.module.new_id(), self.module.new_id()
        else_label = merge if otherwise is None else self.module.new_id()
        self.emit_void(Op.SELECTION_MERGE, merge, 0)
        self.emit_void(Op.BRANCH_CONDITIONAL, condition, then_label, else_label)
        self.start(then_label)
        then()
        self.branch(merge)
        if otherwise is not None:
            self.start(else_label)
            otherwise()
            self.branch(merge)
        self.start(merge)

    def choose(
        self, condition: int, types: list[int], then: Callable[[], list[int]], otherwise: Callable[[], list[int]]
    ) -> list[int]:
        """Values of which only the chosen side's are computed."""
        sides: list[tuple[list[int], int]] = []

        def side(values: Callable[[], list[int]]) -> Emit:
            def emit() -> None:
                results = values()
                sides.append((results, self.block))

            return emit

        self.either(condition, side(then), side(otherwise))
        (first, first_block), (second, second_block) = sides
        pairs = zip(types, first, second, strict=True)
        return [self.emit(Op.PHI, kind, a, first_block, b, second_block) for kind, a, b in pairs]

    def loop(
        self,
        index_type: int,
        begin: int,
        go_on: Callable[[int], int],
        advance: Callable[[int], int],
        body: Callable[[int, int, int], None],
    ) -> None:
        """A loop over an index: ``body`` gets the index and the labels that break and continue go to."""
        header, check, inside, onward, merge = (self.module.new_id() for _ in range(5))
        index, following, before = self.module.new_id(), self.module.new_id(), self.block
        self.branch(header)
        self.start(header)
        self._target += instruction(Op.PHI, index_type, index, begin, before, following, onward)
        self.emit_void(Op.LOOP_MERGE, merge, onward, 0)
        self.emit_void(Op.BRANCH, check)
        self.start(check)
        self.emit_void(Op.BRANCH_CONDITIONAL, go_on(index), inside, merge)
        self.start(inside)
        body(index, merge, onward)
        self.branch(onward)
        self.start(onward)
        after = advance(index)
        # The phi names the next index before it is computed: its id is given by a copy that costs nothing.
        self._target += instruction(Op.COPY_OBJECT, index_type, following, after)
        self.branch(header)
        self.start(merge)

    def repeat(self, condition: Callable[[], int], body: Callable[[int, int], None]) -> None:
        """A loop while a condition holds; ``body`` gets the labels that break and continue go to."""
        header, check, inside, onward, merge = (self.module.new_id() for _ in range(5))
        self.branch(header)
        self.start(header)
        self.emit_void(Op.LOOP_MERGE, merge, onward, 0)
        self.emit_void(Op.BRANCH, check)
        self.start(check)
        self.emit_void(Op.BRANCH_CONDITIONAL, condition(), inside, merge)
        self.start(inside)
        body(merge, onward)
        self.branch(onward)
        self.start(onward)
        self.branch(header)
        self.start(merge)

    def words(self) -> list[int]:
        """The whole function."""
        void = self.module.declare(Op.TYPE_VOID)
        kind = self.module.declare(Op.TYPE_FUNCTION, void)
        self.end()
        head = instruction(Op.FUNCTION, void, self.function, 0, kind) + instruction(Op.LABEL, self._entry_label)
        return [*head, *self._variables, *self._entry, *self._words, *instruction(Op.FUNCTION_END)]
