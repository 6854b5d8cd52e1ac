"""Hostile documents: whatever stands anywhere, the parser says PolicyError or takes it; it never crashes."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy.compile import compile_table
from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_document, parse_text
from support.documents import FULL, places, replaced

#: One object of each kind, so that whatever is accepted meets something to be about.
CLUSTER = Cluster().with_objects(
    item for document in FULL.values() for item in parse_document(Document("x.yaml", 1, 1, document))
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ("", "\x00", "999999999999999999999999", "0/0", "::/0", "1.2.3.4/", "/8", "(", "a" * 300, "²", "١")
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_anything_anywhere(data: st.DataObject) -> None:
    document = FULL[data.draw(st.sampled_from(sorted(FULL)))]
    content = replaced(document, data.draw(st.sampled_from(list(places(document)))), data.draw(values))
    try:
        objects = parse_document(Document("x.yaml", 1, 1, content))
    except PolicyError as error:
        message = str(error)
        assert message.startswith("x.yaml: ")
        assert message.isprintable()
        assert len(message) < 1200
        return
    compile_table(CLUSTER.with_objects(objects), node="n", numbering=Numbering(), revision=1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#%@`,? \n\t\\<~0é\x00\x85\u2028")), max_size=40))
def test_any_text(text: str) -> None:
    parsed = parse_text(text, "x.yaml")
    for error in parsed.errors:
        assert str(error).isprintable()


def test_deep_and_wide_texts_end_soon() -> None:
    for text in (
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "a: {" * 50_000,
        "? " * 50_000,
        "&a " * 1000,
        "*a " * 1000,
    ):
        assert parse_text(text, "x.yaml").errors
    assert len(load_documents("a: [" + "1," * 100_000 + "]", "x.yaml")) == 1
