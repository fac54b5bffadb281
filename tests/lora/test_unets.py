"""U-Nets that are lent to jobs: of the usual choice of LoRAs, and of others."""

from __future__ import annotations

import pytest

from mimicmotion_trt.lora import Unets


class Opened:
    """An engine by what `Unets` asks of it."""

    def __init__(self, network: str, choice: tuple[str, ...]) -> None:
        self.network, self.choice, self.closed = network, choice, False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Shelf:
    """U-Nets whose opening is recorded."""

    def __init__(self, most: int = 2) -> None:
        self.opened: list[Opened] = []
        self.told: list[Opened] = []
        own = {name: Opened(name, ()) for name in ("unet", "unet_caching", "unet_shallow")}
        self.unets = Unets(own.__getitem__, self.open, (), most=most, size=100)
        self.unets.on_close = self.told.append

    def open(self, network: str, choice: tuple[str, ...]) -> Opened:
        if "broken" in choice:
            raise ValueError("broken")
        self.opened.append(Opened(network, choice))
        return self.opened[-1]

    def use(self, *choice: str) -> Opened:
        with self.unets.lend(choice, caching=False) as (unet, shallow):
            assert shallow is None
            assert not unet.closed
            return unet

    @property
    def open_choices(self) -> list[tuple[str, ...]]:
        return [engine.choice for engine in self.opened if not engine.closed]


def test_a_choice_is_opened_once_and_the_usual_one_never():
    shelf = Shelf()
    assert shelf.use("a") is shelf.use("a")
    assert shelf.use().choice == ()
    assert len(shelf.opened) == 1


def test_the_least_recently_used_choice_goes_first_and_its_owner_is_told():
    shelf = Shelf(most=2)
    for name in ("a", "b", "a", "c"):
        shelf.use(name)
    assert shelf.open_choices == [("a",), ("c",)]
    assert [engine.choice for engine in shelf.told] == [("b",)]
    assert (shelf.unets.to_load(("b",)), shelf.unets.to_load(("a",)), shelf.unets.to_load(())) == (100, 0, 0)


def test_a_unet_in_use_stays_until_it_is_given_back():
    shelf = Shelf(most=1)
    with shelf.unets.lend(("a",), caching=False) as (unet, _):
        shelf.use("b")
        assert not shelf.unets.free_unused()
        assert not unet.closed
    shelf.use("c")
    assert shelf.open_choices == [("c",)]
    assert shelf.unets.free_unused()
    assert shelf.open_choices == []


def test_a_job_that_caches_features_gets_the_two_networks_for_that():
    shelf = Shelf()
    with shelf.unets.lend(("a",), caching=True) as pair:
        assert [engine.network for engine in pair] == ["unet_caching", "unet_shallow"]
    assert shelf.use("a").network == "unet"


def test_what_cannot_be_opened_leaves_nothing_behind():
    shelf = Shelf()
    with pytest.raises(ValueError, match="broken"):
        shelf.use("broken")
    assert shelf.unets.to_load(("broken",)) == 100
    shelf.unets.close()
