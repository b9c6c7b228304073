"""Model on a real API server: every field and rule, what is just taken, what is just refused and in which words.

The table stands in `tandem_testing.crd_model`; a field, bound or rule that it does not speak of fails a test.
"""

from collections.abc import Iterator

import pytest

from tandem_devcluster.cluster import Cluster
from tandem_testing.crd_model import MODEL
from tandem_testing.kube import Kube

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    yield made
    made.close()


def test_the_table_leaves_nothing_out() -> None:
    assert MODEL.omissions() == {}


@pytest.mark.parametrize("name", MODEL.valid)
def test_what_is_valid_is_taken_and_kept(kube: Kube, name: str) -> None:
    MODEL.check_valid(kube, MODEL.valid[name])


@pytest.mark.parametrize("path", MODEL.fields)
def test_values_of_a_field(kube: Kube, path: str) -> None:
    MODEL.check_values(kube, path)


@pytest.mark.parametrize("path", MODEL.schema)
def test_values_of_another_type(kube: Kube, path: str) -> None:
    MODEL.check_type(kube, path)


@pytest.mark.parametrize("name", MODEL.rules)
def test_rules_between_fields(kube: Kube, name: str) -> None:
    MODEL.check_rule(kube, name)


@pytest.mark.parametrize("path", MODEL.missing)
def test_required_fields(kube: Kube, path: str) -> None:
    spec, told = MODEL.missing[path]
    assert MODEL.refusals(kube, MODEL.object(spec)) == [told]
    assert not MODEL.accepts(spec)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a" * 40, None),
        ("0-a", None),
        ("a" * 41, "a Model's name has at most 40 characters, so that the names of its objects fit"),
        ("a.b", "a Model's name has lower-case letters, digits and '-' only, with a letter or digit at both ends"),
    ],
)
def test_names(kube: Kube, name: str, told: str | None) -> None:
    expected = [] if told is None else [f'metadata: Invalid value: "object": {told}']
    assert MODEL.refusals(kube, MODEL.object(MODEL.least, name)) == expected


def test_a_spec_is_required(kube: Kube) -> None:
    bare = MODEL.object({})
    del bare["spec"]
    assert MODEL.refusals(kube, bare) == ["spec: Required value"]
