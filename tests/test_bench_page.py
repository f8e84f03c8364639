"""model_cards/bench.md says what its results say."""

from examples.research import bench_page


def test_the_page_is_built_from_the_results():
    assert bench_page.PAGE.read_text(encoding="utf-8") == bench_page.page()
    assert list(bench_page.RESULTS.glob("*.json"))
