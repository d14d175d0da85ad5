"""The README's code runs as it stands there, in a rehearsal."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from plugin_suite import Suite
from readme_picture import PICTURE, badges, drawn, run, said

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_readme_stays_within_its_caps(suite: Suite) -> None:
    suite_of_tests, script = blocks("python")
    (settings,) = blocks("toml")
    endpoint = re.search(r'hf_endpoint\("(.+?)"\)', suite_of_tests)
    assert endpoint
    suite.emulator.add_endpoint(endpoint[1])
    (suite.path / "pyproject.toml").write_text(settings)
    (suite.path / "test_answers.py").write_text(suite_of_tests)
    in_a_test = f"def test_block():\n{textwrap.indent(script, '    ')}"
    (suite.path / "test_block.py").write_text(in_a_test)
    result = suite.run("-s")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["*stopped after * calls: *", "spent $0.* of $0.05 *", f"*{endpoint[1]}: paused, verified*"]
    )


def test_the_picture_of_the_readme_says_what_its_first_example_prints(tmp_path: Path) -> None:
    shown = said(PICTURE.read_text(encoding="utf-8"))
    assert "2 passed" in shown
    assert shown == said(drawn(run(tmp_path))), "run `make picture`"


def test_the_badges_of_the_readme_say_what_the_package_does() -> None:
    assert badges()
    for path, badge in badges().items():
        assert path.read_text(encoding="utf-8") == badge, "run `make picture`"
        assert f"(docs/{path.name})" in README


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1600
