import threading
import time

import pytest
import torch

from finetune.network.cpu import ThreadTeam


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever a test leaves, the next one has one thread."""
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_what_was_given(count):
    def slow_if_even(number):
        time.sleep(0.004 if number % 2 == 0 else 0.0)
        return number**2

    with ThreadTeam(count, 1) as team:
        assert list(team.map(slow_if_even, range(12))) == [number**2 for number in range(12)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_context_maps_as_often_as_it_is_asked_to(count):
    with ThreadTeam(count, 1) as team:
        assert [list(team.map(str, range(size))) for size in (4, 0, 1)] == [["0", "1", "2", "3"], [], ["0"]]


@pytest.mark.parametrize(("count", "elsewhere"), [(1, False), (2, True)])
def test_work_is_done_by_another_thread_where_there_are_several(count, elsewhere):
    with ThreadTeam(count, 1) as team:
        assert (team.submit(threading.get_ident).result() != threading.get_ident()) == elsewhere


def test_a_team_can_be_entered_again():
    team = ThreadTeam(2, 1)
    for _ in range(2):
        with team:
            assert list(team.map(str, range(3))) == ["0", "1", "2"]


def test_several_threads_work_at_the_same_time():
    both = threading.Barrier(2, timeout=10)  # one that waits alone breaks it
    with ThreadTeam(2, 1) as team:
        assert len(list(team.map(lambda _: both.wait(), range(4)))) == 4


def test_a_team_of_one_is_the_calling_thread():
    with ThreadTeam(1, 1) as team:
        assert list(team.map(lambda _: threading.get_ident(), range(3))) == [threading.get_ident()] * 3


def test_several_threads_are_new_ones_and_items_are_taken_in_the_calling_one():
    taken = []

    def given():
        for number in range(6):
            taken.append(threading.get_ident())
            yield number

    with ThreadTeam(2, 1) as team:
        working = set(team.map(lambda _: threading.get_ident(), given()))
    assert threading.get_ident() not in working
    assert set(taken) == {threading.get_ident()}


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (2, 3), (3, 4)])
def test_items_are_taken_when_they_are_needed(count, ahead):
    taken, differences = [], []
    with ThreadTeam(count, 1) as team:
        results = team.map(lambda number: number, (taken.append(number) or number for number in range(12)))
        assert taken == []
        for done, _ in enumerate(results):
            differences.append(len(taken) - done)
    assert differences[0] == max(differences) == ahead
    assert len(taken) == 12


@pytest.mark.parametrize("count", [1, 2])
def test_a_mistake_in_a_thread_is_raised_in_the_order_of_the_items(count):
    def fail_at_two(number):
        if number == 2:
            raise ValueError("two")
        return number

    with ThreadTeam(count, 1) as team:
        results = team.map(fail_at_two, range(6))
        seen = [next(results), next(results)]
        with pytest.raises(ValueError, match="two"):
            next(results)
    assert seen == [0, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_mistake_while_items_are_made_is_raised(count):
    def given():
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"), ThreadTeam(count, 1) as team:
        list(team.map(str, given()))


def test_after_a_mistake_nothing_more_is_taken():
    begun = []

    def fail(number):
        begun.append(number)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), ThreadTeam(2, 1) as team:
        list(team.map(fail, range(100)))
    assert len(begun) <= 3


@pytest.mark.parametrize(("count", "each"), [(1, 3), (2, 2), (3, 1)])
def test_each_thread_has_its_own_number_of_openmp_threads(count, each):
    torch.set_num_threads(5)
    with ThreadTeam(count, each) as team:
        assert set(team.map(lambda _: torch.get_num_threads(), range(8))) == {each}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_the_number_of_threads_is_that_of_before_when_the_team_ends(count, fails):
    torch.set_num_threads(3)
    team = ThreadTeam(count, 2)
    torch.set_num_threads(4)
    try:
        with team:
            list(team.map(str, range(4)))
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert torch.get_num_threads() == 4


def test_gradients_are_taken_in_a_team_as_in_the_calling_thread():
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    def gradient(row):
        return torch.autograd.grad((row @ weight).square().sum(), weight)[0]

    with ThreadTeam(2, 1) as team:
        found = list(team.map(gradient, inputs))
    assert all(torch.equal(one, gradient(row)) for one, row in zip(found, inputs, strict=True))
