"""The example of docs/writing_a_pass.md is a pass that works and a test that holds."""

import re
from pathlib import Path

from tests.passes import helpers

PAGE = Path(__file__).parents[2] / "docs" / "writing_a_pass.md"


def test_the_example_of_the_page_works():
    code, _, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = dict(vars(helpers))
    exec(compile(code + test, str(PAGE), "exec"), names)
    names["test_a_pair_goes"]()
