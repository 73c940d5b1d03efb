"""What is kept of late: no more than so many steps."""

from hepti_mpi.program.kept import Kept


def test_what_was_asked_for_last_is_kept_while_there_is_room():
    kept, made = Kept(10), []

    def get(key, steps):
        return kept.get(key, lambda: made.append(key) or key * steps, len)

    assert [get("a", 4), get("b", 5), get("a", 4)] == ["aaaa", "bbbbb", "aaaa"] and made == ["a", "b"]
    assert get("c", 3) == "ccc" and kept.steps == 7, "the one that was asked for the longest ago is gone"
    get("a", 4), get("b", 5)
    assert made == ["a", "b", "c", "b"] and kept.steps == 9
    assert get("d", 99) == "d" * 99 and list(kept.values) == ["d"], "the last one, whatever it has"
    assert get("e", 1) == "e" and kept.steps == 1
