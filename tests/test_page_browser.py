"""The page in a browser: it opens without a complaint or a request, and shows what is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.command import HANGS
from support.nets import Net

import caffe_fold

SHARED = Path(__file__).resolve().parents[2] / "shared"
HOSTILE = "</script><img src=x onerror=document.title='no'>"


def hostile_net() -> Net:
    net = Net("small")
    net.input("data", (1, 3, 6, 6))
    net.conv(HOSTILE, "data", 3, 4, top="conv")
    net.batch_norm("bn", "conv", 4)
    net.scale("scale", "conv", 4).blobs[0][:] = [1, 1e-3, 0, 30]
    net.relu("relu", "conv")
    net.scale("late", "conv", 4, top="late")
    return net


@contextmanager
def opened(browser: Any, path: Path, width: int = 1600, **options: Any) -> Iterator[Any]:
    """The page in a window, once all of it is drawn; at the end it must not have complained."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page, complaints = context.new_page(), []
    page.set_default_timeout(HANGS * 1000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    try:
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        yield page
        assert complaints == [path.as_uri()]
    finally:
        context.close()


@pytest.fixture
def hostile_page(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    caffe_fold.inspect(*hostile_net().write(tmp_path), html=path)
    return path


def test_a_click_shows_a_layer_and_a_hostile_name_is_text(browser: Any, hostile_page: Path) -> None:
    with opened(browser, hostile_page) as page:
        rows = page.locator(".pane[data-net=before] .row")
        assert rows.count() == 6
        assert page.locator(".pane[data-net=after] .row").count() == 4
        rows.nth(1).click()
        detail = page.locator(".detail")
        assert detail.locator("h3").text_content() == HOSTILE
        assert "takes bn + scale" in detail.text_content()
        assert "4x3x3x3, 4" in detail.text_content()
        page.locator(".detail a").click()
        rows.nth(5).click()
        assert "which is not linear" in detail.text_content()
        assert page.locator(".row.chosen").count() == 2
        assert page.locator("img").count() == 0
        assert page.title() == "What folding does to net.prototxt"


def test_the_keyboard_reaches_every_layer(browser: Any, hostile_page: Path) -> None:
    with opened(browser, hostile_page) as page:
        page.locator('.pane[data-net=before] [tabindex="0"]').first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.locator(".detail h3").text_content() == "bn"
        page.keyboard.press("End")
        page.keyboard.press(" ")
        assert page.locator(".detail h3").text_content() == "late"
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith("late, Scale, stays: ")


@pytest.mark.parametrize("width", [360, 768, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_window(
    browser: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    net = hostile_net()
    net.scale("n" * 190, "late", 4, top="last")
    model, weights = net.write(tmp_path)
    model = model.rename(tmp_path / f"{'m' * 120}.prototxt")
    path = tmp_path / "page.html"
    caffe_fold.inspect(model, weights, html=path)
    with opened(browser, path, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if width < 1280:
            assert not page.locator(".pane[data-net=after]").is_visible()
            page.locator("[data-show=after]").click()
            assert page.locator(".pane[data-net=after] .row").count() == 4
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert not page.locator(".pane[data-net=before]").is_visible()


def test_on_paper_all_is_there(browser: Any, hostile_page: Path) -> None:
    with opened(browser, hostile_page) as page:
        assert len(page.pdf(format="A4")) > 10_000
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert page.locator(".slices svg").count() == 2
        assert page.locator("details").first.evaluate("each => each.open")
        assert not page.locator(".tools").is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator(".slices").count() == 0


def large_net(blocks: int) -> Net:
    """Residual blocks, and one connection over all of them."""
    net = Net("large")
    net.input("data", (1, 4, 6, 6))
    bottom = "data"
    for index in range(blocks):
        for part in ("a", "b"):
            top = f"{index}{part}"
            net.conv(f"conv{top}", bottom if part == "a" else f"{index}a", 4, 4, pad=1, top=top)
            net.batch_norm(f"bn{top}", top, 4)
            net.scale(f"scale{top}", top, 4)
            net.relu(f"relu{top}", top)
        net.layer(f"sum{index}", "Eltwise", [bottom, f"{index}b"], f"sum{index}")
        bottom = f"sum{index}"
    net.layer("all", "Eltwise", [bottom, "sum0"], "all")
    return net


def test_boxes_do_not_overlap_and_chains_open(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    caffe_fold.inspect(large_net(40).write(tmp_path)[0], html=path)
    with opened(browser, path) as page:
        boxes = page.locator(".pane[data-net=before] .box")
        assert boxes.count() == 40 * 2 + 2
        assert_apart(page)
        page.locator(".pane[data-net=before] [data-chain]").first.click()
        assert boxes.count() == 40 * 2 + 3
        assert page.locator(".detail h3").text_content() == "conv0a"
        page.locator("[data-chains]").click()
        assert boxes.count() == 40 * 3 + 2
        assert_apart(page)


def assert_apart(page: Any) -> None:
    """No box of a picture lies over another."""
    overlaps = page.evaluate(
        """() => {
          let found = 0;
          for (const pane of document.querySelectorAll(".pane")) {
            const boxes = [...pane.querySelectorAll(".box")].map((b) => b.getBoundingClientRect());
            boxes.forEach((a, at) => boxes.slice(at + 1).forEach((b) => {
              const beside = a.right <= b.left + 1 || b.right <= a.left + 1;
              if (!beside && a.bottom > b.top + 1 && b.bottom > a.top + 1) found += 1;
            }));
          }
          return found;
        }"""
    )
    assert overlaps == 0


@pytest.mark.slow
def test_thousands_of_layers(browser: Any, tmp_path: Path) -> None:
    """A part without a neck, too large for dagre, is laid out all the same."""
    path = tmp_path / "page.html"
    caffe_fold.inspect(large_net(240).write(tmp_path)[0], html=path)
    with opened(browser, path) as page:
        assert page.locator(".pane[data-net=before] .box").count() == 240 * 2 + 2
        assert_apart(page)


def test_a_net_of_one_layer(browser: Any, tmp_path: Path) -> None:
    net = Net("one")
    net.input("data", (1, 3, 6, 6))
    path = tmp_path / "page.html"
    caffe_fold.inspect(net.write(tmp_path)[0], html=path)
    with opened(browser, path) as page:
        assert page.locator(".pane[data-net=before] .row").count() == 1
        assert "Nothing folds." in page.locator("#folds").text_content()


@pytest.mark.parametrize(
    "name", ["soeaver_caffe-model/deploy_densenet121", "chuanqi305_MobileNet-SSD/deploy"]
)
def test_real_nets(browser: Any, name: str, tmp_path: Path) -> None:
    model = SHARED / "prototxts" / f"{name}.prototxt"
    if not model.is_file():
        pytest.skip(f"{model} is not there")
    path = tmp_path / "page.html"
    caffe_fold.inspect(model, html=path)
    with opened(browser, path) as page:
        assert page.locator(".pane[data-net=before] .box").count() > 20
        assert_apart(page)
